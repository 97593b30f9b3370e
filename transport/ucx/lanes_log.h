// transport/ucx/lanes_log.h — tells people what carries their bytes, and how fast.
#pragma once

#include <map>
#include <string>

#include "common/clock.h"
#include "transport/ucx/client_connection.h"

namespace icefield::ucx {

// Says at the first connection of each peer class (the lanes, and whether the peer is on this
// machine) what it got and the bandwidth measured, and again at a connection after a minute. Warns
// when shared memory was to be expected and something else came.
//
// Threads  The shard's.
class LanesLog {
 public:
  explicit LanesLog(UcxLanes wanted) : wanted_(wanted) {}

  // Measures, if it is time to. Ends early with the connection.
  asio::awaitable<void> connected(std::shared_ptr<ClientConnection> connection);

 private:
  const UcxLanes wanted_;
  SystemClock clock_;
  std::map<std::string, Clock::TimePoint> next_;  // by peer class
};

}  // namespace icefield::ucx
