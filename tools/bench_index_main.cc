// icefield bench index — finding and attending the tokens that matter: ours beside exact scans,
// pages and flat clusters, on the same keys, in the same run. One thread: two at once would take
// turns at the memory with whatever method the other is at. `bench attention` has several.
//
// Estimate at 131 072 tokens, d = 128, one thread: an int8 scan reads 17 MB, so about 1 ms at 20
// GB/s however good its top-k is; ours reads L1 (1.2 MB) and the codes of its candidates (34 B
// each).
#include <gflags/gflags.h>

#include <iostream>

#include "bench/support/index_trial.h"
#include "bench/support/machine_limits.h"
#include "bench/support/synthetic_keys.h"
#include "tools/command_line.h"
#include "tools/progress.h"
#include "tools/recorded_keys.h"
#include "tools/report.h"

DEFINE_string(n, "8192,32768,131072", "indexed tokens of synthetic keys, multiples of 256");
DEFINE_string(head_dim, "128", "of synthetic keys, multiples of 16 up to 256");
DEFINE_string(group, "8", "query rows that share a selection, of synthetic keys");
DEFINE_string(budget, "64,256", "tokens to select");
DEFINE_string(
    breadth, "rule",
    "of ours: candidates per selected token at least, all, or rule: what the product does");
DEFINE_string(keys, "synthetic",
              "synthetic (diffuse and peaked), synthetic_diffuse, synthetic_peaked, _flat, "
              "_outliers, _needles, _drift, _uniform, _recency, or recorded:FILE; several with "
              "commas");
DEFINE_int32(steps, 64, "queries of synthetic keys");
DEFINE_int32(heads, 0, "of recorded keys: how many (layer, KV head)s, spread evenly; 0: all");
DEFINE_int32(rounds, 3, "every method is built as often");
DEFINE_int32(repeats, 3, "of every step, back to back");
DEFINE_uint64(seed, 1234, "of synthetic keys");
DEFINE_bool(json, false, "print one JSON object instead of tables");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench index — finding and attending the tokens that matter, beside other methods

icefield        ours, through the product's kernels: clusters propose, codes rank, tail
exact_fp32      every key scored in fp32, the rest through our cluster means: the best ranking
exact_int8      the same with int8 keys (VNNI where the CPU has it)
exact_no_tail   exact_fp32, and the rest dropped
pages_mean      16 consecutive tokens, ranked by their mean key
pages_quest     the same, ranked by Quest's bound from channel minima and maxima
pages_icecache  16 similar tokens, ranked by the best of them, IceCache's rule
flat_retroinfer flat k-means, whole clusters, RetroInfer's estimate of the rest

Every method works on one head at a time, on one thread.

  icefield bench index --n=8192 --budget=64 --keys=synthetic
  icefield bench index --keys=recorded:KEYS --heads=12   (icefield eval --record=KEYS wrote them)
)";

constexpr int kThreads = 1;  // of every figure
constexpr char kRecorded[] = "recorded:";
constexpr char kSynthetic[] = "synthetic";

struct Shape {
  std::string keys;
  std::int32_t n = 0;
  std::int32_t head_dim = 0;
  std::int32_t group = 0;
};

Result<std::vector<std::int32_t>> numbers(const char* flag, const std::string& text, int grain) {
  ICE_TRY(const std::vector<std::int64_t> values, parse_numbers(flag, text, grain));
  std::vector<std::int32_t> out;
  for (const std::int64_t value : values) {
    if (value == kAllNumber || value % grain != 0 || value > (1 << 24)) {
      return Status(Code::kInvalidArgument, std::string("--") + flag + "=" + text +
                                                ": expected multiples of " + std::to_string(grain) +
                                                " up to 2^24");
    }
    out.push_back(static_cast<std::int32_t>(value));
  }
  return out;
}

