// tools/perftest.h — ucx_perftest, the yardstick of UCX's own, with our settings.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

namespace icefield {

struct PerftestPlan {
  bool tcp = false;      // else shared memory
  bool poll = false;     // else both sides sleep until an event
  bool latency = false;  // round trips, else a stream of messages one way
  std::int64_t message_bytes = 0;
  std::int64_t iterations = 0;
};

struct PerftestResult {
  double gbps = 0;
  double round_trip_us = 0;  // median
};

// Runs a server and a client on 127.0.0.1, active messages with peer error handling, and the lanes,
// thresholds and segments of transport/ucx. kNotFound when it is not installed (ucx-utils).
Result<PerftestResult> run_perftest(const PerftestPlan& plan);

}  // namespace icefield
