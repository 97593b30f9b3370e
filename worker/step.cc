#include "worker/step.h"

#include <algorithm>
#include <cmath>

#include "kernels/rotation.h"
#include "worker/worker.h"

namespace icefield {
namespace {

void fit(std::vector<float>& values, std::int64_t count) {
  values.resize(static_cast<std::size_t>(count));
}

// The cluster of a level that holds `row`.
std::int32_t cluster_of(const LevelView& clusters, std::int32_t row) {
  const std::uint16_t* after =
      std::upper_bound(clusters.first_row, clusters.first_row + clusters.count, row);
  return static_cast<std::int32_t>(after - clusters.first_row) - 1;
}

}  // namespace

Status AttendOptions::validate(std::int32_t layer_count) const {
  const auto bad_budget = [](std::int64_t tokens) { return tokens < 0 && tokens != kBudgetAll; };
  if (bad_budget(budget) || std::any_of(layer_budgets.begin(), layer_budgets.end(), bad_budget)) {
    return Status(Code::kInvalidArgument, "budget must be 0 or more tokens, or all");
  }
  if (!layer_budgets.empty() && layer_budgets.size() != static_cast<std::size_t>(layer_count)) {
    return Status(Code::kInvalidArgument, std::to_string(layer_budgets.size()) +
                                              " layer budgets for " + std::to_string(layer_count) +
                                              " layers");
  }
  if (breadth < 0 && breadth != kRuleBreadth) {
    return Status(Code::kInvalidArgument,
                  "breadth " + std::to_string(breadth) + ", expected 1 or more, all, or the rule");
  }
  if (!(coverage_floor >= 0 && coverage_floor <= 1)) {
    return Status(Code::kInvalidArgument, "coverage floor must be between 0 and 1");
  }
  return Status();
}

void StepReport::add(const StepReport& other) {
  attend_groups += other.attend_groups;
  rows_selected += other.rows_selected;
  pages_touched += other.pages_touched;
  page_hits += other.page_hits;
  page_failures += other.page_failures;
  bytes_moved += other.bytes_moved;
  tail_share_sum += other.tail_share_sum;
  tail_rows += other.tail_rows;
  tail_share_max = std::max(tail_share_max, other.tail_share_max);
  coverage_min = std::min(coverage_min, other.coverage_min);
  if (first_fault.ok()) first_fault = other.first_fault;
}

Step::Step(Worker& worker, std::vector<StepItem> items)
    : worker_(&worker), items_(std::move(items)) {
  for (const StepItem& item : items_) {
    first_token_.push_back(token_count_);
    const auto count = static_cast<std::int64_t>(item.tokens.size());
    token_count_ += count;
    item.context->rows_.extend(item.context->end_ + count);
  }
  approximate_.assign(items_.size(), false);
  if (worker_->work_.size() < group_count()) worker_->work_.resize(group_count());
}

Step::Step(Step&& other) noexcept
    : worker_(std::exchange(other.worker_, nullptr)),
      items_(std::move(other.items_)),
      first_token_(std::move(other.first_token_)),
      token_count_(other.token_count_),
      approximate_(std::move(other.approximate_)),
      fetched_(std::move(other.fetched_)),
      report_(std::move(other.report_)) {}

Step::~Step() {
  if (worker_ == nullptr) return;
  for (const StepItem& item : items_) item.context->rows_.truncate(item.context->end_);
}

std::size_t Step::group_count() const {
  return items_.size() * static_cast<std::size_t>(worker_->slice_shape_.kv_head_count);
}
std::size_t Step::item_of(std::size_t group) const {
  return group / static_cast<std::size_t>(worker_->slice_shape_.kv_head_count);
}
std::int32_t Step::kv_head_of(std::size_t group) const {
  return static_cast<std::int32_t>(group %
                                   static_cast<std::size_t>(worker_->slice_shape_.kv_head_count));
}
GroupWork& Step::work(std::size_t group) const { return worker_->work_[group]; }

HeadShape Step::head_shape() const {
  return {.d_k = worker_->slice_shape_.d_k,
          .d_v = worker_->slice_shape_.d_v,
          .beta = worker_->options_.softmax_scale};
}

std::span<const HeadIndex> Step::table(std::int32_t layer, std::size_t group) const {
  return items_[item_of(group)].context->table(layer, kv_head_of(group));
}

void Step::append(std::int32_t layer, const float* k, const float* v) {
  const KvShape& shape = worker_->slice_shape_;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    Context& context = *items_[i].context;
    for (std::int64_t t = 0; t < static_cast<std::int64_t>(items_[i].tokens.size()); ++t) {
      for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
        const std::int64_t at = (first_token_[i] + t) * shape.kv_head_count + head;
        Bf16* row = context.rows_.row(layer, head, context.end_ + t);
        for (std::int32_t j = 0; j < shape.d_k; ++j) row[j] = float_to_bf16(k[at * shape.d_k + j]);
        row += shape.d_k;
        for (std::int32_t j = 0; j < shape.d_v; ++j) row[j] = float_to_bf16(v[at * shape.d_v + j]);
      }
    }
  }
}

