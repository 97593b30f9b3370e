// icefield doctor — explains what this machine offers and what holds it back.
#include <fcntl.h>
#include <gflags/gflags.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <thread>

#include "common/bytes.h"
#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/connection.h"
#include "tools/report.h"
#include "transport/ucx/ucx_info.h"

DEFINE_string(store, "", "directory that a node would use: looks at its file system");
DEFINE_string(cluster, "", "nodes that are up: looks at what carries the bytes to them");
DEFINE_string(token_file, "", "holds the token that the nodes want");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield doctor — explains what this machine offers to Icefield and what holds it back

Looks only; writes nothing but a scratch file in --store. Exit code 1: something must be mended.

  icefield doctor --store=/var/lib/icefield --cluster=127.0.0.1:7070
)";

constexpr std::int64_t kPingMs = 5000;  // it connects

enum class Level { kOk, kNote, kProblem };

struct Finding {
  Level level = Level::kOk;
  std::string what;
  std::string value;
  std::string advice;  // empty when there is nothing to do
};
using Findings = std::vector<Finding>;

const char* to_text(Level level) {
  switch (level) {
    case Level::kOk: return "ok";
    case Level::kNote: return "note";
    case Level::kProblem: return "problem";
  }
  return "?";
}

// A number of kB in /proc/meminfo, as bytes; 0 when it is not there.
double meminfo_bytes(const std::string& name) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(name + ":")) {
      return 1024.0 * std::strtod(line.c_str() + name.size() + 1, nullptr);
    }
  }
  return 0;
}

void look_at_processor(Findings& found) {
  found.push_back({.what = "processor", .value = machine_name()});
  const unsigned cores = std::thread::hardware_concurrency();
  found.push_back({.level = cores > 1 ? Level::kOk : Level::kNote,
                   .what = "cores",
                   .value = std::to_string(cores),
                   .advice = cores > 1 ? "" : "node and engine will take turns on one core"});
}

void look_at_memory(Findings& found) {
  const double available = meminfo_bytes("MemAvailable");
  const bool enough = available > 2e9;
  found.push_back(
      {.level = enough ? Level::kOk : Level::kNote,
       .what = "memory",
       .value = bytes_text(available) + " available of " + bytes_text(meminfo_bytes("MemTotal")),
       .advice = enough ? "" : "give a node less: --dram_bytes"});
  struct statvfs shared {};
  const bool mounted = statvfs("/dev/shm", &shared) == 0;
  const double room =
      mounted ? static_cast<double>(shared.f_bavail) * static_cast<double>(shared.f_frsize) : 0;
  const bool wide = room > 256e6;
  found.push_back({.level = wide ? Level::kOk : Level::kProblem,
                   .what = "shared memory",
                   .value = mounted ? bytes_text(room) + " free in /dev/shm" : "no /dev/shm",
                   .advice = wide
                                 ? ""
                                 : "connections to nodes of this machine fall back to TCP; mount a "
                                   "larger tmpfs there (containers: --shm-size, an emptyDir)"});
}

void look_at_limits(Findings& found) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const bool many = files.rlim_cur >= 4096;
  found.push_back({.level = many ? Level::kOk : Level::kNote,
                   .what = "open files",
                   .value = "at most " + std::to_string(files.rlim_cur),
                   .advice = many ? "" : "RocksDB and connections want more: ulimit -n 65536"});
}

void look_at_network(Findings& found) {
  std::set<std::string> transports;
  std::set<std::string> networks;
  for (const UcxDevice& device : ucx_devices()) {
    transports.insert(device.transport);
    if (device.transport == "tcp" || device.device.find(':') != std::string::npos) {
      networks.insert(device.device);
    }
  }
  const auto joined = [](const std::set<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  };
  found.push_back({.what = "UCX", .value = ucx_version() + ": " + joined(transports)});
  if (!transports.contains("posix")) {
    found.push_back({.level = Level::kProblem,
                     .what = "UCX posix",
                     .value = "missing",
                     .advice = "no shared memory between processes; install Debian's libucx0"});
  }
  std::error_code none;
  const bool rdma = std::filesystem::exists("/sys/class/infiniband", none) &&
                    !std::filesystem::is_empty("/sys/class/infiniband", none);
  found.push_back({.level = rdma ? Level::kOk : Level::kNote,
                   .what = "RDMA",
                   .value = rdma ? "present" : "no device",
                   .advice = rdma ? "" : "peers on other machines are reached over TCP"});
  found.push_back({.what = "network devices", .value = joined(networks)});
}

