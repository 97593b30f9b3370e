#include "worker/cpu_attention.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "kernels/rotation.h"
#include "worker/page_finder.h"

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

void CpuAttention::PartialRows::resize(std::int32_t rows, std::int32_t d_v) {
  fit(out, static_cast<std::int64_t>(rows) * d_v);
  for (std::vector<float>* values : {&lse, &tail, &fault, &drift}) fit(*values, rows);
}

Status CpuAttention::resize_pool(std::int64_t slot_count) {
  const std::int64_t bytes = slot_count * shape_.page_bytes();
  try {
    pool_ = AlignedBytes(static_cast<std::size_t>(bytes));
  } catch (const std::exception&) {  // bad_alloc, length_error
    return Status(Code::kResourceExhausted, "no memory for a hot pool of " + std::to_string(bytes) +
                                                " bytes; lower pool_bytes");
  }
  return Status();
}

Status CpuAttention::begin_step(std::span<const StepItem> items) {
  const std::size_t groups = items.size() * static_cast<std::size_t>(shape_.kv.kv_head_count);
  if (scratch_.size() < groups) scratch_.resize(groups);
  return Status();
}

Status CpuAttention::place(std::span<const ArrivedPage> pages) {
  for (const ArrivedPage& page : pages) {
    if (page.slot == HotPool::kNoSlot) continue;
    std::copy_n(page.bytes, shape_.page_bytes(), slot(page.slot));
  }
  return Status();
}

Status CpuAttention::attend(const LayerCall& call, PageFinder& pages) {
  const auto groups = static_cast<std::int64_t>(call.groups.size());
  threads_.parallel_for(groups, [&](std::int64_t index) {
    LayerGroup& group = call.groups[static_cast<std::size_t>(index)];
    Scratch& work = scratch_[static_cast<std::size_t>(index)];
    attend_exact(call, group, work);
    if (group.indexed) {
      select(call, group, work);
    } else {
      write_result(shape_, call, group, work.exact.out.data());
    }
  });
  const bool indexed =
      std::ranges::any_of(call.groups, [](const LayerGroup& group) { return group.indexed; });
  if (!indexed) return Status();
  pages.find(call);
  ICE_TRY(place(pages.arrived()));
  threads_.parallel_for(groups, [&](std::int64_t index) {
    LayerGroup& group = call.groups[static_cast<std::size_t>(index)];
    if (group.indexed) attend_selected(call, group, scratch_[static_cast<std::size_t>(index)]);
  });
  pages.release();
  return Status();
}

// The shard of what is exact anyway: sink, window and the call's own tokens.
void CpuAttention::attend_exact(const LayerCall& call, const LayerGroup& group, Scratch& work) {
  const HeadShape shape = shape_.head();
  fit(work.q, static_cast<std::int64_t>(group.row_count) * shape.d_k);
  copy_queries(shape_, call, group, work.q.data());
  work.hidden.resize(static_cast<std::size_t>(group.row_count));
  hide_later_tokens(shape_, call, group, work.hidden.data());
  const bool one_token = group.row_count == shape_.query_group;
  work.exact_runs.clear();
  group.context->append_exact_runs(call.layer, group.kv_head, work.exact_runs);
  work.exact.resize(group.row_count, shape.d_v);
  const AttendGroup exact{.row_count = group.row_count,
                          .q = work.q.data(),
                          .run_count = static_cast<std::int32_t>(work.exact_runs.size()),
                          .runs = work.exact_runs.data(),
                          .hidden = one_token ? nullptr : work.hidden.data(),
                          .result = work.exact.view()};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &exact});
}

void CpuAttention::select(const LayerCall& call, LayerGroup& group, Scratch& work) {
  group.selected.clear();
  if (!group.everything) {
    rank(call.layer, group, work,
         {.budget = group.budget,
          .breadth = breadth_of(call.items[group.item].options.breadth, group.budget)});
    return;
  }
  const std::span<const HeadIndex> table = group.context->table(call.layer, group.kv_head);
  for (std::int32_t s = 0; s < static_cast<std::int32_t>(table.size()); ++s) {
    const HeadIndex& segment = table[static_cast<std::size_t>(s)];
    for (std::int32_t row = segment.first_row; row < segment.end_row; ++row) {
      group.selected.push_back({s, row});
    }
  }
}

// Scores, proposes and ranks: S into group.selected, and the logits that the tail needs.
void CpuAttention::rank(std::int32_t layer, LayerGroup& group, Scratch& work,
                        const SelectionRule& rule) {
  const std::span<const HeadIndex> table = group.context->table(layer, group.kv_head);
  const HeadShape shape = shape_.head();
  const auto segments = static_cast<std::int32_t>(table.size());
  const TableSize size = table_size(table.data(), segments);
  const std::int64_t rows = group.row_count;
  fit(work.list_logit, rows * size.lists);
  fit(work.reference_level, rows);
  fit(work.segment_mass, segments);
  const ScoreListsGroup lists{.row_count = group.row_count,
                              .q = work.q.data(),
                              .exact_lse = work.exact.lse.data(),
                              .segment_count = segments,
                              .segments = table.data(),
                              .list_logit = work.list_logit.data(),
                              .reference_level = work.reference_level.data(),
                              .segment_mass = work.segment_mass.data()};
  kernels_.score_lists({.shape = shape, .group_count = 1, .groups = &lists});

  fit(work.cluster_logit, rows * size.clusters);
  fit(work.cluster_vote, size.clusters);
  work.order.resize(static_cast<std::size_t>(size.clusters));
  work.candidate.resize(static_cast<std::size_t>(size.clusters));
  const ProposeGroup clusters{.row_count = group.row_count,
                              .q = work.q.data(),
                              .reference_level = work.reference_level.data(),
                              .segment_count = segments,
                              .segments = table.data(),
                              .rule = rule,
                              .cluster_logit = work.cluster_logit.data(),
                              .cluster_vote = work.cluster_vote.data(),
                              .order = work.order.data(),
                              .candidate = work.candidate.data()};
  kernels_.propose({.shape = shape, .group_count = 1, .groups = &clusters});

  fit(work.q_rotated, rows * shape.d_k);
  rotate(work.q.data(), group.row_count, shape.d_k, work.q_rotated.data());
  fit(work.token_logit, rows * size.rows);
  fit(work.vote, size.rows);
  work.ranking.resize(static_cast<std::size_t>(rank_scratch_rows(rule.budget)));
  group.selected.resize(static_cast<std::size_t>(rule.budget));
  std::int32_t selected_count = 0;
  const RankGroup tokens{.row_count = group.row_count,
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
                         .selected = group.selected.data(),
                         .selected_count = &selected_count};
  kernels_.rank({.shape = shape, .group_count = 1, .groups = &tokens});
  group.selected.resize(static_cast<std::size_t>(selected_count));
}

