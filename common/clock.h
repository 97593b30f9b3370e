// common/clock.h — the door to time, and deadlines.
#pragma once

#include <chrono>
#include <cstdint>

#include "common/task.h"

namespace icefield {

// Monotonic time for deadlines and durations, wall time for expiry dates.
//
// Threads  Safe from any thread, except sleep_until(), which runs on the awaiting executor.
class Clock {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
  virtual std::int64_t unix_ms() const = 0;
  // Suspends until `when`. kCancelled when the coroutine is cancelled first.
  virtual Task<> sleep_until(TimePoint when) = 0;
};

// The operating system's clocks.
class SystemClock final : public Clock {
 public:
  TimePoint now() const override { return std::chrono::steady_clock::now(); }
  std::int64_t unix_ms() const override;
  Task<> sleep_until(TimePoint when) override;
};

// When a call must have returned: absolute and monotonic, handed down unchanged.
class Deadline {
 public:
  static Deadline never() { return Deadline(Clock::TimePoint::max()); }
  static Deadline at(Clock::TimePoint when) { return Deadline(when); }
  static Deadline after(const Clock& clock, std::chrono::milliseconds duration) {
    return Deadline(clock.now() + duration);
  }

  bool passed(const Clock& clock) const { return clock.now() >= when_; }
  bool is_never() const { return when_ == Clock::TimePoint::max(); }
  Clock::TimePoint time_point() const { return when_; }

 private:
  explicit Deadline(Clock::TimePoint when) : when_(when) {}
  Clock::TimePoint when_;
};

}  // namespace icefield