// Whether files of this directory can be read and written around the page cache.
bool has_direct_io(const std::string& directory) {
  const std::string file = directory + "/.icefield-doctor";
  const int fd = open(file.c_str(), O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  void* block = std::aligned_alloc(4096, 4096);
  std::memset(block, 0, 4096);
  const bool written = pwrite(fd, block, 4096, 0) == 4096;
  std::free(block);
  close(fd);
  unlink(file.c_str());
  return written;
}

void look_at_store(Findings& found) {
  if (FLAGS_store.empty()) return;
  const std::string& store = FLAGS_store;
  if (access(store.c_str(), W_OK) != 0) {
    found.push_back({.level = Level::kProblem,
                     .what = "store " + store,
                     .value = std::strerror(errno),
                     .advice = "make a directory that this user can write"});
    return;
  }
  struct statvfs disk {};
  statvfs(store.c_str(), &disk);
  const double room = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  const bool wide = room > 1e9;
  found.push_back({.level = wide ? Level::kOk : Level::kNote,
                   .what = "store " + store,
                   .value = bytes_text(room) + " free",
                   .advice = wide ? "" : "little room: old objects will be evicted early"});
  const bool direct = has_direct_io(store);
  found.push_back(
      {.level = direct ? Level::kOk : Level::kNote,
       .what = "direct I/O",
       .value = direct ? "works" : "not on this file system",
       .advice = direct ? "" : "reads go through the page cache; ext4 and XFS have it"});
}

Task<PeerHealth> connect(ValueStub& node) {
  ICE_CO_TRY(const Deadline deadline, deadline_from_now(kPingMs));
  ICE_CO_TRY(co_await node.ping(deadline));
  auto health = [&node] { return node.health(); };
  co_return co_await settled_health(std::move(health));
}

Status look_at_cluster(Findings& found) {
  if (FLAGS_cluster.empty()) return Status();
  ICE_TRY(const auto client, open_cluster(FLAGS_cluster, FLAGS_token_file, "auto"));
  const auto nodes = client->nodes().view();
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    ValueStub& node = nodes->node(i).values();
    const Result<PeerHealth> health = sync_wait(client->executor(), connect(node));
    Finding& finding = found.emplace_back();
    finding.what = "node " + node.address();
    if (!health.has_value()) {
      finding.level = Level::kProblem;
      finding.value = "no answer";
      finding.advice = health.error().message();
      continue;
    }
    finding.level = health->concern.empty() ? Level::kOk : Level::kNote;
    finding.value = lanes_text(*health) + ", " + bandwidth_text(*health);
    finding.advice = health->concern;
  }
  return Status();
}

Status run() {
  Findings found;
  look_at_processor(found);
  look_at_memory(found);
  look_at_limits(found);
  look_at_network(found);
  look_at_store(found);
  ICE_TRY(look_at_cluster(found));
  int problems = 0;
  Table table({"", "what", "found", "what to do"});
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Finding& finding : found) {
    problems += finding.level == Level::kProblem ? 1 : 0;
    table.add({to_text(finding.level), finding.what, finding.value, finding.advice});
    list.push_back({{"level", to_text(finding.level)},
                    {"what", finding.what},
                    {"found", finding.value},
                    {"advice", finding.advice}});
  }
  if (FLAGS_json) {
    Report report("doctor");
    report.add({.name = "problems", .value = static_cast<double>(problems), .unit = "problems"});
    std::cout << report.json({{"findings", list}});
  } else {
    std::cout << table.text();
  }
  if (problems == 0) return Status();
  return Status(Code::kUnavailable, std::to_string(problems) + " problems, see above");
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
