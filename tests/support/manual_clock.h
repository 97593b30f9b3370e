// tests/support/manual_clock.h — wall time that stands still until a test moves it.
#pragma once

#include "common/clock.h"

namespace icefield {

class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return system_.now(); }
  std::int64_t unix_ms() const override { return unix_ms_; }
  Task<> sleep_until(TimePoint when) override { return system_.sleep_until(when); }
  void advance_ms(std::int64_t ms) { unix_ms_ += ms; }

 private:
  SystemClock system_;
  std::int64_t unix_ms_ = 1000000;
};

}  // namespace icefield
