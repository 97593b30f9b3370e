// worker/step.h — one step of the engine over a batch of contexts: append, attend, commit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "worker/context.h"
#include "worker/page_fetch.h"

namespace icefield {

class Worker;

constexpr std::int64_t kBudgetAll = -1;

// How a context attends in a step.
struct AttendOptions {
  // Tokens per KV head that a query token attends exactly beyond sink and window; kBudgetAll: all.
  std::int64_t budget = kBudgetAll;
  // Overrides `budget` by layer when it is not empty: [layer of the slice].
  std::vector<std::int64_t> layer_budgets;
  // M of the contract; kAllClusters; kRuleBreadth: what the contract has as its default.
  std::int32_t breadth = kRuleBreadth;
  // The step fails with kUnavailable when less of the attention than this is fault-free.
  float coverage_floor = 0;

  Status validate(std::int32_t layer_count) const;
  std::int64_t budget_of(std::int32_t layer) const {
    return layer_budgets.empty() ? budget : layer_budgets[static_cast<std::size_t>(layer)];
  }
};

struct StepItem {
  Context* context = nullptr;
  std::vector<std::uint32_t> tokens;  // new ones; at most kMaxQueryTokens unless it is dense
  AttendOptions options;
};

// Sums over the layers and KV heads of a step.
struct StepReport {
  std::int64_t attend_groups =
      0;  // (layer, context, KV head) that selected; what averages divide by
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

// A partial result with memory of its own.
struct PartialRows {
  std::vector<float> out, lse, tail, fault, drift;

  void resize(std::int32_t rows, std::int32_t d_v) {
    out.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(d_v));
    lse.resize(static_cast<std::size_t>(rows));
    tail.resize(static_cast<std::size_t>(rows));
    fault.resize(static_cast<std::size_t>(rows));
    drift.resize(static_cast<std::size_t>(rows));
  }
  Partial view() { return {out.data(), lse.data(), tail.data(), fault.data(), drift.data()}; }
};

// Memory of one group, (context, KV head), reused from layer to layer and step to step.
struct GroupWork {
  std::int32_t row_count = 0;  // query tokens × query heads per KV head
  std::vector<float> q, q_rotated;
  std::vector<std::int32_t> hidden;
  std::vector<RowRun> exact_runs, runs;
  PartialRows exact, chosen, merged;

  std::vector<float> list_logit, reference_level, segment_mass;
  std::vector<float> cluster_logit, cluster_vote, token_logit, vote, scratch;
  std::vector<std::int32_t> order;
  std::vector<std::uint8_t> candidate, faulty;
  std::vector<RankedRow> ranking;

  std::vector<TableRow> selected;
  std::vector<const std::byte*> pages;  // the page of each selected row; null: it did not come
  bool everything = false;              // B = N: full attention
  bool any_fault = false;

  // `page` holds the selected rows [begin, end).
  void set_page(std::size_t begin, std::size_t end, const std::byte* page) {
    std::fill(pages.begin() + static_cast<std::ptrdiff_t>(begin),
              pages.begin() + static_cast<std::ptrdiff_t>(end), page);
  }
};

// append() and attend() for each layer in order, then finish(). A step that is dropped before
// finish() leaves its contexts as they were.
//
// Threads  One at a time, the worker's caller.
class Step {
 public:
  Step(Step&& other) noexcept;
  Step& operator=(Step&&) = delete;
  ~Step();

  // New tokens of all items together.
  std::int64_t token_count() const { return token_count_; }

  // Stores k [tokens, KV heads, d_k] and v [tokens, KV heads, d_v] of a layer, rounded to bf16.
  void append(std::int32_t layer, const float* k, const float* v);

  // Attention of q [tokens, query heads, d_k] over each item's context and its own tokens up to
  // each one; out [tokens, query heads, d_v]. kUnavailable below an item's coverage floor.
  // Allocates nothing after a step of the same shape, unless pages have to be fetched.
  Status attend(std::int32_t layer, const float* q, float* out);

  // Commits the tokens. Windows that advance seal what has left them; when that fails, the rows
  // stay in the window and are sealed by a later step.
  Result<StepReport> finish();

  // S of the last attend(): rows of `item`'s segment table for one KV head.
  std::span<const TableRow> selected(std::size_t item, std::int32_t kv_head) const;

 private:
  friend class Worker;
  Step(Worker& worker, std::vector<StepItem> items);

  std::size_t group_count() const;
  std::size_t item_of(std::size_t group) const;
  std::int32_t kv_head_of(std::size_t group) const;
  GroupWork& work(std::size_t group) const;
  HeadShape head_shape() const;
  std::span<const HeadIndex> table(std::int32_t layer, std::size_t group) const;

  void attend_exact(std::int32_t layer, std::size_t group, const float* q);
  void select(std::int32_t layer, std::size_t group);
  void rank(std::size_t group, std::span<const HeadIndex> table, const SelectionRule& rule);
  template <class F>
  void for_each_page(std::int32_t layer, std::size_t group, F&& f) const;
  void find_pages(std::int32_t layer);
  void place_fetched(std::int32_t layer, std::span<const std::vector<WantedPage>> wanted);
  void drop_missing(std::int32_t layer, std::size_t group);
  void attend_selected(std::int32_t layer, std::size_t group, float* out);
  void write_rows(std::size_t group, const PartialRows& rows, float* out) const;
  Status add_to_report(std::int32_t layer);

  Worker* worker_;
  std::vector<StepItem> items_;
  std::vector<std::int64_t> first_token_;  // of each item in the packed batch
  std::int64_t token_count_ = 0;
  std::vector<bool> approximate_;  // items that attended less than everything
  FetchedPages fetched_;           // of the layer under way
  StepReport report_;
};

}  // namespace icefield
