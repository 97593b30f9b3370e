#include "bench/support/clustered_method.h"

#include <algorithm>

#include "common/check.h"
#include "kernels/rotation.h"

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

// Bytes of one cluster or list that are read to score it.
std::int64_t score_bytes(const LevelView& level) {
  constexpr std::int64_t kScaleCountSigma = 4 + 4 + 2;
  return level.d_k + kScaleCountSigma;
}

// Panels of codes that hold a row of a candidate.
std::int64_t ranked_panels(const HeadIndex& segment, const std::uint8_t* candidate) {
  std::int64_t panels = 0;
  std::int32_t next = 0;
  for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
    if (candidate[c] == 0) continue;
    const std::int32_t first = segment.clusters.first_row[c];
    const std::int32_t last = (first + segment.clusters.token_count[c] - 1) / kCodePanel;
    panels += std::max(0, last - std::max(first / kCodePanel, next) + 1);
    next = std::max(next, last + 1);
  }
  return panels;
}

// Bytes that the tail reads: the mean value of every cluster, and the slope.
std::int64_t tail_reads(std::span<const HeadIndex> segments, const HeadSlope& slope) {
  constexpr std::int64_t kScale = 4;
  std::int64_t bytes = slope.bytes();
  for (const HeadIndex& segment : segments) {
    bytes += segment.clusters.count * (segment.clusters.d_v + kScale);
  }
  return bytes;
}

}  // namespace

void ClusteredIndex::build(const Kernels& kernels, const KeySet& set) {
  heads.clear();
  segments.clear();
  first_token.clear();
  ICE_CHECK(set.end_indexed % kExtentRows == 0);
  std::int32_t begin = 0;
  for (std::size_t i = kSegmentTokens.size(); i-- > 0;) {
    const std::int32_t rows = kSegmentTokens[i];
    for (; begin + rows <= set.end_indexed; begin += rows) {
      heads.push_back(std::make_unique<HeadFixture>());
      heads.back()->build(kernels, set.row(begin),
                          {.kv_head_count = 1,
                           .d_k = set.d_k,
                           .d_v = set.d_v,
                           .row_count = rows,
                           .first_indexed_row = begin == 0 ? set.first_indexed : 0});
      segments.push_back(heads.back()->index);
      first_token.push_back(begin);
    }
  }
  size = table_size(segments.data(), static_cast<std::int32_t>(segments.size()));
  slope = mean_slope(segments);
}

std::int32_t ClusteredIndex::token_of(const TableRow& place) const {
  return first_token[at(place.segment)] + heads[at(place.segment)]->partition.order[at(place.row)];
}

const Bf16* ClusteredIndex::row(const TableRow& place) const {
  return heads[at(place.segment)]->stored_row(place.row);
}

TableRow ClusteredIndex::table_row(std::int32_t index) const {
  std::int32_t segment = 0;
  for (; index >= segments[at(segment)].codes.row_count; ++segment) {
    index -= segments[at(segment)].codes.row_count;
  }
  return {segment, index};
}

std::int64_t ClusteredIndex::bytes() const {
  std::size_t sum = 0;
  for (const auto& head : heads) {
    sum += head->lists.size() + head->clusters.size() + head->codes.size();
  }
  return static_cast<std::int64_t>(sum);
}

std::int64_t ClusteredIndex::tail_bytes() const { return tail_reads(segments, slope); }

IndexReads index_reads(std::span<const HeadIndex> segments, const HeadSlope& slope,
                       const std::uint8_t* candidate) {
  IndexReads reads{.bytes = tail_reads(segments, slope)};
  for (const HeadIndex& segment : segments) {
    const std::int64_t code_bytes = kCodePanel * (segment.clusters.d_k * kCodeBits / 8 + 2);
    reads.bytes += segment.lists.count * score_bytes(segment.lists) +
                   segment.clusters.count * score_bytes(segment.clusters) +
                   ranked_panels(segment, candidate) * code_bytes;
    for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
      reads.rows_ranked += candidate[c] * segment.clusters.token_count[c];
    }
    candidate += segment.clusters.count;
  }
  return reads;
}

ClusteredMethod::ClusteredMethod(const Kernels& kernels, const KeySet& set, std::int32_t breadth)
    : kernels_(kernels),
      set_(set),
      breadth_(breadth),
      shape_{.d_k = set.d_k, .d_v = set.d_v, .beta = set.beta} {}

SelectionRule ClusteredMethod::rule(const MethodQuery& query) const {
  const std::int32_t budget = std::min(query.budget, index_.size.indexed_rows);
  return {.budget = budget, .breadth = breadth_of(breadth_, budget)};
}

