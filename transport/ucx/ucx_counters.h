// transport/ucx/ucx_counters.h — what a UCX transport counts.
#pragma once

#include <array>
#include <atomic>

#include "common/metrics.h"

namespace icefield {

// Why the connection of a client ended before it was one.
enum class HandshakeFailure {
  kBrokenOff,  // the client went
  kLate,       // it did not go on in time
  kGarbage,    // it does not speak this protocol, or makes no sense
  kVersion,    // it speaks another version
  kToken,      // it did not show a token that is known here
  kNoLane,     // UCX found no way to it
};
constexpr std::array<const char*, 6> kHandshakeFailureNames = {"broken_off", "late",  "garbage",
                                                               "version",    "token", "no_lane"};

// Threads  Any.
struct UcxCounters {
  struct FailedHandshakes : Counter {
    FailedHandshakes()
        : Counter("icefield_transport_failed_handshakes_total",
                  "connections of clients that ended before they were made, by reason") {}
  };

  Counter& failed_handshakes(HandshakeFailure why) {
    return by_reason[static_cast<std::size_t>(why)];
  }

  Counter stray_fragments{"icefield_transport_stray_fragments_total",
                          "fragments for no open connection or of no known kind"};
  Counter stuck_queues{"icefield_transport_stuck_queues_total",
                       "queues in shared memory that a killed peer left stuck, replaced"};
  std::array<FailedHandshakes, kHandshakeFailureNames.size()> by_reason;
  std::atomic<std::int64_t> connections{0};  // of clients, now; orders nothing else
};

}  // namespace icefield
