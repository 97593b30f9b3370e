#include "bench/support/selection_fixture.h"

#include "common/check.h"

namespace icefield {
namespace {

void poison(std::vector<float>& values, std::size_t count) { values.assign(count, NAN); }

}  // namespace

GroupFixture::GroupFixture(const Kernels& kernels_in, HeadShape shape_in,
                           std::vector<HeadIndex> segments_in,
                           std::vector<const Bf16*> stored_rows_in, std::vector<float> q_in,
                           std::vector<float> exact_lse_in)
    : kernels(kernels_in),
      shape(shape_in),
      segments(std::move(segments_in)),
      stored_rows(std::move(stored_rows_in)),
      size(table_size(segments.data(), static_cast<std::int32_t>(segments.size()))),
      q(std::move(q_in)),
      q_rotated(q.size()),
      exact_lse(std::move(exact_lse_in)) {
  rotate(q.data(), rows(), shape.d_k, q_rotated.data());
}

ScoreListsGroup GroupFixture::score_lists_group() {
  const auto g = static_cast<std::size_t>(rows());
  poison(list_logit, g * static_cast<std::size_t>(size.lists));
  poison(reference_level, g);
  poison(segment_mass, segments.size());
  return {.row_count = rows(),
          .q = q.data(),
          .exact_lse = exact_lse.data(),
          .segment_count = static_cast<std::int32_t>(segments.size()),
          .segments = segments.data(),
          .list_logit = list_logit.data(),
          .reference_level = reference_level.data(),
          .segment_mass = segment_mass.data()};
}

void GroupFixture::score_lists() {
  const ScoreListsGroup group = score_lists_group();
  kernels.score_lists({.shape = shape, .group_count = 1, .groups = &group});
}

ProposeGroup GroupFixture::propose_group(const SelectionRule& rule) {
  const auto clusters = static_cast<std::size_t>(size.clusters);
  poison(cluster_logit, static_cast<std::size_t>(rows()) * clusters);
  poison(cluster_vote, clusters);
  candidate.assign(clusters, 77);
  order_.resize(clusters);
  return {.row_count = rows(),
          .q = q.data(),
          .reference_level = reference_level.data(),
          .segment_count = static_cast<std::int32_t>(segments.size()),
          .segments = segments.data(),
          .rule = rule,
          .cluster_logit = cluster_logit.data(),
          .cluster_vote = cluster_vote.data(),
          .order = order_.data(),
          .candidate = candidate.data()};
}

void GroupFixture::propose(const SelectionRule& rule) {
  const ProposeGroup group = propose_group(rule);
  kernels.propose({.shape = shape, .group_count = 1, .groups = &group});
}

RankGroup GroupFixture::rank_group(const SelectionRule& rule) {
  const auto all_rows = static_cast<std::size_t>(size.rows);
  poison(token_logit, static_cast<std::size_t>(rows()) * all_rows);
  poison(vote, all_rows);
  std::int32_t most = std::min(rule.budget, size.indexed_rows);
  std::int32_t total = most;
  if (rule.segment_budgets != nullptr) {
    most = total = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
      const std::int32_t budget = std::min(rule.segment_budgets[s], segments[s].indexed_rows());
      most = std::max(most, budget);
      total += budget;
    }
  }
  ranking_.resize(static_cast<std::size_t>(rank_scratch_rows(most)));
  selected.assign(static_cast<std::size_t>(total), TableRow{-1, -1});
  selected_count_ = -1;
  return {.row_count = rows(),
          .q_rotated = q_rotated.data(),
          .reference_level = reference_level.data(),
          .segment_count = static_cast<std::int32_t>(segments.size()),
          .segments = segments.data(),
          .cluster_logit = cluster_logit.data(),
          .candidate = candidate.data(),
          .rule = rule,
          .token_logit = token_logit.data(),
          .vote = vote.data(),
          .ranking = ranking_.data(),
          .selected = selected.data(),
          .selected_count = &selected_count_};
}

