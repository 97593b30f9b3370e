#include "transport/ucx/lanes_log.h"

#include <glog/logging.h>

namespace icefield::ucx {
namespace {

constexpr std::chrono::minutes kPause{1};
constexpr std::chrono::milliseconds kMeasureTime{50};
constexpr std::int64_t kProbeBytes = 1 << 20;

}  // namespace

asio::awaitable<void> LanesLog::connected(std::shared_ptr<ClientConnection> connection) {
  const std::string lanes = connection->lanes();
  const std::string kind = lanes + (connection->local() ? " on this machine" : "");
  const auto begin = clock_.now();
  Clock::TimePoint& next = next_[kind];
  if (begin < next) co_return;
  next = begin + kPause;
  if (wanted_ != UcxLanes::kTcp && connection->local() && lanes.find("posix") == lanes.npos) {
    LOG(WARNING) << "peer " << connection->peer() << " is on this machine, but is reached over "
                 << lanes << ", not shared memory: is /dev/shm there, and the same for both?";
  }
  Buffer probe(kProbeBytes);
  probe.resize(kProbeBytes);
  std::ranges::fill(probe.bytes(), std::byte{0});
  const Deadline deadline = Deadline::at(begin + kMeasureTime);
  std::int64_t bytes = 0;
  std::chrono::duration<double> took{0};
  while (!deadline.passed(clock_)) {
    Request request(kProbeMethod, std::string());
    request.payload.push_back(std::as_const(probe).bytes());
    const Result<Reply> reply = co_await connection->call(std::move(request), Buffer(0), deadline);
    if (!reply.has_value()) break;
    bytes += kProbeBytes;
    took = clock_.now() - begin;
  }
  std::string speed = "bandwidth not measured";
  if (bytes > 0) {
    const double mbps = static_cast<double>(bytes) / took.count() / 1e6;
    speed = std::to_string(static_cast<std::int64_t>(mbps)) + " MB/s";
  }
  LOG(INFO) << "peer " << connection->peer() << ": lanes " << kind << ", " << speed;
}

}  // namespace icefield::ucx