void ClusteredMethod::build() {
  index_.build(kernels_, set_);
  const auto g = at(set_.group);
  const TableSize& size = index_.size;
  q_rotated_.resize(g * at(set_.d_k));
  list_logit_.resize(g * at(size.lists));
  reference_level_.resize(g);
  segment_mass_.resize(index_.segments.size());
  cluster_logit_.resize(g * at(size.clusters));
  cluster_vote_.resize(at(size.clusters));
  order_.resize(at(size.clusters));
  candidate_.resize(at(size.clusters));
  token_logit_.resize(g * at(size.rows));
  vote_.resize(at(size.rows));
}

void ClusteredMethod::select(const MethodQuery& query) {
  propose(query);
  rank(query);
}

void ClusteredMethod::propose(const MethodQuery& query) {
  const auto segment_count = static_cast<std::int32_t>(index_.segments.size());
  const ScoreListsGroup lists{.row_count = set_.group,
                              .q = query.q,
                              .exact_lse = query.exact_lse,
                              .segment_count = segment_count,
                              .segments = index_.segments.data(),
                              .list_logit = list_logit_.data(),
                              .reference_level = reference_level_.data(),
                              .segment_mass = segment_mass_.data()};
  kernels_.score_lists({.shape = shape_, .group_count = 1, .groups = &lists});
  const ProposeGroup group{.row_count = set_.group,
                           .q = query.q,
                           .reference_level = reference_level_.data(),
                           .segment_count = segment_count,
                           .segments = index_.segments.data(),
                           .rule = rule(query),
                           .cluster_logit = cluster_logit_.data(),
                           .cluster_vote = cluster_vote_.data(),
                           .order = order_.data(),
                           .candidate = candidate_.data()};
  kernels_.propose({.shape = shape_, .group_count = 1, .groups = &group});
}

void ClusteredMethod::rank(const MethodQuery& query) {
  const SelectionRule rule = this->rule(query);
  selected_.resize(at(rule.budget));
  ranking_.resize(at(rank_scratch_rows(rule.budget)));
  rotate(query.q, set_.group, set_.d_k, q_rotated_.data());
  const RankGroup group{.row_count = set_.group,
                        .q_rotated = q_rotated_.data(),
                        .reference_level = reference_level_.data(),
                        .segment_count = static_cast<std::int32_t>(index_.segments.size()),
                        .segments = index_.segments.data(),
                        .cluster_logit = cluster_logit_.data(),
                        .candidate = candidate_.data(),
                        .rule = rule,
                        .token_logit = token_logit_.data(),
                        .vote = vote_.data(),
                        .ranking = ranking_.data(),
                        .selected = selected_.data(),
                        .selected_count = &selected_count_};
  kernels_.rank({.shape = shape_, .group_count = 1, .groups = &group});
}

void ClusteredMethod::attend(const MethodQuery& query, Partial result) {
  scratch_.resize(at(attend_scratch_floats(set_.group, index_.size, selected_count_)));
  runs_.clear();
  for (std::int32_t i = 0; i < selected_count_; ++i) {
    runs_.push_back({.rows = index_.row(selected_[at(i)]), .mask = 1});
  }
  const AttendGroup group{.row_count = set_.group,
                          .q = query.q,
                          .run_count = selected_count_,
                          .runs = runs_.data(),
                          .segment_count = static_cast<std::int32_t>(index_.segments.size()),
                          .segments = index_.segments.data(),
                          .cluster_logit = cluster_logit_.data(),
                          .candidate = candidate_.data(),
                          .token_logit = token_logit_.data(),
                          .selected_count = selected_count_,
                          .selected = selected_.data(),
                          .scratch = scratch_.data(),
                          .result = result};
  kernels_.attend({.shape = shape_, .group_count = 1, .groups = &group});
  if (index_.slope.empty()) return;
  kernels_.add_slope({.shape = shape_,
                      .slope = index_.slope.view(),
                      .row_count = set_.group,
                      .q = query.q,
                      .drift = result.drift,
                      .out = result.out});
}

std::vector<std::int32_t> ClusteredMethod::selected() const {
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < selected_count_; ++i) {
    tokens.push_back(index_.token_of(selected_[at(i)]));
  }
  return tokens;
}

MethodCost ClusteredMethod::cost() const {
  const std::int64_t row_bytes = static_cast<std::int64_t>(sizeof(Bf16)) * set_.width();
  const IndexReads reads = index_reads(index_.segments, index_.slope, candidate_.data());
  return {.pages = selected_count_,
          .page_bytes = selected_count_ * row_bytes,
          .index_bytes_read = reads.bytes,
          .rows_ranked = reads.rows_ranked};
}

}  // namespace icefield
