// icefield bench attention — the kernels of a step beside what the machine can do.
//
// Estimates for one core, d = 128: attention of 8 rows over 4 096 keys is 8.4 M multiply-adds on 2
// MB, so arithmetic decides; of one row over 32 768 keys 16.8 MB at one multiply-add per value, so
// memory does. Ranking 8 192 codes reads 0.28 MB where an int8 scan reads 1.1 MB, at as many
// instructions: where the keys are in the L2 cache the scan is ahead.
#include <gflags/gflags.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <iostream>
#include <thread>

#include "bench/baselines/exact_scan.h"
#include "bench/support/machine_limits.h"
#include "bench/support/selection_fixture.h"
#include "bench/support/synthetic_keys.h"
#include "bench/support/timing.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_int32(head_dim, 128, "of keys and values");
DEFINE_int32(group, 8, "query rows that share a selection");
DEFINE_int32(n, 8192, "indexed tokens of a head");
DEFINE_int32(selected, 4096, "of them, for attention with the tail of the rest");
DEFINE_int32(rows, 32768, "that one query row attends exactly");
DEFINE_int32(budget, 64, "tokens of a step, and where codes are ranked");
DEFINE_int32(heads, 8, "on one thread and on several");
DEFINE_int32(threads, 2, "that heads are spread over, beside one");
DEFINE_string(
    keys, "synthetic_diffuse",
    "synthetic_diffuse, synthetic_peaked, _flat, _outliers, _needles, _drift, _uniform or "
    "_recency");
DEFINE_int32(rank_heads, 16, "whose codes are ranked one after the other, beside one head alone");
DEFINE_int32(rounds, 31, "of every case; what is compared takes turns");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench attention — the kernels of a step, beside what the machine can do

  icefield bench attention --head_dim=128 --group=8

One thread but for threads_speedup. Figures that bench index has too bear its names and parameters.
)";

constexpr char kSynthetic[] = "synthetic_";

using Times = std::vector<double>;  // ms, one per round
using Action = std::function<void()>;

// Times of each action, round by round; the shorter ones several times per round, back to back.
std::vector<Times> take_turns(const std::vector<Action>& actions) {
  constexpr double kLeastMs = 0.5;
  std::vector<Times> times(actions.size());
  std::vector<int> repeats;
  for (const Action& action : actions) {
    action();
    repeats.push_back(1 + static_cast<int>(kLeastMs / std::max(ms_of(action), 1e-4)));
  }
  for (int round = 0; round < FLAGS_rounds; ++round) {
    for (std::size_t a = 0; a < actions.size(); ++a) {
      const double ms = ms_of([&] {
        for (int i = 0; i < repeats[a]; ++i) actions[a]();
      });
      times[a].push_back(ms / repeats[a]);
    }
  }
  return times;
}

// One head with everything that a step needs.
struct Head {
  Head(SyntheticKind kind, std::int32_t group, std::uint64_t seed, std::int32_t breadth)
      : set(synthetic_keys({.kind = kind,
                            .tokens = FLAGS_n,
                            .head_dim = FLAGS_head_dim,
                            .group = group,
                            .steps = 1,
                            .seed = seed})),
        method(cpu_kernels(), set, breadth),
        lse(static_cast<std::size_t>(group), -HUGE_VALF),
        result(group, FLAGS_head_dim) {
    method.build();
  }
  MethodQuery query(std::int32_t budget) const {
    return {.q = set.query(0), .exact_lse = lse.data(), .budget = budget};
  }
  void step(std::int32_t budget) {
    method.select(query(budget));
    method.attend(query(budget), result.view());
  }

  KeySet set;
  ClusteredMethod method;
  std::vector<float> lse;
  PartialBuffer result;
};

// What a figure is of; 0 and null: it has none.
struct Shape {
  std::int32_t group = 1;
  std::int64_t n = 0;
  std::int32_t budget = 0;
  const char* breadth = nullptr;
  int threads = 1;
};

class Bench {
 public:
  explicit Bench(SyntheticKind kind) : kind_(kind) {}

