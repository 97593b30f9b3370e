// bench/support/index_trial.h — measures methods of attention on the same keys, side by side.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/clustered_method.h"
#include "bench/support/full_attention.h"

namespace icefield {

// What one method did with one budget, over all heads and steps. Times are of one thread.
struct TrialSums {
  std::vector<double> build_us_per_token;  // one per head and round
  std::vector<double> select_ms;           // of one step: all rows of the group
  std::vector<double> attend_ms;
  std::vector<double> output_error;  // ‖o - ô‖ / ‖o‖ of each query row
  std::int64_t top_wanted = 0, top_found = 0;
  std::int64_t strong_pairs = 0, strong_missed = 0;
  double mass = 0;  // sum over steps of the share of attention that was attended exactly
  double pages = 0, page_bytes = 0, index_bytes_read = 0;  // sums over steps
  double ranked = 0;  // sum over steps of the share of the tokens that codes rank
  double index_bytes = 0, kv_bytes = 0;  // sums over heads
  std::int64_t steps = 0;

  double recall() const;
  double strong_miss_share() const;  // 0 without strong pairs
};

struct TrialMethod {
  std::string name;
  std::int32_t breadth = 0;  // of ours; what a figure reports
  std::function<std::unique_ptr<Method>(const KeySet&, const ClusteredIndex&)> make;
};
// Ours once for each breadth (the first one builds what the exact scans take their tail from), then
// all others.
std::vector<TrialMethod> all_trial_methods(const Kernels& kernels,
                                           const std::vector<std::int32_t>& breadths);

struct TrialOptions {
  std::vector<std::int32_t> budgets;
  std::int32_t build_rounds = 3;  // every method is built as often, taking turns
  std::int32_t repeats = 3;       // of every step: back to back, so caches are warm
  std::function<void()> on_step;  // for a progress bar; may be empty
};

// sums[method][budget].
using TrialTable = std::vector<std::vector<TrialSums>>;

// Adds what the methods do on `set` to `table`, which is empty or of earlier sets.
void run_trial(const Kernels& kernels, const KeySet& set, const std::vector<TrialMethod>& methods,
               const TrialOptions& options, TrialTable& table);

}  // namespace icefield
