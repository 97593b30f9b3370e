// transport/ucx/ucx_options.h — what a user of the UCX transport chooses.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "transport/caller.h"

namespace icefield {

// Which of UCX's transports may carry a connection.
enum class UcxLanes {
  kAuto,          // shared memory to peers of this machine, else RDMA where there is any, else TCP
  kTcp,           // TCP, also to peers of this machine
  kSharedMemory,  // shared memory only
};

// "auto", "tcp", "shared_memory"; kInvalidArgument for anything else.
Result<UcxLanes> parse_lanes(const std::string& text);

// UcxOptions::network to reach, or listen at, these addresses ("host:port"): "lo" when all of them
// are of this machine's loopback, else "all".
std::string network_for(std::span<const std::string> addresses);

struct UcxOptions {
  UcxLanes lanes = UcxLanes::kAuto;
  // Devices that may carry bulk bytes, as UCX names them: "eth0", "mlx5_0:1", "all"; network_for()
  // chooses. UCX opens a port on each; the default reaches peers of this machine only.
  std::string network = "lo";
  // One-sided reads also over TCP, which emulates them at a millisecond each: what RDMA does with a
  // peer that has died can be seen there.
  bool emulated_reads = false;
  // Busy polling: for a shard with a core of its own, on both ends.
  bool poll = false;
  // What a server grants each connection; a client with nothing left waits.
  std::int64_t max_calls = 256;
  std::int64_t max_request_bytes = 256 << 20;  // together, of calls under way
  // A server's: of replies that a connection does not take. Beyond it the others wait, and with
  // them what was granted for their calls.
  std::int64_t max_unsent_bytes = 256 << 20;
  // A server's: each connection proves that it knows one of these, or is refused. Empty: everybody
  // may use everything, and listening beyond this machine is refused, too, but for insecure_listen.
  std::vector<TokenGrant> tokens;
  bool insecure_listen = false;
  // A client's, for servers that want one.
  std::string token;
  // For connecting and shaking hands, and for closing politely.
  std::chrono::milliseconds connect_timeout{3000};
  std::chrono::milliseconds close_timeout{1000};
};

}  // namespace icefield