  void run() {
    step();
    attend_selected();
    attend_exact();
    spread_over_threads();
    seal();
    for (const std::int32_t group : {1, FLAGS_group}) rank(group);
  }
  std::string json() const { return report_.json(); }
  std::string text() const { return machine_name() + "\n" + table_.text(); }

 private:
  // The parameters of bench index, and the time with its deviation.
  static nlohmann::ordered_json params(const Shape& shape, const Times& times) {
    nlohmann::ordered_json all = {{"method", "icefield"},       {"n", shape.n},
                                  {"head_dim", FLAGS_head_dim}, {"group", shape.group},
                                  {"budget", nullptr},          {"breadth", nullptr},
                                  {"threads", shape.threads},   {"keys", FLAGS_keys},
                                  {"ms", quantile(times, 0.5)}, {"mad", deviation(times)}};
    if (shape.budget != 0) all["budget"] = shape.budget;
    if (shape.breadth != nullptr) all["breadth"] = shape.breadth;
    return all;
  }

  std::unique_ptr<ExactScan> int8_scan(const Head& head) const {
    auto scan =
        std::make_unique<ExactScan>(cpu_kernels(), head.set, head.method.index(),
                                    ExactScanOptions{.keys = ExactScanOptions::Keys::kInt8});
    scan->build();
    return scan;
  }

  void add(const std::string& what, const Times& times, Figure figure, int digits) {
    table_.add({what, number_text(quantile(times, 0.5), 3), number_text(deviation(times), 3),
                number_text(figure.value, digits) + " " + figure.unit, figure.against,
                figure.against.empty() ? "" : number_text(figure.ratio, 2)});
    report_.add(std::move(figure));
  }

  // One head as the product has it: its index built, a selection by the rule, its attention.
  void step() {
    Head head(kind_, FLAGS_group, 1, kRuleBreadth);
    const MethodQuery query = head.query(FLAGS_budget);
    const std::unique_ptr<ExactScan> scan = int8_scan(head);
    const Shape shape{
        .group = FLAGS_group, .n = FLAGS_n, .budget = FLAGS_budget, .breadth = "rule"};
    const std::vector<Times> build = take_turns({[&] { head.method.build(); }});
    Figure building{.name = "build_us_per_token",
                    .params = params({.group = FLAGS_group, .n = FLAGS_n}, build[0]),
                    .value = 1000 * quantile(build[0], 0.5) / FLAGS_n,
                    .unit = "us"};
    // Of the value, as in bench index.
    building.params["mad"] = 1000 * deviation(build[0]) / FLAGS_n;
    add("build", build[0], std::move(building), 2);
    const std::vector<Times> select =
        take_turns({[&] { head.method.select(query); }, [&] { scan->select(query); }});
    Figure selecting{.name = "select_ms",
                     .params = params(shape, select[0]),
                     .value = quantile(select[0], 0.5),
                     .unit = "ms",
                     .against = "exact_int8",
                     .better = "lower"};
    selecting.params["exact_int8_ms"] = quantile(select[1], 0.5);
    selecting.ratio = selecting.value / quantile(select[1], 0.5);
    add("select", select[0], std::move(selecting), 3);
    const std::vector<Times> attend =
        take_turns({[&] { head.method.attend(query, head.result.view()); }});
    add("attend what is selected and the tail", attend[0],
        {.name = "attend_ms",
         .params = params(shape, attend[0]),
         .value = quantile(attend[0], 0.5),
         .unit = "ms"},
        3);
  }

  // Multiply-adds of the selected rows alone; what the tail costs is in the time.
  void attend_selected() {
    Head head(kind_, FLAGS_group, 1, kAllClusters);
    const MethodQuery query = head.query(FLAGS_selected);
    head.method.select(query);
    Times limits;
    const std::vector<Times> times =
        take_turns({[&] { head.method.attend(query, head.result.view()); },
                    [&] { limits.push_back(fma_gflops()); }});
    const double flop =
        4.0 * FLAGS_group * FLAGS_head_dim * static_cast<double>(head.method.selected().size());
    Figure figure{
        .name = "attend_gflops",
        .params =
            params({.group = FLAGS_group, .n = FLAGS_n, .budget = FLAGS_selected, .breadth = "all"},
                   times[0]),
        .value = flop / quantile(times[0], 0.5) / 1e6,
        .unit = "GFLOP/s",
        .against = "fma",
        .better = "higher"};
    figure.params["selected"] = FLAGS_selected;
    figure.params["fma_gflops"] = quantile(limits, 0.5);
    figure.ratio = figure.value / quantile(limits, 0.5);
    add("attend selected rows and the tail", times[0], std::move(figure), 1);
  }