// Contract §8: rows that did not come leave S and join the rest of their clusters.
void CpuAttention::drop_missing(std::int32_t layer, LayerGroup& group, Scratch& work) {
  group.any_fault = std::ranges::any_of(group.pages, &SelectedPage::missing);
  if (!group.any_fault) return;
  const std::span<const HeadIndex> table = group.context->table(layer, group.kv_head);
  const TableSize size = table_size(table.data(), static_cast<std::int32_t>(table.size()));
  if (group.everything) {
    // Nothing was ranked, but the rests need the codes' logits now. Everything is selected again,
    // in the same order.
    rank(layer, group, work, {.budget = size.indexed_rows, .breadth = kAllClusters});
  }
  work.faulty.assign(static_cast<std::size_t>(size.clusters), 0);
  work.first_cluster.assign(1, 0);
  for (const HeadIndex& segment : table) {
    work.first_cluster.push_back(work.first_cluster.back() + segment.clusters.count);
  }
  for (const SelectedPage& page : group.pages) {
    if (!page.missing()) continue;
    for (std::uint32_t i = page.begin; i < page.end; ++i) {
      const TableRow& at = group.selected[i];
      const auto segment = static_cast<std::size_t>(at.segment);
      const std::int32_t cluster = cluster_of(table[segment].clusters, at.row);
      work.faulty[static_cast<std::size_t>(work.first_cluster[segment] + cluster)] = 1;
    }
  }
  group.drop_missing();
}

// The rows of S as runs of the pages that hold them.
void CpuAttention::list_runs(const LayerGroup& group, Scratch& work) {
  work.runs.clear();
  for (const SelectedPage& page : group.pages) {
    const std::byte* bytes = page.slot == HotPool::kNoSlot ? page.bytes : slot(page.slot);
    std::uint64_t mask = 0;
    for (std::uint32_t i = page.begin; i < page.end; ++i) {
      mask |= std::uint64_t{1} << (group.selected[i].row % shape_.page_rows);
    }
    work.runs.push_back({.rows = reinterpret_cast<const Bf16*>(bytes), .mask = mask});
  }
}

void CpuAttention::attend_selected(const LayerCall& call, LayerGroup& group, Scratch& work) {
  const HeadShape shape = shape_.head();
  const std::span<const HeadIndex> table = group.context->table(call.layer, group.kv_head);
  drop_missing(call.layer, group, work);
  list_runs(group, work);
  const bool tail = !group.everything || group.any_fault;
  const auto segments = static_cast<std::int32_t>(table.size());
  if (tail) {
    fit(work.attend, attend_scratch_floats(group.row_count, table_size(table.data(), segments),
                                           static_cast<std::int32_t>(group.selected.size())));
  }
  work.chosen.resize(group.row_count, shape.d_v);
  const AttendGroup chosen{.row_count = group.row_count,
                           .q = work.q.data(),
                           .run_count = static_cast<std::int32_t>(work.runs.size()),
                           .runs = work.runs.data(),
                           .segment_count = tail ? segments : 0,
                           .segments = table.data(),
                           .cluster_logit = work.cluster_logit.data(),
                           .candidate = work.candidate.data(),
                           .token_logit = work.token_logit.data(),
                           .selected_count = static_cast<std::int32_t>(group.selected.size()),
                           .selected = group.selected.data(),
                           .faulty = group.any_fault ? work.faulty.data() : nullptr,
                           .scratch = work.attend.data(),
                           .result = work.chosen.view()};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &chosen});
  const Partial parts[] = {work.exact.view(), work.chosen.view()};
  work.merged.resize(group.row_count, shape.d_v);
  kernels_.merge({.d_v = shape.d_v,
                  .row_count = group.row_count,
                  .part_count = 2,
                  .parts = parts,
                  .result = work.merged.view()});
  const HeadSlope& slope = group.context->slope(call.layer, group.kv_head);
  if (tail && !slope.empty()) {
    kernels_.add_slope({.shape = shape,
                        .slope = slope.view(),
                        .row_count = group.row_count,
                        .q = work.q.data(),
                        .drift = work.merged.drift.data(),
                        .out = work.merged.out.data()});
  }
  group.tail.assign(work.merged.tail.begin(), work.merged.tail.end());
  group.fault.assign(work.merged.fault.begin(), work.merged.fault.end());
  write_result(shape_, call, group, work.merged.out.data());
}

}  // namespace icefield
