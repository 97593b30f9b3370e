#include "bench/support/index_trial.h"

#include <cmath>

#include "bench/baselines/exact_scan.h"
#include "bench/baselines/flat_clusters.h"
#include "bench/baselines/pages.h"
#include "bench/support/timing.h"
#include "common/check.h"

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// ‖o - ô‖ / ‖o‖ of one row.
double relative_error(const float* wanted, const float* got, std::int32_t d) {
  double difference = 0;
  double length = 0;
  for (std::int32_t j = 0; j < d; ++j) {
    const auto delta = static_cast<double>(wanted[j] - got[j]);
    difference += delta * delta;
    length += static_cast<double>(wanted[j]) * static_cast<double>(wanted[j]);
  }
  return std::sqrt(difference / length);
}

class Trial {
 public:
  Trial(const Kernels& kernels, const KeySet& set, const std::vector<TrialMethod>& methods,
        const TrialOptions& options, TrialTable& table)
      : kernels_(kernels),
        set_(set),
        options_(options),
        table_(table),
        truth_(kernels, set),
        in_selection_(at(set.tokens()), 0) {
    table_.resize(methods.size(), std::vector<TrialSums>(options.budgets.size()));
    ours_ = std::make_unique<ClusteredMethod>(kernels, set, kRuleBreadth);
    ours_->build();
    for (const TrialMethod& method : methods) methods_.push_back(method.make(set, ours_->index()));
  }

  void run() {
    build();
    for (std::int32_t step = 0; step < set_.steps(); ++step) {
      truth_.step(step);
      for (std::size_t b = 0; b < options_.budgets.size(); ++b) {
        for (std::size_t m = 0; m < methods_.size(); ++m) measure(step, m, b);
      }
      if (options_.on_step) options_.on_step();
    }
  }

 private:
  void build() {
    const double kv_bytes = static_cast<double>(sizeof(Bf16)) * set_.indexed() * set_.width();
    for (std::int32_t round = 0; round < options_.build_rounds; ++round) {
      for (std::size_t m = 0; m < methods_.size(); ++m) {
        const double us = 1000 * ms_of([&] { methods_[m]->build(); }) / set_.indexed();
        for (TrialSums& sums : table_[m]) {
          sums.build_us_per_token.push_back(us);
          if (round > 0) continue;
          sums.index_bytes += static_cast<double>(methods_[m]->index_bytes());
          sums.kv_bytes += kv_bytes;
        }
      }
    }
  }

  void measure(std::int32_t step, std::size_t m, std::size_t b) {
    Method& method = *methods_[m];
    TrialSums& sums = table_[m][b];
    const MethodQuery query{.q = set_.query(step),
                            .exact_lse = truth_.exact().lse.data(),
                            .budget = options_.budgets[b]};
    PartialBuffer result(set_.group, set_.d_v);
    for (std::int32_t i = 0; i < options_.repeats; ++i) {
      sums.select_ms.push_back(ms_of([&] { method.select(query); }));
    }
    for (std::int32_t i = 0; i < options_.repeats; ++i) {
      sums.attend_ms.push_back(ms_of([&] { method.attend(query, result.view()); }));
    }
    const MethodCost cost = method.cost();
    sums.pages += static_cast<double>(cost.pages);
    sums.page_bytes += static_cast<double>(cost.page_bytes);
    sums.index_bytes_read += static_cast<double>(cost.index_bytes_read);
    sums.ranked += static_cast<double>(cost.rows_ranked) / set_.indexed();
    ++sums.steps;
    judge_selection(method.selected(), sums);
    const PartialBuffer whole =
        merge(kernels_, set_.d_v, std::vector<PartialBuffer*>{&truth_.exact(), &result});
    for (std::int32_t h = 0; h < set_.group; ++h) {
      const std::int64_t row = static_cast<std::int64_t>(h) * set_.d_v;
      sums.output_error.push_back(
          relative_error(truth_.out().data() + row, whole.out.data() + row, set_.d_v));
    }
  }

  void judge_selection(const std::vector<std::int32_t>& selected, TrialSums& sums) {
    double mass = truth_.exact_mass();
    for (const std::int32_t token : selected) {
      ICE_CHECK(token >= set_.first_indexed && token < set_.end_indexed);
      ICE_CHECK(in_selection_[at(token)] == 0);
      in_selection_[at(token)] = 1;
      for (std::int32_t h = 0; h < set_.group; ++h) {
        mass += static_cast<double>(truth_.share(h)[token]) / set_.group;
      }
    }
    sums.mass += mass;
    for (const std::int32_t token : truth_.top()) {
      ++sums.top_wanted;
      sums.top_found += in_selection_[at(token)];
    }
    for (const StrongPair& pair : truth_.strong()) {
      ++sums.strong_pairs;
      sums.strong_missed += in_selection_[at(pair.token)] == 0;
    }
    for (const std::int32_t token : selected) in_selection_[at(token)] = 0;
  }

  const Kernels& kernels_;
  const KeySet& set_;
  const TrialOptions& options_;
  TrialTable& table_;
  FullAttention truth_;
  std::unique_ptr<ClusteredMethod> ours_;  // whose index the exact scans take their tail from
  std::vector<std::unique_ptr<Method>> methods_;
  std::vector<std::uint8_t> in_selection_;  // by token
};

template <class M, class... Arguments>
auto maker(const Kernels& kernels, Arguments... arguments) {
  return [&kernels, arguments...](const KeySet& set,
                                  const ClusteredIndex&) -> std::unique_ptr<Method> {
    return std::make_unique<M>(kernels, set, arguments...);
  };
}

}  // namespace

double TrialSums::recall() const {
  return static_cast<double>(top_found) /
         static_cast<double>(std::max<std::int64_t>(top_wanted, 1));
}

double TrialSums::strong_miss_share() const {
  return static_cast<double>(strong_missed) /
         static_cast<double>(std::max<std::int64_t>(strong_pairs, 1));
}

std::vector<TrialMethod> all_trial_methods(const Kernels& kernels,
                                           const std::vector<std::int32_t>& breadths) {
  std::vector<TrialMethod> methods;
  for (const std::int32_t breadth : breadths) {
    methods.push_back({"icefield", breadth, maker<ClusteredMethod>(kernels, breadth)});
  }
  const auto exact = [&](const char* name, ExactScanOptions options) {
    methods.push_back(
        {name, 0, [&kernels, options](const KeySet& set, const ClusteredIndex& index) {
           return std::make_unique<ExactScan>(kernels, set, index, options);
         }});
  };
  using Keys = ExactScanOptions::Keys;
  exact("exact_fp32", {.keys = Keys::kBf16});
  exact("exact_int8", {.keys = Keys::kInt8});
  exact("exact_no_tail", {.keys = Keys::kBf16, .tail = false});
  using Rule = PositionalPages::Rule;
  methods.push_back({"pages_mean", 0, maker<PositionalPages>(kernels, Rule::kMean)});
  methods.push_back({"pages_quest", 0, maker<PositionalPages>(kernels, Rule::kBound)});
  methods.push_back({"pages_icecache", 0, maker<PrincipalPages>(kernels)});
  methods.push_back({"flat_retroinfer", 0, maker<FlatClusters>(kernels)});
  return methods;
}

void run_trial(const Kernels& kernels, const KeySet& set, const std::vector<TrialMethod>& methods,
               const TrialOptions& options, TrialTable& table) {
  Trial(kernels, set, methods, options, table).run();
}

}  // namespace icefield