  void attend_exact() {
    const KeySet set = synthetic_keys(
        {.kind = kind_, .tokens = FLAGS_rows, .head_dim = FLAGS_head_dim, .group = 1, .steps = 1});
    const HeadShape shape{.d_k = set.d_k, .d_v = set.d_v, .beta = set.beta};
    const auto bytes = static_cast<double>(set.rows.size() * sizeof(Bf16));
    Times limits;
    const std::vector<Times> times = take_turns(
        {[&] {
           (void)attend_rows(cpu_kernels(), shape, set.queries, set.rows.data(), set.tokens());
         },
         [&] { limits.push_back(read_gbps(std::as_bytes(std::span(set.rows)))); }});
    Figure figure{.name = "attend_gbps",
                  .params = params({.n = FLAGS_rows}, times[0]),
                  .value = bytes / quantile(times[0], 0.5) / 1e6,
                  .unit = "GB/s",
                  .against = "read",
                  .better = "higher"};
    figure.params["read_gbps"] = quantile(limits, 0.5);
    figure.ratio = figure.value / quantile(limits, 0.5);
    add("attend exact rows, one query row", times[0], std::move(figure), 1);
  }

  void spread_over_threads() {
    std::vector<std::unique_ptr<Head>> heads;
    for (std::int32_t h = 0; h < FLAGS_heads; ++h) {
      const auto seed = static_cast<std::uint64_t>(h);
      heads.push_back(std::make_unique<Head>(kind_, FLAGS_group, seed, kAllClusters));
    }
    constexpr int kSteps = 16;  // long against the start of a thread
    const auto run = [&](int threads) {
      std::atomic<std::size_t> next{0};  // head; which thread takes it changes nothing
      const auto work = [&] {
        for (std::size_t h = next++; h < heads.size(); h = next++) {
          for (int step = 0; step < kSteps; ++step) heads[h]->step(FLAGS_budget);
        }
      };
      std::vector<std::thread> others;
      for (int t = 1; t < threads; ++t) others.emplace_back(work);
      work();
      for (std::thread& other : others) other.join();
    };
    const std::vector<Times> times = take_turns({[&] { run(1); }, [&] { run(FLAGS_threads); }});
    Figure figure{.name = "threads_speedup",
                  .params = params({.group = FLAGS_group,
                                    .n = FLAGS_n,
                                    .budget = FLAGS_budget,
                                    .breadth = "all",
                                    .threads = FLAGS_threads},
                                   times[1]),
                  .value = quantile(times[0], 0.5) / quantile(times[1], 0.5),
                  .unit = "x",
                  .against = "one thread",
                  .better = "higher"};
    figure.params["heads"] = FLAGS_heads;
    figure.ratio = figure.value;
    add("select and attend of " + std::to_string(FLAGS_heads) + " heads, " +
            std::to_string(FLAGS_threads) + " threads",
        times[1], std::move(figure), 2);
  }

  void seal() {
    const KeySet set = synthetic_keys(
        {.kind = kind_, .tokens = kExtentRows, .head_dim = FLAGS_head_dim, .group = 1, .steps = 1});
    const std::vector<Times> times = take_turns({[&] {
      HeadFixture head;
      head.build(cpu_kernels(), set.rows.data(),
                 {.kv_head_count = 1, .d_k = set.d_k, .d_v = set.d_v, .row_count = kExtentRows});
    }});
    add("seal " + std::to_string(kExtentRows) + " tokens", times[0],
        {.name = "seal_ms",
         .params = params({.n = kExtentRows}, times[0]),
         .value = quantile(times[0], 0.5),
         .unit = "ms"},
        3);
  }