// The shard of what is exact anyway: sink, window and the call's own tokens.
void Step::attend_exact(std::int32_t layer, std::size_t group, const float* q) {
  const StepItem& item = items_[item_of(group)];
  const HeadShape shape = head_shape();
  const std::int32_t per_token = worker_->options_.query_group;
  const auto tokens = static_cast<std::int32_t>(item.tokens.size());
  const std::int32_t head = kv_head_of(group);
  GroupWork& work = this->work(group);
  work.row_count = tokens * per_token;
  fit(work.q, static_cast<std::int64_t>(work.row_count) * shape.d_k);
  work.hidden.clear();
  const std::int64_t heads =
      static_cast<std::int64_t>(worker_->slice_shape_.kv_head_count) * per_token;
  const std::int64_t width = static_cast<std::int64_t>(per_token) * shape.d_k;
  for (std::int32_t t = 0; t < tokens; ++t) {
    const std::int64_t token = first_token_[item_of(group)] + t;
    const float* from =
        q + (token * heads + static_cast<std::int64_t>(head) * per_token) * shape.d_k;
    std::copy_n(from, width, work.q.data() + t * width);
    work.hidden.insert(work.hidden.end(), static_cast<std::size_t>(per_token), tokens - 1 - t);
  }
  work.exact_runs.clear();
  item.context->append_exact_runs(layer, head, work.exact_runs);
  work.exact.resize(work.row_count, shape.d_v);
  const AttendGroup exact{.row_count = work.row_count,
                          .q = work.q.data(),
                          .run_count = static_cast<std::int32_t>(work.exact_runs.size()),
                          .runs = work.exact_runs.data(),
                          .hidden = tokens == 1 ? nullptr : work.hidden.data(),
                          .result = work.exact.view()};
  worker_->environment_.kernels.attend({.shape = shape, .group_count = 1, .groups = &exact});
}

void Step::select(std::int32_t layer, std::size_t group) {
  GroupWork& work = this->work(group);
  const std::span<const HeadIndex> table = this->table(layer, group);
  const TableSize size = table_size(table.data(), static_cast<std::int32_t>(table.size()));
  const StepItem& item = items_[item_of(group)];
  const std::int64_t budget = item.options.budget_of(layer);
  const std::int32_t wanted =
      budget == kBudgetAll
          ? size.indexed_rows
          : call_budget(budget, static_cast<std::int32_t>(item.tokens.size()), size.indexed_rows);
  work.selected.clear();
  work.everything = wanted == size.indexed_rows;
  if (!work.everything) {
    rank(group, table, {.budget = wanted, .breadth = breadth_of(item.options.breadth, wanted)});
    return;
  }
  for (std::int32_t s = 0; s < static_cast<std::int32_t>(table.size()); ++s) {
    const HeadIndex& segment = table[static_cast<std::size_t>(s)];
    for (std::int32_t row = segment.first_row; row < segment.end_row; ++row) {
      work.selected.push_back({s, row});
    }
  }
}