// "synthetic", "synthetic_peaked" …
Result<std::vector<SyntheticKind>> synthetic_kinds(const std::string& name) {
  const std::size_t prefix = sizeof(kSynthetic) - 1;
  if (name == kSynthetic) {
    return std::vector<SyntheticKind>{SyntheticKind::kDiffuse, SyntheticKind::kPeaked};
  }
  if (!name.starts_with(std::string(kSynthetic) + "_")) {
    return Status(Code::kInvalidArgument,
                  "--keys=" + name + ": expected synthetic, synthetic_… or recorded:FILE");
  }
  ICE_TRY(const SyntheticKind kind, parse_synthetic_kind(name.substr(prefix + 1)));
  return std::vector<SyntheticKind>{kind};
}

// What the segments and kernels can hold.
Status validate(const RecordedShape& shape, const std::string& path) {
  const auto dim = [](std::int32_t d) { return d % 16 == 0 && d <= 256; };
  const bool sink = shape.sink_tokens == 0 || shape.sink_tokens == kSinkTokens;
  if (dim(shape.d_k) && dim(shape.d_v) && sink && shape.window_first > shape.sink_tokens &&
      shape.window_first % kExtentRows == 0) {
    return Status();
  }
  return Status(Code::kInvalidArgument,
                path +
                    ": head dimensions must be multiples of 16 up to 256, the sink 0 or 16 "
                    "tokens, the window's first token a multiple of 256");
}

KeySet key_set(const RecordedShape& shape, const RecordedHead& head) {
  return {.d_k = shape.d_k,
          .d_v = shape.d_v,
          .group = shape.group,
          .beta = shape.beta,
          .first_indexed = shape.sink_tokens,
          .end_indexed = shape.window_first,
          .rows = std::vector<Bf16>(head.rows.begin(), head.rows.end()),
          .queries = std::vector<float>(head.q.begin(), head.q.end()),
          .own_lse = head.own_lse,
          .own_out = head.own_out};
}

class Bench {
 public:
  explicit Bench(std::vector<std::int32_t> budgets, std::vector<std::int32_t> breadths)
      : methods_(all_trial_methods(cpu_kernels(), breadths)), report_("bench index") {
    options_.budgets = std::move(budgets);
    options_.build_rounds = FLAGS_rounds;
    options_.repeats = FLAGS_repeats;
  }

  void measure_machine() {
    constexpr std::int64_t kBytes = 64 << 20;
    add_scale("memcpy_gbps", "GB/s", [] { return memcpy_gbps(kBytes); });
    add_scale("read_gbps", "GB/s", [] { return read_gbps(kBytes); });
    add_scale("fma_gflops", "GFLOP/s", [] { return fma_gflops(); });
  }

  void run_synthetic(const Shape& shape, SyntheticKind kind) {
    const KeySet set = synthetic_keys({.kind = kind,
                                       .tokens = shape.n,
                                       .head_dim = shape.head_dim,
                                       .group = shape.group,
                                       .steps = FLAGS_steps,
                                       .seed = FLAGS_seed});
    TrialTable table;
    run_one(shape, set, table, set.steps());
    add(shape, table);
  }

  Status run_recorded(const std::string& name) {
    const std::string path = name.substr(sizeof(kRecorded) - 1);
    ICE_TRY(RecordedKeys recorded, read_recorded_keys(path));
    ICE_TRY(validate(recorded.shape, path));
    const auto all = static_cast<std::int64_t>(recorded.heads.size());
    const std::int64_t heads = FLAGS_heads == 0 ? all : std::min<std::int64_t>(FLAGS_heads, all);
    const Shape shape{.keys = name,
                      .n = recorded.shape.window_first - recorded.shape.sink_tokens,
                      .head_dim = recorded.shape.d_k,
                      .group = recorded.shape.group};
    TrialTable table;
    for (std::int64_t h = 0; h < heads; ++h) {
      const KeySet set =
          key_set(recorded.shape, recorded.heads[static_cast<std::size_t>(h * all / heads)]);
      run_one(shape, set, table, heads * set.steps());
    }
    add(shape, table);
    return Status();
  }

