// tests/support/manual_clock.h — time that passes when the test says so.
#pragma once

#include "common/clock.h"

namespace icefield {

// Nobody sleeps by it: what waits in these tests waits for an event.
class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(elapsed_); }
  std::int64_t unix_ms() const override {
    return 1'700'000'000'000 +
           std::chrono::duration_cast<std::chrono::milliseconds>(elapsed_ + wall_step_).count();
  }
  Task<> sleep_until(TimePoint) override { co_return Status(Code::kUnimplemented, "manual clock"); }

  void advance(std::chrono::nanoseconds by) { elapsed_ += by; }
  // Somebody sets the wall clock, forward or back.
  void step_wall(std::chrono::nanoseconds by) { wall_step_ += by; }

 private:
  std::chrono::nanoseconds elapsed_{std::chrono::hours(1)};
  std::chrono::nanoseconds wall_step_{0};
};

}  // namespace icefield