// Scores, proposes and ranks: S into work.selected, and the logits that the tail needs.
void Step::rank(std::size_t group, std::span<const HeadIndex> table, const SelectionRule& rule) {
  GroupWork& work = this->work(group);
  const Kernels& kernels = worker_->environment_.kernels;
  const HeadShape shape = head_shape();
  const auto segments = static_cast<std::int32_t>(table.size());
  const TableSize size = table_size(table.data(), segments);
  const std::int64_t rows = work.row_count;
  fit(work.list_logit, rows * size.lists);
  fit(work.reference_level, rows);
  fit(work.segment_mass, segments);
  const ScoreListsGroup lists{.row_count = work.row_count,
                              .q = work.q.data(),
                              .exact_lse = work.exact.lse.data(),
                              .segment_count = segments,
                              .segments = table.data(),
                              .list_logit = work.list_logit.data(),
                              .reference_level = work.reference_level.data(),
                              .segment_mass = work.segment_mass.data()};
  kernels.score_lists({.shape = shape, .group_count = 1, .groups = &lists});

  fit(work.cluster_logit, rows * size.clusters);
  fit(work.cluster_vote, size.clusters);
  work.order.resize(static_cast<std::size_t>(size.clusters));
  work.candidate.resize(static_cast<std::size_t>(size.clusters));
  const ProposeGroup clusters{.row_count = work.row_count,
                              .q = work.q.data(),
                              .reference_level = work.reference_level.data(),
                              .segment_count = segments,
                              .segments = table.data(),
                              .rule = rule,
                              .cluster_logit = work.cluster_logit.data(),
                              .cluster_vote = work.cluster_vote.data(),
                              .order = work.order.data(),
                              .candidate = work.candidate.data()};
  kernels.propose({.shape = shape, .group_count = 1, .groups = &clusters});

  fit(work.q_rotated, rows * shape.d_k);
  rotate(work.q.data(), work.row_count, shape.d_k, work.q_rotated.data());
  fit(work.token_logit, rows * size.rows);
  fit(work.vote, size.rows);
  work.ranking.resize(static_cast<std::size_t>(rank_scratch_rows(rule.budget)));
  work.selected.resize(static_cast<std::size_t>(rule.budget));
  std::int32_t selected_count = 0;
  const RankGroup tokens{.row_count = work.row_count,
                         .q_rotated = work.q_rotated.data(),
                         .reference_level = work.reference_level.data(),
                         .segment_count = segments,
                         .segments = table.data(),
                         .cluster_logit = work.cluster_logit.data(),
                         .candidate = work.candidate.data(),
                         .rule = rule,
                         .token_logit = work.token_logit.data(),
                         .vote = work.vote.data(),
                         .ranking = work.ranking.data(),
                         .selected = work.selected.data(),
                         .selected_count = &selected_count};
  kernels.rank({.shape = shape, .group_count = 1, .groups = &tokens});
  work.selected.resize(static_cast<std::size_t>(selected_count));
}

// f(page's segment, its key, first and end of its selected rows) for every page of `group`.
template <class F>
void Step::for_each_page(std::int32_t layer, std::size_t group, F&& f) const {
  const std::int32_t page_rows = worker_->options_.page_rows;
  const GroupWork& work = this->work(group);
  const Context& context = *items_[item_of(group)].context;
  for (std::size_t begin = 0; begin < work.selected.size();) {
    const TableRow& at = work.selected[begin];
    const std::int32_t first = at.row / page_rows * page_rows;
    std::size_t end = begin + 1;
    while (end < work.selected.size() && work.selected[end].segment == at.segment &&
           work.selected[end].row < first + page_rows) {
      ++end;
    }
    const AttachedSegment& segment = *context.segments_[static_cast<std::size_t>(at.segment)];
    f(segment, page_key(segment.number, layer, kv_head_of(group), first), begin, end);
    begin = end;
  }
}

// Finds the page of every selected row, in the hot pool or from the nodes.
void Step::find_pages(std::int32_t layer) {
  const std::int32_t page_rows = worker_->options_.page_rows;
  HotPool& pool = worker_->pool_;
  pool.begin_step();
  std::vector<std::vector<WantedPage>>& lists = worker_->wanted_;
  if (lists.size() < items_.size()) lists.resize(items_.size());
  const std::span wanted(lists.data(), items_.size());
  for (std::vector<WantedPage>& pages : wanted) pages.clear();
  for (std::size_t group = 0; group < group_count(); ++group) {
    GroupWork& work = this->work(group);
    work.pages.assign(work.selected.size(), nullptr);
    for_each_page(
        layer, group,
        [&](const AttachedSegment& segment, PageKey key, std::size_t begin, std::size_t end) {
          ++report_.pages_touched;
          if (const std::byte* page = pool.find(key); page != nullptr) {
            ++report_.page_hits;
            work.set_page(begin, end, page);
            return;
          }
          wanted[item_of(group)].push_back(
              {.segment = &segment,
               .layer = layer,
               .kv_head = kv_head_of(group),
               .first_row = work.selected[begin].row / page_rows * page_rows});
        });
  }
  const bool all_hit =
      std::all_of(wanted.begin(), wanted.end(), [](const auto& pages) { return pages.empty(); });
  if (all_hit) return;
  fetched_ =
      fetch_pages(worker_->environment_.store, worker_->environment_.executor,
                  worker_->slice_shape_, worker_->options_.slice, page_rows, wanted,
                  Deadline::after(worker_->environment_.clock, worker_->options_.fetch_timeout));
  report_.bytes_moved += fetched_.bytes_moved;
  report_.page_failures += fetched_.failed_pages;
  if (report_.first_fault.ok()) report_.first_fault = fetched_.first_error;
  place_fetched(layer, wanted);
}

