// worker/step_item.h — what a step is asked to do, and what it says it did.
#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"
#include "kernels/head_index.h"
#include "worker/context.h"

namespace icefield {

constexpr std::int64_t kBudgetAll = -1;

// What a step does about selected pages that are not in the hot pool.
enum class OnMiss {
  kFetch,  // waits for them, to its deadline
  kTail,   // never waits: their rows are missing (docs/formats/attention.md step 8), and the pages
           // are read for a later step
};

// How a context attends in a step.
struct AttendOptions {
  // Tokens per KV head that a query token attends exactly beyond sink and window; kBudgetAll: all.
  std::int64_t budget = kBudgetAll;
  // Overrides `budget` by layer when it is not empty: [layer of the slice].
  std::vector<std::int64_t> layer_budgets;
  // M of the contract; kAllClusters; kRuleBreadth: what the contract has as its default.
  std::int32_t breadth = kRuleBreadth;
  OnMiss on_miss = OnMiss::kFetch;
  // The step fails with kUnavailable when less of the attention than this is fault-free.
  float coverage_floor = 0;

  Status validate(std::int32_t layer_count) const;
  std::int64_t budget_of(std::int32_t layer) const {
    return layer_budgets.empty() ? budget : layer_budgets[static_cast<std::size_t>(layer)];
  }
  std::int64_t most_budget() const;  // of any layer
};

struct StepItem {
  Context* context = nullptr;
  std::vector<std::uint32_t> tokens;  // new ones; at most kMaxQueryTokens unless it is dense
  AttendOptions options;
};

// Sums over the layers and KV heads of a step.
struct StepReport {
  // (layer, context, KV head) that selected; what averages divide by
  std::int64_t attend_groups = 0;
  std::int64_t rows_selected = 0;
  std::int64_t pages_touched = 0;
  std::int64_t page_hits = 0;      // in the hot pool
  std::int64_t page_failures = 0;  // did not come, or failed verification
  std::int64_t bytes_moved = 0;    // from the nodes
  double tail_share_sum = 0;       // over all rows of all groups
  std::int64_t tail_rows = 0;
  float tail_share_max = 0;
  float coverage_min = 1;
  Status first_fault;  // why pages failed

  double tail_share() const {
    return tail_rows == 0 ? 0 : tail_share_sum / static_cast<double>(tail_rows);
  }
  void add(const StepReport& other);
};

}  // namespace icefield