  std::string json() const { return report_.json(); }
  const std::string& text() const { return text_; }

 private:
  template <class F>
  void add_scale(const char* name, const char* unit, F&& measure) {
    std::vector<double> values;
    for (int i = 0; i < 7; ++i) values.push_back(measure());
    report_.add({.name = name,
                 .params = {{"threads", kThreads}, {"mad", deviation(values)}},
                 .value = quantile(values, 0.5),
                 .unit = unit});
    text_ += std::string(name) + " " + number_text(quantile(values, 0.5), 1) + "\n";
  }

  void run_one(const Shape& shape, const KeySet& set, TrialTable& table, std::int64_t steps) {
    if (table.empty()) {
      done_ = 0;
      progress_ = std::make_unique<Progress>(
          "measuring " + shape.keys + ", " + std::to_string(shape.n) + " tokens", steps);
    }
    options_.on_step = [this] { progress_->set(++done_); };
    run_trial(cpu_kernels(), set, methods_, options_, table);
  }

  void add(const Shape& shape, const TrialTable& table) {
    progress_ = nullptr;
    Table text({"method", "budget", "breadth", "build µs/token", "select ms", "attend ms", "ranked",
                "recall64", "strong missed", "mass", "error", "p90", "p99", "pages", "moved",
                "index read", "index"});
    for (std::size_t b = 0; b < options_.budgets.size(); ++b) {
      for (std::size_t m = 0; m < methods_.size(); ++m) add_row(shape, table, m, b, text);
    }
    text_ += "\n" + shape.keys + ", " + std::to_string(shape.n) + " tokens, head dimension " +
             std::to_string(shape.head_dim) + ", " + std::to_string(shape.group) +
             " query rows\n\n" + text.text();
  }

  // "all", "rule", 16; nothing for the methods that have none.
  nlohmann::ordered_json breadth_of(std::size_t m) const {
    if (methods_[m].name != "icefield") return nullptr;
    if (methods_[m].breadth == kRuleBreadth) return "rule";
    if (methods_[m].breadth == kAllClusters) return "all";
    return methods_[m].breadth;
  }

  void add_row(const Shape& shape, const TrialTable& table, std::size_t m, std::size_t b,
               Table& text) {
    const TrialSums& sums = table[m][b];
    const nlohmann::ordered_json params = {
        {"method", methods_[m].name},    {"n", shape.n},
        {"head_dim", shape.head_dim},    {"group", shape.group},
        {"budget", options_.budgets[b]}, {"breadth", breadth_of(m)},
        {"threads", kThreads},           {"keys", shape.keys}};
    const auto time = [&](const char* name, const char* unit, auto member, std::size_t against) {
      const std::vector<double>& values = sums.*member;
      Figure figure{.name = name, .params = params, .value = quantile(values, 0.5), .unit = unit};
      figure.params["mad"] = deviation(values);
      if (methods_[m].name == "icefield") {
        figure.against = methods_[against].name;
        figure.ratio = figure.value / quantile(table[against][b].*member, 0.5);
        figure.better = "lower";
      }
      report_.add(std::move(figure));
    };
    time("build_us_per_token", "us", &TrialSums::build_us_per_token, index_of("flat_retroinfer"));
    time("select_ms", "ms", &TrialSums::select_ms, index_of("exact_int8"));
    time("attend_ms", "ms", &TrialSums::attend_ms, index_of("exact_no_tail"));
    const auto steps = static_cast<double>(sums.steps);
    double error = 0;
    for (const double e : sums.output_error) error += e;
    error /= static_cast<double>(sums.output_error.size());
    const double moved = (sums.page_bytes + sums.index_bytes_read) / steps;
    const auto add = [&](const char* name, const char* unit, double value) {
      report_.add({.name = name, .params = params, .value = value, .unit = unit});
    };
    add("ranked", "share", sums.ranked / steps);
    add("recall64", "share", sums.recall());
    add("strong_misses", "share", sums.strong_miss_share());
    add("mass", "share", sums.mass / steps);
    add("output_error_mean", "share", error);
    for (const auto& [name, share] :
         {std::pair("output_error_p50", 0.5), std::pair("output_error_p90", 0.9),
          std::pair("output_error_p99", 0.99)}) {
      add(name, "share", quantile(sums.output_error, share));
    }
    add("pages_touched", "pages", sums.pages / steps);
    add("index_bytes_read", "B", sums.index_bytes_read / steps);
    add("moved_bytes", "B", moved);
    add("metadata_fraction", "share", sums.index_bytes / sums.kv_bytes);
    const auto breadth = params["breadth"];
    text.add({methods_[m].name, std::to_string(options_.budgets[b]),
              breadth.is_null()     ? ""
              : breadth.is_string() ? breadth.get<std::string>()
                                    : breadth.dump(),
              number_text(quantile(sums.build_us_per_token, 0.5), 2),
              number_text(quantile(sums.select_ms, 0.5), 3),
              number_text(quantile(sums.attend_ms, 0.5), 3), percent_text(sums.ranked / steps),
              number_text(sums.recall(), 3), percent_text(sums.strong_miss_share()),
              number_text(sums.mass / steps, 3), number_text(error, 4),
              number_text(quantile(sums.output_error, 0.9), 4),
              number_text(quantile(sums.output_error, 0.99), 4), number_text(sums.pages / steps, 0),
              bytes_text(moved), bytes_text(sums.index_bytes_read / steps),
              percent_text(sums.index_bytes / sums.kv_bytes)});
  }

