#include "tools/perftest.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "tools/child_process.h"

namespace icefield {
namespace {

constexpr const char* kPort = "13397";
constexpr int kTries = 200;  // until the server listens; each takes some milliseconds

std::vector<std::string> environment(bool tcp) {
  // As transport/ucx/ucx_worker.cc sets them.
  return {std::string("UCX_TLS=") + (tcp ? "tcp,self" : "posix,self"),
          "UCX_NET_DEVICES=lo",
          "UCX_MM_ERROR_HANDLING=y",
          "UCX_RNDV_THRESH=inf",
          "UCX_POSIX_SEG_SIZE=33k",
          "UCX_TCP_RX_SEG_SIZE=520k",
          "UCX_TCP_TX_SEG_SIZE=520k",
          "UCX_TCP_MAX_IOV=16",
          "PATH=/usr/bin:/bin"};
}

// The last line has iterations; percentile, average, overall latency in µs; average and overall
// bandwidth in MiB/s; average and overall message rate.
Result<PerftestResult> parse(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  std::vector<double> last;
  while (std::getline(lines, line)) {
    std::istringstream numbers(line);
    std::vector<double> row;
    for (double number = 0; numbers >> number;) row.push_back(number);
    if (row.size() == 8) last = row;
  }
  if (last.empty()) return Status(Code::kUnavailable, "ucx_perftest gave no figures");
  return PerftestResult{.gbps = last[5] * (1 << 20) / 1e9, .round_trip_us = 2 * last[1]};
}

}  // namespace

Result<PerftestResult> run_perftest(const PerftestPlan& plan) {
  std::vector<std::string> common = {
      "ucx_perftest", "-p", kPort, "-e", "-I", "-E", plan.poll ? "poll" : "sleep"};
  const auto start = [&plan](std::vector<std::string> arguments) {
    ChildProcess::Options options;
    options.arguments = std::move(arguments);
    options.environment = environment(plan.tcp);
    return ChildProcess::start(std::move(options));
  };
  const Result<ChildProcess> server = start(common);
  if (server.status().code() == Code::kNotFound) {
    return Status(Code::kNotFound, "no ucx_perftest: install Debian's ucx-utils");
  }
  ICE_TRY(server.status());
  common.insert(common.begin() + 1, "127.0.0.1");
  for (const std::string& more :
       {std::string("-f"), std::string("-t"),
        std::string(plan.latency ? "ucp_am_lat" : "ucp_am_bw"), std::string("-s"),
        std::to_string(plan.message_bytes), std::string("-n"), std::to_string(plan.iterations),
        std::string("-w"), std::to_string(std::max<std::int64_t>(plan.iterations / 10, 10))}) {
    common.push_back(more);
  }
  for (int i = 0; i < kTries; ++i) {
    ICE_TRY(ChildProcess client, start(common));
    Result<PerftestResult> result = parse(client.read_all());
    if (result.has_value()) return result;
  }
  return Status(Code::kUnavailable, "ucx_perftest gave no figures");
}

}  // namespace icefield
