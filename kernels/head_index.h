// kernels/head_index.h — the index of one (segment, layer, KV head), as the kernels scan it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "proto/part.h"

namespace icefield {

// Borrows the parts of a segment. What is in E (docs/formats/attention.md step 1) is left out: the
// sink by the format, the last extent, when a context's window covers it, by lowering the counts
// of `lists` and `clusters` and `end_row`.
struct HeadIndex {
  LevelView lists;
  LevelView clusters;
  CodesView codes;
  std::int32_t first_row = 0;  // rows [first_row, end_row) are indexed and not in E
  std::int32_t end_row = 0;

  std::int32_t indexed_rows() const { return end_row - first_row; }
};

// The same as a context sees it whose window covers the last extent.
inline HeadIndex without_last_extent(HeadIndex index) {
  const std::int32_t end = index.end_row - kExtentRows;
  for (LevelView* level : {&index.lists, &index.clusters}) {
    const std::uint16_t* first = level->first_row;
    level->count =
        static_cast<std::int32_t>(std::lower_bound(first, first + level->count, end) - first);
  }
  index.end_row = std::max(index.first_row, end);
  return index;
}

// What all groups of a call have in common.
struct HeadShape {
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  float beta = 0;  // the model's softmax scale
};

// Constants of the contract.
constexpr float kVoteVarianceCap = 4;         // on w σ, in levels and votes
constexpr float kTermVarianceCap = 1;         // on w σ, in tail terms
constexpr float kTermDriftCap = 2;            // on 2 w σ, in the drift of tail terms
constexpr float kVoteExponentCap = 80;        // on logit - R in votes
constexpr float kLeastExponent = -87;         // e^x is 0 below: fp32 ends there
constexpr std::int32_t kMaxQueryTokens = 16;  // of one call
constexpr std::int32_t kMinCandidateRows = 512;
// Clusters whose vote is e^-7 or more are candidates, up to so many rows of them.
constexpr float kReachDeviations = 2.5f;
constexpr float kReachingVote = 9.118820e-4f;
constexpr std::int32_t kMostReachingRows = 8192;
constexpr std::int32_t kAllClusters = 0;  // as a breadth: every cluster is a candidate
constexpr std::int32_t kLeastRuleBreadth = 32;
constexpr std::int32_t kLeastRuleRows = 8192;
constexpr std::int32_t kRuleBreadth = -1;  // stands for it where the budget is not known yet

// Rows and clusters of a segment table, one segment after the other: the sizes of the per-row and
// per-cluster arrays of a group.
struct TableSize {
  std::int32_t lists = 0;
  std::int32_t clusters = 0;
  std::int32_t rows = 0;          // stored rows, whether indexed or not
  std::int32_t indexed_rows = 0;  // N of the contract
};
inline TableSize table_size(const HeadIndex* segments, std::int32_t segment_count) {
  TableSize size;
  for (std::int32_t s = 0; s < segment_count; ++s) {
    size.lists += segments[s].lists.count;
    size.clusters += segments[s].clusters.count;
    size.rows += segments[s].codes.row_count;
    size.indexed_rows += segments[s].indexed_rows();
  }
  return size;
}

// How much is selected, and how widely clusters propose (steps 4 and 5).
struct SelectionRule {
  // B over the union of the segments, 0 or more. More than there are indexed rows counts as all of
  // them, here and in B_s; memory that the kernels are given has room for what then counts.
  std::int32_t budget = 0;
  // B_s: one selection per segment instead of one over the union. [segment_count], or null.
  const std::int32_t* segment_budgets = nullptr;
  std::int32_t breadth = kAllClusters;  // M, resolved: not kRuleBreadth
};

// What the tokens of C add up to at least (step 5), of `indexed_rows` tokens, of which
// `reaching_rows` are in clusters whose vote is kReachingVote or more, and a budget above 0.
constexpr std::int64_t candidate_rows(std::int32_t breadth, std::int32_t budget,
                                      std::int32_t indexed_rows, std::int32_t reaching_rows) {
  if (breadth == kAllClusters) return indexed_rows;
  const std::int64_t wanted =
      std::max({std::int64_t{breadth} * budget, std::int64_t{kMinCandidateRows},
                std::int64_t{std::min(reaching_rows, kMostReachingRows)}});
  return std::min<std::int64_t>(indexed_rows, wanted);
}

// M of a call with budget B: `breadth`, or by the rule (step 5) 32, and more for small budgets, so
// that every code of a context of up to 8 192 tokens is ranked.
constexpr std::int32_t breadth_of(std::int32_t breadth, std::int32_t budget) {
  if (breadth != kRuleBreadth) return breadth;
  if (budget <= 0) return kLeastRuleBreadth;
  return std::max(kLeastRuleBreadth, (kLeastRuleRows + budget - 1) / budget);
}

// B of a call of `tokens` query tokens (step 4).
inline std::int32_t call_budget(std::int64_t budget_per_token, std::int32_t tokens,
                                std::int32_t indexed_rows) {
  const std::int64_t wanted = budget_per_token * (tokens < 4 ? tokens : 4);
  return wanted < indexed_rows ? static_cast<std::int32_t>(wanted) : indexed_rows;
}

}  // namespace icefield
