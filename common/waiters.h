// common/waiters.h — coroutines that wait for a condition of their shard to change.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <vector>

#include "common/clock.h"

namespace icefield {

// A condition variable for coroutines: whoever changes the condition notifies, whoever waits looks
// at the condition again.
//
// Threads  One shard.
class Waiters {
 public:
  Waiters() = default;
  ~Waiters() { ICE_CHECK(waiting_.empty()); }
  Waiters(const Waiters&) = delete;
  Waiters& operator=(const Waiters&) = delete;

  // Suspends until notify_all() or `deadline`; false when it was the deadline.
  asio::awaitable<bool> wait(Deadline deadline);
  void notify_all();
  bool empty() const { return waiting_.empty(); }

 private:
  std::vector<asio::steady_timer*> waiting_;  // each in the frame of its wait()
};

}  // namespace icefield
