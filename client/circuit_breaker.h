// client/circuit_breaker.h — stops asking a node that does not answer, and finds out when it does.
#pragma once

#include <chrono>
#include <cstdint>

#include "common/clock.h"

namespace icefield {

// Closed: everything goes through. After failures_to_open failures in a row it is open and nothing
// does; when the pause is over, one call may try (half-open). Its success closes the breaker, its
// failure opens it for twice as long.
//
// A pure state machine: time is an argument. Threads: one at a time.
class CircuitBreaker {
 public:
  struct Options {
    std::int32_t failures_to_open = 3;
    std::chrono::milliseconds pause{200};
    std::chrono::milliseconds max_pause{10'000};
    // A try that never reports counts as failed after this long.
    std::chrono::milliseconds try_timeout{5'000};
  };
  enum class State { kClosed, kOpen, kHalfOpen };

  explicit CircuitBreaker(Options options) : options_(options), pause_(options.pause) {}

  // Whether a call may go out now. A true in half-open is the one try.
  bool allow(Clock::TimePoint now) {
    if (state_ == State::kClosed) return true;
    if (now < next_) return false;
    state_ = State::kHalfOpen;
    next_ = now + options_.try_timeout;
    return true;
  }
  void succeed() {
    state_ = State::kClosed;
    failures_ = 0;
    pause_ = options_.pause;
  }
  // The call was given up and says nothing of the node: the next one may try.
  void give_up(Clock::TimePoint now) {
    if (state_ != State::kHalfOpen) return;
    state_ = State::kOpen;
    next_ = now;
  }
  void fail(Clock::TimePoint now) {
    if (state_ == State::kClosed && ++failures_ < options_.failures_to_open) return;
    // Late failures of calls that went out before it opened change nothing.
    if (state_ == State::kOpen) return;
    if (state_ == State::kHalfOpen) pause_ = std::min(pause_ * 2, options_.max_pause);
    state_ = State::kOpen;
    next_ = now + pause_;
  }

  State state() const { return state_; }

 private:
  const Options options_;
  State state_ = State::kClosed;
  std::int32_t failures_ = 0;        // in a row
  std::chrono::milliseconds pause_;  // the next one
  Clock::TimePoint next_{};          // open: when to try; half-open: when to try again
};

}  // namespace icefield
