// icefield bench faults — how punctual calls are while a node is frozen.
//
// Estimate: a call that passes its deadline is woken by one timer of its shard, so its overrun is
// that of the operating system's timers plus two hops between threads: tens of microseconds on an
// idle machine, a scheduler's time slice (4 ms) on a loaded one.
#include <gflags/gflags.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <thread>

#include "tools/child_node.h"
#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/progress.h"
#include "tools/report.h"

DEFINE_int32(calls, 2000, "of each client, while the node is frozen");
DEFINE_int32(deadline_ms, 20, "of each call");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench faults — how late calls return when their node does not answer

Two clients call a node that is frozen (SIGSTOP); beside them a bare thread waits on a condition
variable for the same time. Overrun: how long after its deadline a call, or the wait, came back.

  icefield bench faults --calls=2000 --deadline_ms=20
)";

using Ns = std::chrono::nanoseconds;
using Overruns = std::vector<double>;  // ms

double ms(Ns duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

// Calls until `calls` of them were late because of the frozen node.
Overruns call_frozen(ClusterClient& client, std::atomic<std::int64_t>& done, Status& failure) {
  Overruns overruns;
  const SystemClock clock;
  for (int i = 0; i < FLAGS_calls; ++i) {
    const auto deadline = Deadline::after(clock, std::chrono::milliseconds(FLAGS_deadline_ms));
    std::vector<ObjectKey> keys(1);
    const auto reply =
        sync_wait(client.executor(), client.nodes().stub(0).get(std::move(keys), 0, deadline));
    overruns.push_back(ms(clock.now() - deadline.time_point()));
    ++done;
    if (reply.status().code() == Code::kDeadlineExceeded) continue;
    failure =
        Status(Code::kInternal, "a call to a frozen node ended: " + reply.status().to_string());
    break;
  }
  return overruns;
}

Overruns wait_bare(const std::atomic<bool>& stop) {
  Overruns overruns;
  const SystemClock clock;
  std::mutex mutex;
  std::condition_variable never;
  while (!stop) {
    const auto until = clock.now() + std::chrono::milliseconds(FLAGS_deadline_ms);
    std::unique_lock lock(mutex);
    never.wait_until(lock, until, [] { return false; });
    overruns.push_back(ms(clock.now() - until));
  }
  return overruns;
}

Result<std::unique_ptr<ClusterClient>> connected_client(const std::string& address) {
  ICE_TRY(auto client, open_cluster(address, "", FLAGS_lanes));
  const SystemClock clock;
  auto listing =
      client->nodes().stub(0).list_builds("", Deadline::after(clock, std::chrono::seconds(5)));
  ICE_TRY(sync_wait(client->executor(), std::move(listing)));
  return client;
}

Status run() {
  if (FLAGS_calls < 1 || FLAGS_deadline_ms < 1) {
    return Status(Code::kInvalidArgument, "--calls and --deadline_ms must be at least 1");
  }
  ICE_TRY(const ChildNode node,
          ChildNode::start({"--dram_bytes=16777216", "--lanes=" + FLAGS_lanes}));
  ICE_TRY(auto one, connected_client(node.address()));
  ICE_TRY(auto two, connected_client(node.address()));
  node.signal(SIGSTOP);

  std::atomic<std::int64_t> done{0};  // calls; for the progress bar
  std::atomic<bool> stop{false};      // ends the bare thread; orders nothing else
  Overruns bare;
  Overruns first;
  Overruns second;
  Status failures[2];
  std::thread timer([&] { bare = wait_bare(stop); });
  std::thread other([&] { second = call_frozen(*two, done, failures[1]); });
  first = call_frozen(*one, done, failures[0]);
  other.join();
  stop = true;
  timer.join();
  node.signal(SIGCONT);
  for (const Status& failure : failures) ICE_TRY(failure);
  first.insert(first.end(), second.begin(), second.end());

  Report report("bench faults");
  Table table({"", "p50", "p99", "p99.9", "longest"});
  const auto add = [&](const char* name, const Overruns& overruns) {
    std::vector<std::string> row = {name};
    for (const double share : {0.5, 0.99, 0.999, 1.0}) {
      row.push_back(number_text(quantile(overruns, share), 3) + " ms");
      Figure figure{.name = "overrun_ms",
                    .params = {{"what", name}, {"quantile", share}, {"lanes", FLAGS_lanes}},
                    .value = quantile(overruns, share),
                    .unit = "ms"};
      if (&overruns == &first) {
        figure.against = "bare timer";
        figure.ratio = figure.value / quantile(bare, share);
        figure.better = "lower";
      }
      report.add(std::move(figure));
    }
    table.add(std::move(row));
  };
  add("calls", first);
  add("bare timer", bare);
  std::cout << (FLAGS_json ? report.json() : table.text());
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