void GroupFixture::rank(const SelectionRule& rule) {
  const RankGroup group = rank_group(rule);
  kernels.rank({.shape = shape, .group_count = 1, .groups = &group});
  keep_selected();
}

void GroupFixture::keep_selected() {
  ICE_CHECK(selected_count_ >= 0 && selected_count_ <= static_cast<std::int32_t>(selected.size()));
  selected.resize(static_cast<std::size_t>(selected_count_));
}

void GroupFixture::select(const SelectionRule& rule) {
  score_lists();
  propose(rule);
  rank(rule);
}

AttendGroup GroupFixture::attend_group(PartialBuffer& result,
                                       const std::vector<SegmentAccount>& accounts,
                                       const std::vector<std::uint8_t>& faulty) {
  runs_.clear();
  for (const TableRow& at : selected) {
    runs_.push_back({.rows = stored_rows[static_cast<std::size_t>(at.segment)] +
                             static_cast<std::int64_t>(at.row) * (shape.d_k + shape.d_v),
                     .mask = 1});
  }
  const auto selected_count = static_cast<std::int32_t>(selected.size());
  poison(scratch_, static_cast<std::size_t>(attend_scratch_floats(rows(), size, selected_count)));
  return {.row_count = rows(),
          .q = q.data(),
          .run_count = static_cast<std::int32_t>(runs_.size()),
          .runs = runs_.data(),
          .segment_count = static_cast<std::int32_t>(segments.size()),
          .segments = segments.data(),
          .accounts = accounts.empty() ? nullptr : accounts.data(),
          .cluster_logit = cluster_logit.data(),
          .candidate = candidate.data(),
          .token_logit = token_logit.data(),
          .selected_count = selected_count,
          .selected = selected.data(),
          .faulty = faulty.empty() ? nullptr : faulty.data(),
          .scratch = scratch_.data(),
          .result = result.view()};
}

PartialBuffer GroupFixture::attend(const std::vector<SegmentAccount>& accounts,
                                   const std::vector<std::uint8_t>& faulty) {
  PartialBuffer result(rows(), shape.d_v);
  const AttendGroup group = attend_group(result, accounts, faulty);
  kernels.attend({.shape = shape, .group_count = 1, .groups = &group});
  return result;
}

std::vector<RowRun> runs_of(const Bf16* rows, std::int64_t count, std::int64_t row_elements) {
  std::vector<RowRun> runs;
  for (std::int64_t first = 0; first < count; first += RowRun::kMaxRows) {
    const std::int64_t in_run = std::min<std::int64_t>(RowRun::kMaxRows, count - first);
    runs.push_back({.rows = rows + first * row_elements,
                    .mask = in_run == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << in_run) - 1});
  }
  return runs;
}

PartialBuffer attend_rows(const Kernels& kernels, const HeadShape& shape,
                          const std::vector<float>& q, const Bf16* rows, std::int64_t count,
                          const std::vector<std::int32_t>& hidden) {
  const auto g = static_cast<std::int32_t>(q.size()) / shape.d_k;
  const std::vector<RowRun> runs = runs_of(rows, count, shape.d_k + shape.d_v);
  PartialBuffer result(g, shape.d_v);
  const AttendGroup group{.row_count = g,
                          .q = q.data(),
                          .run_count = static_cast<std::int32_t>(runs.size()),
                          .runs = runs.data(),
                          .hidden = hidden.empty() ? nullptr : hidden.data(),
                          .result = result.view()};
  kernels.attend({.shape = shape, .group_count = 1, .groups = &group});
  return result;
}

PartialBuffer merge(const Kernels& kernels, std::int32_t d_v, std::vector<PartialBuffer*> parts) {
  const auto rows = static_cast<std::int32_t>(parts[0]->lse.size());
  std::vector<Partial> views;
  for (PartialBuffer* part : parts) views.push_back(part->view());
  PartialBuffer result(rows, d_v);
  kernels.merge({.d_v = d_v,
                 .row_count = rows,
                 .part_count = static_cast<std::int32_t>(views.size()),
                 .parts = views.data(),
                 .result = result.view()});
  return result;
}

}  // namespace icefield