  // All codes ranked, against the int8 scan of the same keys; both with the choice of the best. One
  // head again and again, its keys in the nearest cache that holds them; and head after head, as a
  // step does, where the bytes decide.
  void rank(std::int32_t group) {
    std::vector<std::unique_ptr<Head>> heads;
    std::vector<std::unique_ptr<ExactScan>> scans;
    for (std::int32_t h = 0; h < FLAGS_rank_heads; ++h) {
      const auto seed = static_cast<std::uint64_t>(h);
      heads.push_back(std::make_unique<Head>(kind_, group, seed, kAllClusters));
      Head& head = *heads.back();
      head.method.propose(head.query(FLAGS_budget));
      scans.push_back(int8_scan(head));
    }
    for (const std::size_t count : {std::size_t{1}, heads.size()}) {
      const std::vector<Times> times =
          take_turns({[&] {
                        for (std::size_t h = 0; h < count; ++h) {
                          heads[h]->method.rank(heads[h]->query(FLAGS_budget));
                        }
                      },
                      [&] {
                        for (std::size_t h = 0; h < count; ++h)
                          scans[h]->select(heads[h]->query(FLAGS_budget));
                      }});
      add_rank(group, count, times);
    }
  }

  void add_rank(std::int32_t group, std::size_t heads, std::vector<Times> times) {
    for (Times& some : times) {
      for (double& ms : some) ms /= static_cast<double>(heads);
    }
    Figure figure{
        .name = "rank_ms",
        .params = params({.group = group, .n = FLAGS_n, .budget = FLAGS_budget, .breadth = "all"},
                         times[0]),
        .value = quantile(times[0], 0.5),
        .unit = "ms",
        .against = "exact_int8",
        .better = "lower"};
    figure.params["heads"] = heads;
    figure.params["exact_int8_ms"] = quantile(times[1], 0.5);
    figure.ratio = figure.value / quantile(times[1], 0.5);
    add("rank all codes of " + std::string(heads == 1 ? "one head" : "head after head") + ", " +
            std::to_string(group) + (group == 1 ? " query row" : " query rows"),
        times[0], std::move(figure), 3);
  }

  const SyntheticKind kind_;
  Report report_{"bench attention"};
  Table table_{{"", "ms", "MAD", "", "against", "ratio"}};
};

// A flag that is a multiple of `grain` from `grain` to `most`.
Status check_multiple(const std::string& flag, std::int32_t value, std::int32_t grain,
                      std::int32_t most) {
  if (value >= grain && value % grain == 0 && value <= most) return Status();
  return Status(Code::kInvalidArgument, "--" + flag + "=" + std::to_string(value) +
                                            ": expected a multiple of " + std::to_string(grain) +
                                            " up to " + std::to_string(most));
}

Status check_flags() {
  constexpr std::int32_t kMostRows = 1 << 20;
  constexpr std::int32_t kMost = 256;  // query rows, threads
  ICE_TRY(check_multiple("head_dim", FLAGS_head_dim, 16, kMaxHeadDim));
  ICE_TRY(check_multiple("n", FLAGS_n, kExtentRows, kMostRows));
  ICE_TRY(check_range("group", FLAGS_group, 1, kMost));
  ICE_TRY(check_range("selected", FLAGS_selected, 1, FLAGS_n));
  ICE_TRY(check_range("rows", FLAGS_rows, 1, kMostRows));
  ICE_TRY(check_range("budget", FLAGS_budget, 1));
  ICE_TRY(check_range("heads", FLAGS_heads, 1));
  ICE_TRY(check_range("rank_heads", FLAGS_rank_heads, 1));
  ICE_TRY(check_range("rounds", FLAGS_rounds, 1));
  return check_range("threads", FLAGS_threads, 1, kMost);
}

Status run() {
  ICE_TRY(check_flags());
  if (!FLAGS_keys.starts_with(kSynthetic)) {
    return Status(Code::kInvalidArgument, "--keys=" + FLAGS_keys + ": expected synthetic_…");
  }
  ICE_TRY(const SyntheticKind kind,
          parse_synthetic_kind(FLAGS_keys.substr(sizeof(kSynthetic) - 1)));
  Bench bench(kind);
  bench.run();
  std::cout << (FLAGS_json ? bench.json() : bench.text());
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