  std::size_t index_of(const char* name) const {
    std::size_t m = 0;
    while (methods_[m].name != name) ++m;
    return m;
  }

  const std::vector<TrialMethod> methods_;
  TrialOptions options_;
  Report report_;
  std::string text_;
  std::unique_ptr<Progress> progress_;
  std::int64_t done_ = 0;
};

// All shapes of one kind of synthetic keys.
Status run_kinds(const std::string& name, Bench& bench) {
  ICE_TRY(const std::vector<std::int32_t> sizes, numbers("n", FLAGS_n, kExtentRows));
  ICE_TRY(const std::vector<std::int32_t> dims, numbers("head_dim", FLAGS_head_dim, 16));
  ICE_TRY(const std::vector<std::int32_t> groups, numbers("group", FLAGS_group, 1));
  ICE_TRY(const std::vector<SyntheticKind> kinds, synthetic_kinds(name));
  for (const std::int32_t d : dims) {
    if (d > 256) return Status(Code::kInvalidArgument, "--head_dim: at most 256");
  }
  for (const std::int32_t g : groups) {
    if (g > 256) return Status(Code::kInvalidArgument, "--group: at most 256");
  }
  for (const std::int32_t n : sizes) {
    for (const std::int32_t d : dims) {
      for (const std::int32_t g : groups) {
        for (const SyntheticKind kind : kinds) {
          const std::string keys =
              kinds.size() > 1 && kind == SyntheticKind::kPeaked ? name + "_peaked" : name;
          bench.run_synthetic({.keys = keys, .n = n, .head_dim = d, .group = g}, kind);
        }
      }
    }
  }
  return Status();
}

Status run() {
  ICE_TRY(check_range("steps", FLAGS_steps, 1));
  ICE_TRY(check_range("rounds", FLAGS_rounds, 1));
  ICE_TRY(check_range("repeats", FLAGS_repeats, 1));
  ICE_TRY(check_range("heads", FLAGS_heads, 0));
  ICE_TRY(std::vector<std::int32_t> budgets, numbers("budget", FLAGS_budget, 1));
  ICE_TRY(std::vector<std::int32_t> all_breadths, parse_breadths(FLAGS_breadth));
  Bench bench(std::move(budgets), std::move(all_breadths));
  bench.measure_machine();
  for (const std::string& keys : split_list(FLAGS_keys)) {
    ICE_TRY(keys.starts_with(kRecorded) ? bench.run_recorded(keys) : run_kinds(keys, bench));
  }
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
