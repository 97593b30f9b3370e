// transport/ucx/patience.h — how long to look for the next message before falling asleep, and to
// leave a peer alone that was not reached.
#pragma once

#include <algorithm>
#include <chrono>

namespace icefield::ucx {

// Falling asleep and being woken costs both sides tens of microseconds where the other core halts
// meanwhile, which a peer that answers at once does not take. So once a sleep was that short, the
// next ones are preceded by a look of kLook, as long as looking finds something. Where it does not
// (the peer is slow, or waits for this very core) it is left for longer and longer. A shard that
// nobody talks to never looks.
//
// Threads  One; time is an argument.
class Patience {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::microseconds kLook{200};

  // Something arrived.
  void arrived(TimePoint now) {
    if (looking_) misses_ = 0;
    expect(now);
  }
  // Something was sent, or else the next message may be near.
  void expect(TimePoint now) {
    looking_ = worthwhile_;
    since_ = now;
  }
  // Nothing moves: whether to look again before falling asleep.
  bool look(TimePoint now) {
    if (!looking_) return false;
    if (now < since_ + kLook) return true;
    looking_ = false;
    worthwhile_ = false;
    misses_ = std::min(misses_ + 1, kMostMisses);
    pauses_ = 1 << misses_;
    return false;
  }
  // Something moved after so long a sleep.
  void slept(std::chrono::steady_clock::duration duration) {
    worthwhile_ = duration < kLook && pauses_ == 0;
    if (pauses_ > 0) --pauses_;
  }

 private:
  static constexpr int kMostMisses = 10;

  bool worthwhile_ = false;
  bool looking_ = false;
  TimePoint since_{};
  int misses_ = 0;  // looks in vain, in a row
  int pauses_ = 0;  // sleeps until looking is tried again
};

// After the n-th failure in a row to connect.
constexpr std::chrono::milliseconds pause_to_connect(int failures) {
  const int doublings = std::clamp(failures - 1, 0, 6);  // more make no difference
  return std::chrono::milliseconds(std::min(20 << doublings, 1000));
}

}  // namespace icefield::ucx
