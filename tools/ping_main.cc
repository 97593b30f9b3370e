// icefield ping — which members of a cluster answer, and how fast.
#include <gflags/gflags.h>

#include <iostream>

#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/connection.h"
#include "tools/report.h"

DEFINE_string(cluster, "", "the nodes: host:port,host:port*weight");
DEFINE_string(token_file, "", "holds the token that the nodes want");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_int32(count, 100, "round trips to each member");
DEFINE_int64(deadline_ms, 1000, "of each round trip");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield ping — asks every member of a cluster and measures bandwidth and round trips

The exit code is 1 when one is down.

  icefield ping --cluster=127.0.0.1:7070,127.0.0.1:7071
)";

struct Answer {
  Status status;           // the first failure
  std::vector<double> us;  // sorted
  PeerHealth health;
};

// On the client's own thread: what is measured has no hop between threads in it.
Task<> ping(ValueStub& node, Answer& answer) {
  const SystemClock clock;
  for (int i = 0; i <= FLAGS_count && answer.status.ok(); ++i) {
    const auto start = clock.now();
    ICE_CO_TRY(const Deadline deadline, deadline_from_now(FLAGS_deadline_ms));
    answer.status = co_await node.ping(deadline);
    if (i == 0) {  // it has connected; what is measured then is not to be in the way
      auto health = [&node] { return node.health(); };
      ICE_CO_TRY(answer.health, co_await settled_health(std::move(health)));
      continue;
    }
    answer.us.push_back(std::chrono::duration<double, std::micro>(clock.now() - start).count());
  }
  co_return Status();
}

Status run() {
  if (FLAGS_count < 1 || FLAGS_count > 1'000'000) {
    return Status(Code::kInvalidArgument, "--count: expected 1 to 1000000");
  }
  ICE_TRY(const auto client, open_cluster(FLAGS_cluster, FLAGS_token_file, FLAGS_lanes));
  Report report("ping");
  Table table({"member", "state", "lanes", "bandwidth", "p50", "p99"});
  Status failure;
  const auto nodes = client->nodes().view();
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    ValueStub& node = nodes->node(i).values();
    Answer answer;
    ICE_TRY(sync_wait(client->executor(), ping(node, answer)));
    if (!answer.status.ok()) {
      failure = answer.status.with_context("member " + node.address() + " is down");
      table.add({node.address(), "down", "–", "–", "–", "–"});
      continue;
    }
    const PeerHealth& health = answer.health;
    std::vector<std::string> row = {node.address(), "up", lanes_text(health),
                                    bandwidth_text(health)};
    if (health.bytes_per_second > 0) {
      report.add({.name = "connection_gbps",
                  .params = {{"member", node.address()}, {"lanes", health.lanes}},
                  .value = static_cast<double>(health.bytes_per_second) / 1e9,
                  .unit = "GB/s"});
    }
    for (const double share : {0.5, 0.99}) {
      row.push_back(number_text(quantile(answer.us, share), 1) + " us");
      report.add(
          {.name = "round_trip_us",
           .params = {{"member", node.address()}, {"quantile", share}, {"lanes", health.lanes}},
           .value = quantile(answer.us, share),
           .unit = "us"});
    }
    table.add(std::move(row));
  }
  std::cout << (FLAGS_json ? report.json() : table.text());
  return failure;
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
