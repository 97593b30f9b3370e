// transport/ucx/lanes_log.h — tells people what carries their bytes, and how fast.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "common/clock.h"
#include "transport/ucx/client_connection.h"

namespace icefield::ucx {

// What a network device can do by its own word, which is in /sys; 0 when it has none: loopback and
// virtual devices. Devices as UCX names them: "eth0", "mlx5_0:1".
std::int64_t device_bytes_per_second(const std::string& device,
                                     const std::filesystem::path& sys = "/sys");

// In words, when what was measured is a tenth or less of what `device` can do; else "". 0: unknown.
std::string far_below(std::int64_t measured, std::int64_t possible, const std::string& device);

// Says at the first connection of each kind (the lanes, and whether the peer is on this machine)
// what it got and, on the client's side, the bandwidth at its best in 50 ms; there again at a
// connection after a minute. Warns when shared memory was to be expected and something else came,
// and when the bandwidth is far below the device's.
//
// Threads  The shard's.
class LanesLog {
 public:
  struct Finding {
    std::int64_t bytes_per_second = 0;  // 0: not measured
    std::string concern;                // "": none
  };

  explicit LanesLog(UcxLanes wanted) : wanted_(wanted) {}

  // Measures, if it is time to. Ends early with the connection.
  asio::awaitable<void> connected(std::shared_ptr<ClientConnection> connection);
  // What is known of connections like this one.
  Finding find(const ClientConnection& connection) const;

  // A client has connected.
  void accepted(const std::string& lanes, bool local);

 private:
  struct Kind {
    Clock::TimePoint next{};  // when to measure again
    Finding found;
  };
  static Task<std::int64_t> measure(ClientConnection& connection);
  std::string concern_about(const ClientConnection& connection, std::int64_t measured) const;

  const UcxLanes wanted_;
  SystemClock clock_;
  std::map<std::string, Kind> kinds_;
  std::set<std::string> accepted_;  // kinds
};

}  // namespace icefield::ucx
