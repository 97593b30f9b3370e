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
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "tools/child_node.h"
#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/progress.h"
#include "tools/report.h"

DEFINE_string(faults, "stop,kill",
              "stop: the node is frozen; kill: it is killed and started again, --kills times");
DEFINE_int32(calls, 2000, "of each client, while the node is frozen");
DEFINE_int32(kills, 10, "of the node");
DEFINE_int32(deadline_ms, 20, "of each call");
DEFINE_int32(value_bytes, 200'000, "of the values that are put and read");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench faults — how late calls return when their node does not answer

Two clients put and read values and ask for objects of contexts, without a pause and without a
circuit breaker, while their node is frozen (SIGSTOP), or killed and started again; beside them a
bare thread waits on a condition variable for the same time. Overrun: how long after its deadline a
call, or the wait, came back (0 before it). Recovery: from the node's first line until both clients
have an answer again.

  icefield bench faults --calls=2000 --deadline_ms=20
)";

using Ns = std::chrono::nanoseconds;
using Overruns = std::vector<double>;  // ms

double ms(Ns duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

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

// A client with a thread of its own that calls until it is stopped.
class Load {
 public:
  static Result<std::unique_ptr<Load>> start(const std::string& address, std::string name) {
    ICE_TRY(ClusterClient::Options options, cluster_options(address, "", FLAGS_lanes));
    options.breaker.failures_to_open = std::numeric_limits<std::int32_t>::max();
    ICE_TRY(auto client, ClusterClient::open(std::move(options)));
    return std::unique_ptr<Load>(new Load(std::move(client), std::move(name)));
  }
  ~Load() {
    stopping_ = true;
    thread_.join();
  }

  // Waits for `count` more calls that were answered, or were not. kInternal when that takes longer
  // than a minute.
  Status wait_for(bool answered, std::int64_t count) {
    std::unique_lock lock(mutex_);
    const std::int64_t& ended = answered ? answered_ : failed_;
    const std::int64_t goal = ended + count;
    const auto limit =
        std::chrono::minutes(1) + count * std::chrono::milliseconds(2 * FLAGS_deadline_ms);
    if (changed_.wait_for(lock, limit, [&] { return ended >= goal; })) return Status();
    return Status(Code::kInternal, "after " + std::to_string(answered_) + " answers and " +
                                       std::to_string(failed_) + " failures, " + last_.to_string() +
                                       ", there were no more " +
                                       (answered ? "answers" : "failures"));
  }
  // What its calls overran by since the last time it was asked: those without an answer only, or
  // all.
  Overruns take(bool failed_only) {
    const std::lock_guard lock(mutex_);
    Overruns all = std::exchange(late_, {});
    if (!failed_only) all.insert(all.end(), in_time_.begin(), in_time_.end());
    in_time_.clear();
    return all;
  }

 private:
  Load(std::unique_ptr<ClusterClient> client, std::string name)
      : client_(std::move(client)), name_(std::move(name)), thread_([this] { run(); }) {}

  void run() {
    const Bytes bytes(static_cast<std::size_t>(FLAGS_value_bytes), std::byte{1});
    for (int i = 0; !stopping_; ++i) {
      const std::string key = name_ + "/" + std::to_string(i / 3);
      note([&](Deadline deadline) {
        if (i % 3 == 0) return put(key, bytes, deadline);
        return i % 3 == 1 ? get(key, deadline) : get_object(deadline);
      });
    }
  }
  template <class Call>
  void note(Call call) {
    const auto deadline = Deadline::after(clock_, std::chrono::milliseconds(FLAGS_deadline_ms));
    const Status status = call(deadline);
    const double overrun = std::max(ms(clock_.now() - deadline.time_point()), 0.0);
    const bool answered = status.ok() || status.code() == Code::kNotFound;
    const std::lock_guard lock(mutex_);
    last_ = status;
    ++(answered ? answered_ : failed_);
    (answered ? in_time_ : late_).push_back(overrun);
    changed_.notify_all();
  }

  Status put(const std::string& key, const Bytes& bytes, Deadline deadline) {
    const ValueCall call{.deadline = deadline};
    return sync_wait(client_->executor(), client_->values().put(key, bytes, {}, call)).status();
  }
  Status get(const std::string& key, Deadline deadline) {
    Buffer into(FLAGS_value_bytes);
    const ValueCall call{.deadline = deadline};
    const Status status =
        sync_wait(client_->executor(), client_->values().get(key, std::move(into), call)).status();
    const bool node_down = status.reason() == MissReason::kNodeDown;
    return node_down ? Status(Code::kUnavailable, status.message()) : status;
  }
  Status get_object(Deadline deadline) {
    std::vector<ObjectKey> keys(1);
    const auto nodes = client_->nodes().view();
    auto reply = nodes->node(0).contexts().get(std::move(keys), 0, deadline);
    return sync_wait(client_->executor(), std::move(reply)).status();
  }

  const std::unique_ptr<ClusterClient> client_;
  const std::string name_;
  const SystemClock clock_;
  std::atomic<bool> stopping_{false};  // ends the loop; orders nothing else
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::int64_t answered_ = 0;
  std::int64_t failed_ = 0;
  Status last_;
  Overruns late_;     // of calls that failed
  Overruns in_time_;  // of the others
  std::thread thread_;
};

struct Measured {
  Overruns overruns;    // ms
  Overruns recoveries;  // ms
};

using Loads = std::vector<std::unique_ptr<Load>>;

Status wait_for(const Loads& loads, bool answered, std::int64_t count) {
  for (const auto& load : loads) ICE_TRY(load->wait_for(answered, count));
  return Status();
}

void take(const Loads& loads, bool failed_only, Overruns& out) {
  for (const auto& load : loads) {
    const Overruns some = load->take(failed_only);
    out.insert(out.end(), some.begin(), some.end());
  }
}

std::vector<std::string> node_flags() {
  return {"--dram_bytes=67108864", "--lanes=" + FLAGS_lanes};
}

Result<Loads> start_loads(const std::string& address) {
  Loads loads;
  for (const char* name : {"one", "two"}) {
    ICE_TRY(auto load, Load::start(address, name));
    loads.push_back(std::move(load));
  }
  ICE_TRY(wait_for(loads, true, 30));
  return loads;
}

// In steps, for the progress bar.
Result<Measured> measure_stop(Progress& progress) {
  ICE_TRY(const ChildNode node, ChildNode::start(node_flags()));
  ICE_TRY(const Loads loads, start_loads(node.address()));
  node.signal(SIGSTOP);
  Overruns before;
  take(loads, false, before);
  Measured measured;
  constexpr int kSteps = 20;
  for (int step = 0, done = 0; step < kSteps; ++step) {
    const int until = FLAGS_calls * (step + 1) / kSteps;
    ICE_TRY(wait_for(loads, false, until - std::exchange(done, until)));
    progress.set((step + 1) * 100 / kSteps);
  }
  take(loads, true, measured.overruns);
  const SystemClock clock;
  const auto begin = clock.now();
  node.signal(SIGCONT);
  ICE_TRY(wait_for(loads, true, 1));
  measured.recoveries.push_back(ms(clock.now() - begin));
  return measured;
}

Result<Measured> measure_kill(Progress& progress) {
  ICE_TRY(ChildNode first, ChildNode::start(node_flags()));
  auto node = std::make_unique<ChildNode>(std::move(first));
  const std::string address = node->address();
  ICE_TRY(const Loads loads, start_loads(address));
  Measured measured;
  const SystemClock clock;
  for (int kill = 0; kill < FLAGS_kills; ++kill) {
    ICE_TRY(wait_for(loads, true, 60));
    node->signal(SIGKILL);
    ICE_TRY(wait_for(loads, false, 1));
    node = nullptr;
    std::vector<std::string> flags = node_flags();
    flags.push_back("--listen=" + address);
    ICE_TRY(ChildNode next, ChildNode::start(std::move(flags)));
    node = std::make_unique<ChildNode>(std::move(next));
    const auto begin = clock.now();
    ICE_TRY(wait_for(loads, true, 1));
    measured.recoveries.push_back(ms(clock.now() - begin));
    progress.set((kill + 1) * 100 / FLAGS_kills);
  }
  take(loads, false, measured.overruns);
  return measured;
}

void report_overruns(const std::string& what, const Overruns& overruns, const Overruns& bare,
                     const std::string& recovery, Report& report, Table& table) {
  std::vector<std::string> row = {what, std::to_string(overruns.size())};
  for (const double share : {0.5, 0.99, 0.999, 1.0}) {
    row.push_back(number_text(quantile(overruns, share), 3) + " ms");
    Figure figure{.name = "overrun_ms",
                  .params = {{"what", what}, {"quantile", share}, {"lanes", FLAGS_lanes}},
                  .value = quantile(overruns, share),
                  .unit = "ms"};
    if (&overruns != &bare && figure.value > 0) {
      figure.against = "bare timer";
      figure.ratio = figure.value / quantile(bare, share);
      figure.better = "lower";
    }
    report.add(std::move(figure));
  }
  row.push_back(recovery);
  table.add(std::move(row));
}

Status run() {
  if (FLAGS_calls < 1 || FLAGS_kills < 1 || FLAGS_deadline_ms < 1 || FLAGS_value_bytes < 1) {
    return Status(Code::kInvalidArgument,
                  "--calls, --kills, --deadline_ms and --value_bytes must be at least 1");
  }
  using Measure = Result<Measured> (*)(Progress&);
  std::vector<std::pair<std::string, Measure>> faults;
  if (FLAGS_faults.find("stop") != std::string::npos) faults.emplace_back("stop", &measure_stop);
  if (FLAGS_faults.find("kill") != std::string::npos) faults.emplace_back("kill", &measure_kill);
  if (faults.empty()) {
    return Status(Code::kInvalidArgument, "--faults: stop, kill or both");
  }
  std::atomic<bool> stop{false};  // ends the bare thread; orders nothing else
  Overruns bare;
  std::thread timer([&] { bare = wait_bare(stop); });
  std::map<std::string, Measured> results;
  Status failure;
  for (const auto& [name, measure] : faults) {
    Progress progress("bench faults, " + name, 100);
    Result<Measured> measured = measure(progress);
    failure = measured.status();
    if (!failure.ok()) break;
    results[name] = std::move(*measured);
  }
  stop = true;
  timer.join();
  ICE_TRY(failure);

  Report report("bench faults");
  Table table({"", "calls", "p50", "p99", "p99.9", "longest", "recovery"});
  for (const auto& [name, measured] : results) {
    const double recovery = quantile(measured.recoveries, 0.5);
    const std::string text = number_text(recovery, 0) + " ms";
    report_overruns(name, measured.overruns, bare, text, report, table);
    report.add({.name = "recovery_ms",
                .params = {{"what", name}, {"lanes", FLAGS_lanes}},
                .value = recovery,
                .unit = "ms",
                .better = "lower"});
  }
  report_overruns("bare timer", bare, bare, "", report, table);
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