// Moves pages that were fetched into the pool. Two contexts of the batch may have wanted the same
// page; when every slot is pinned by this step, the page is attended where it arrived.
void Step::place_fetched(std::int32_t layer, std::span<const std::vector<WantedPage>> wanted) {
  const auto page_bytes =
      static_cast<std::size_t>(worker_->options_.page_rows * worker_->slice_shape_.row_bytes());
  HotPool& pool = worker_->pool_;
  std::vector<std::size_t> next(items_.size(), 0);
  for (std::size_t group = 0; group < group_count(); ++group) {
    GroupWork& work = this->work(group);
    for_each_page(layer, group,
                  [&](const AttachedSegment&, PageKey key, std::size_t begin, std::size_t end) {
                    if (work.pages[begin] != nullptr) return;
                    const std::byte* page = wanted[item_of(group)][next[item_of(group)]++].bytes;
                    if (page == nullptr) return;
                    if (const std::byte* there = pool.find(key); there != nullptr) {
                      page = there;
                    } else if (std::byte* slot = pool.insert(key); slot != nullptr) {
                      std::copy_n(page, page_bytes, slot);
                      page = slot;
                    }
                    work.set_page(begin, end, page);
                  });
  }
}

// Contract §8: rows that did not come leave S and join the rest of their clusters.
void Step::drop_missing(std::int32_t layer, std::size_t group) {
  GroupWork& work = this->work(group);
  work.any_fault = std::find(work.pages.begin(), work.pages.end(), nullptr) != work.pages.end();
  if (!work.any_fault) return;
  const std::span<const HeadIndex> table = this->table(layer, group);
  const TableSize size = table_size(table.data(), static_cast<std::int32_t>(table.size()));
  if (work.everything) {
    // Nothing was ranked, but the rests need the codes' logits now. Everything is selected again,
    // in the same order.
    rank(group, table, {.budget = size.indexed_rows, .breadth = kAllClusters});
  }
  work.faulty.assign(static_cast<std::size_t>(size.clusters), 0);
  std::vector<std::int32_t> first_cluster = {0};
  for (const HeadIndex& segment : table) {
    first_cluster.push_back(first_cluster.back() + segment.clusters.count);
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < work.selected.size(); ++i) {
    const TableRow& at = work.selected[i];
    const auto segment = static_cast<std::size_t>(at.segment);
    if (work.pages[i] == nullptr) {
      const std::int32_t cluster = cluster_of(table[segment].clusters, at.row);
      work.faulty[static_cast<std::size_t>(first_cluster[segment] + cluster)] = 1;
      continue;
    }
    work.selected[kept] = at;
    work.pages[kept++] = work.pages[i];
  }
  work.selected.resize(kept);
  work.pages.resize(kept);
}

void Step::attend_selected(std::int32_t layer, std::size_t group, float* out) {
  GroupWork& work = this->work(group);
  const HeadShape shape = head_shape();
  const std::span<const HeadIndex> table = this->table(layer, group);
  const std::int32_t page_rows = worker_->options_.page_rows;
  drop_missing(layer, group);
  work.runs.clear();
  for (std::size_t i = 0; i < work.selected.size(); ++i) {
    const std::uint64_t bit = std::uint64_t{1} << (work.selected[i].row % page_rows);
    if (i > 0 && work.pages[i] == work.pages[i - 1]) {
      work.runs.back().mask |= bit;
    } else {
      work.runs.push_back({.rows = reinterpret_cast<const Bf16*>(work.pages[i]), .mask = bit});
    }
  }
  const bool tail = !work.everything || work.any_fault;
  const auto segments = static_cast<std::int32_t>(table.size());
  if (tail) {
    fit(work.scratch, attend_scratch_floats(work.row_count, table_size(table.data(), segments),
                                            static_cast<std::int32_t>(work.selected.size())));
  }
  work.chosen.resize(work.row_count, shape.d_v);
  const AttendGroup chosen{.row_count = work.row_count,
                           .q = work.q.data(),
                           .run_count = static_cast<std::int32_t>(work.runs.size()),
                           .runs = work.runs.data(),
                           .segment_count = tail ? segments : 0,
                           .segments = table.data(),
                           .cluster_logit = work.cluster_logit.data(),
                           .candidate = work.candidate.data(),
                           .token_logit = work.token_logit.data(),
                           .selected_count = static_cast<std::int32_t>(work.selected.size()),
                           .selected = work.selected.data(),
                           .faulty = work.any_fault ? work.faulty.data() : nullptr,
                           .scratch = work.scratch.data(),
                           .result = work.chosen.view()};
  const Kernels& kernels = worker_->environment_.kernels;
  kernels.attend({.shape = shape, .group_count = 1, .groups = &chosen});
  const Partial parts[] = {work.exact.view(), work.chosen.view()};
  work.merged.resize(work.row_count, shape.d_v);
  kernels.merge({.d_v = shape.d_v,
                 .row_count = work.row_count,
                 .part_count = 2,
                 .parts = parts,
                 .result = work.merged.view()});
  const HeadSlope& slope = items_[item_of(group)].context->slope(layer, kv_head_of(group));
  if (tail && !slope.empty()) {
    kernels.add_slope({.shape = shape,
                       .slope = slope.view(),
                       .row_count = work.row_count,
                       .q = work.q.data(),
                       .drift = work.merged.drift.data(),
                       .out = work.merged.out.data()});
  }
  write_rows(group, work.merged, out);
}

