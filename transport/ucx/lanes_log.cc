#include "transport/ucx/lanes_log.h"

#include <glog/logging.h>

#include <algorithm>
#include <fstream>

namespace icefield::ucx {
namespace {

constexpr std::chrono::minutes kPause{1};
constexpr std::chrono::milliseconds kMeasureTime{50};
constexpr std::int64_t kProbeBytes = 1 << 20;
// One connection does not fill every device, and neighbours take their share: what is within this
// factor may be as it should be.
constexpr std::int64_t kFarBelow = 10;

std::string kind_of(const std::string& lanes, bool local) {
  return lanes + (local ? " on this machine" : "");
}

std::string megabytes(std::int64_t bytes) { return std::to_string(bytes / 1'000'000) + " MB/s"; }

// The first number in a file; 0 when there is none.
double first_number(const std::filesystem::path& file) {
  std::ifstream in(file);
  double number = 0;
  in >> number;
  return in ? number : 0;
}

}  // namespace

std::int64_t device_bytes_per_second(const std::string& device, const std::filesystem::path& sys) {
  const std::size_t colon = device.find(':');
  double bits = 0;
  if (colon == device.npos) {
    bits = 1e6 * first_number(sys / "class/net" / device / "speed");
  } else {  // "100 Gb/sec (4X EDR)"
    const auto port = sys / "class/infiniband" / device.substr(0, colon) / "ports";
    bits = 1e9 * first_number(port / device.substr(colon + 1) / "rate");
  }
  return bits > 0 ? static_cast<std::int64_t>(bits / 8) : 0;
}

std::string far_below(std::int64_t measured, std::int64_t possible, const std::string& device) {
  if (measured == 0 || measured > possible / kFarBelow) return "";
  return "the bandwidth is " + megabytes(measured) + ", " + device + " can do " +
         megabytes(possible) + "; a machine with too much to do looks like this, too";
}

asio::awaitable<void> LanesLog::connected(std::shared_ptr<ClientConnection> connection) {
  const std::string name = kind_of(connection->lanes(), connection->local());
  Kind& kind = kinds_[name];
  const auto begin = clock_.now();
  if (begin < kind.next) co_return;
  kind.next = begin + kPause;
  kind.found.concern = concern_about(*connection, 0);  // known already without measuring
  const Result<std::int64_t> measured = co_await measure(*connection);
  if (measured.has_value()) kind.found.bytes_per_second = *measured;
  kind.found.concern = concern_about(*connection, kind.found.bytes_per_second);
  LOG(INFO) << "peer " << connection->peer() << ": lanes " << name << ", "
            << (measured.has_value() ? megabytes(*measured) : "bandwidth not measured");
  if (!kind.found.concern.empty()) {
    LOG(WARNING) << "peer " << connection->peer() << ": " << kind.found.concern;
  }
}

Task<std::int64_t> LanesLog::measure(ClientConnection& connection) {
  const SystemClock clock;
  Buffer probe(kProbeBytes);
  probe.resize(kProbeBytes);
  std::ranges::fill(probe.bytes(), std::byte{0});
  const Deadline deadline = Deadline::after(clock, kMeasureTime);
  double best = 0;
  while (!deadline.passed(clock)) {
    const auto begin = clock.now();
    Request request(kProbeMethod, std::string());
    request.payload.push_back(std::as_const(probe).bytes());
    const Result<Reply> reply = co_await connection.call(std::move(request), Buffer(0), deadline);
    if (!reply.has_value()) break;
    const std::chrono::duration<double> took = clock.now() - begin;
    best = std::max(best, static_cast<double>(kProbeBytes) / took.count());
  }
  if (best == 0) co_return Status(Code::kDeadlineExceeded, "no probe came back in time");
  co_return static_cast<std::int64_t>(best);
}

std::string LanesLog::concern_about(const ClientConnection& connection,
                                    std::int64_t measured) const {
  if (connection.lanes().find("posix") != std::string::npos) return "";
  if (connection.local() && wanted_ != UcxLanes::kTcp) {
    return "it is on this machine, but is reached over " + connection.lanes() +
           ", not shared memory: is /dev/shm there, the same for both, and --lanes of the node "
           "auto?";
  }
  return far_below(measured, device_bytes_per_second(connection.devices()), connection.devices());
}

LanesLog::Finding LanesLog::find(const ClientConnection& connection) const {
  const auto found = kinds_.find(kind_of(connection.lanes(), connection.local()));
  return found == kinds_.end() ? Finding() : found->second.found;
}

void LanesLog::accepted(const std::string& lanes, bool local) {
  const std::string name = kind_of(lanes, local);
  if (accepted_.insert(name).second) LOG(INFO) << "first client by lanes " << name;
}

}  // namespace icefield::ucx