void Step::write_rows(std::size_t group, const PartialRows& rows, float* out) const {
  const std::int32_t per_token = worker_->options_.query_group;
  const std::int64_t heads =
      static_cast<std::int64_t>(worker_->slice_shape_.kv_head_count) * per_token;
  const std::int64_t d_v = worker_->slice_shape_.d_v;
  const std::int64_t width = per_token * d_v;
  const std::int64_t head = static_cast<std::int64_t>(kv_head_of(group)) * per_token;
  const std::size_t item = item_of(group);
  for (std::int64_t t = 0; t < static_cast<std::int64_t>(items_[item].tokens.size()); ++t) {
    std::copy_n(rows.out.data() + t * width, width,
                out + ((first_token_[item] + t) * heads + head) * d_v);
  }
}

Status Step::attend(std::int32_t layer, const float* q, float* out) {
  ThreadPool& threads = worker_->environment_.threads;
  const auto groups = static_cast<std::int64_t>(group_count());
  threads.parallel_for(groups, [&](std::int64_t index) {
    const auto group = static_cast<std::size_t>(index);
    attend_exact(layer, group, q);
    if (table(layer, group).empty()) {
      work(group).selected.clear();
      write_rows(group, work(group).exact, out);
    } else {
      select(layer, group);
    }
  });
  const bool indexed = std::any_of(items_.begin(), items_.end(), [](const StepItem& item) {
    return !item.context->tables_.empty();
  });
  if (!indexed) return Status();
  find_pages(layer);
  threads.parallel_for(groups, [&](std::int64_t index) {
    const auto group = static_cast<std::size_t>(index);
    if (!table(layer, group).empty()) attend_selected(layer, group, out);
  });
  fetched_.buffers.clear();
  return add_to_report(layer);
}

Status Step::add_to_report(std::int32_t layer) {
  for (std::size_t group = 0; group < group_count(); ++group) {
    if (table(layer, group).empty()) continue;
    const GroupWork& work = this->work(group);
    const StepItem& item = items_[item_of(group)];
    if (!work.everything || work.any_fault) approximate_[item_of(group)] = true;
    report_.attend_groups += 1;
    report_.rows_selected += static_cast<std::int64_t>(work.selected.size());
    for (std::int32_t h = 0; h < work.row_count; ++h) {
      const auto row = static_cast<std::size_t>(h);
      report_.tail_share_sum += static_cast<double>(work.merged.tail[row]);
      report_.tail_share_max = std::max(report_.tail_share_max, work.merged.tail[row]);
      const float coverage = 1 - work.merged.fault[row];
      report_.coverage_min = std::min(report_.coverage_min, coverage);
      if (coverage < item.options.coverage_floor) {
        return Status(Code::kUnavailable,
                      "coverage " + std::to_string(coverage) + " of layer " +
                          std::to_string(worker_->options_.slice.first_layer + layer) +
                          " is below the floor of " + std::to_string(item.options.coverage_floor) +
                          " (" + report_.first_fault.to_string() + ")");
      }
    }
    report_.tail_rows += work.row_count;
  }
  return Status();
}

Result<StepReport> Step::finish() {
  Worker& worker = *std::exchange(worker_, nullptr);
  for (std::size_t i = 0; i < items_.size(); ++i) {
    Context& context = *items_[i].context;
    context.append_tokens(items_[i].tokens);
    if (approximate_[i] && context.exact()) context.approx_tag_ = worker.environment_.rng.next();
    if (!worker.advance_window(context).ok()) worker.seal_failures.add();
  }
  return std::move(report_);
}

std::span<const TableRow> Step::selected(std::size_t item, std::int32_t kv_head) const {
  const auto heads = static_cast<std::size_t>(worker_->slice_shape_.kv_head_count);
  return work(item * heads + static_cast<std::size_t>(kv_head)).selected;
}

}  // namespace icefield
