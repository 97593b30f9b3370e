// kernels/select.h — which rows a group of query rows attends exactly: score lists, propose
// clusters, rank their tokens (docs/formats/attention.md steps 3 to 5).
//
// A group is one (context, KV head): G query rows that share a selection, and the segment table of
// the context. A call does a batch of groups; they do not depend on each other. Per-cluster and
// per-row arrays of a group hold its segments one after the other (table_size()). All memory is
// the caller's; the kernels allocate nothing and keep nothing.
#pragma once

#include <cstdint>

#include "kernels/head_index.h"

namespace icefield {

// ---- step 3: the reference level, from what a worker always holds

struct ScoreListsGroup {
  std::int32_t row_count = 0;        // G
  const float* q = nullptr;          // [G, d_k]
  const float* exact_lse = nullptr;  // [G] LSE of the logits of E; -inf where E is empty
  std::int32_t segment_count = 0;
  const HeadIndex* segments = nullptr;  // [segment_count], oldest first

  float* list_logit = nullptr;       // out [G, lists] λ
  float* reference_level = nullptr;  // out [G] R
  float* segment_mass = nullptr;     // out [segment_count] m_s
};
struct ScoreListsArgs {
  HeadShape shape;
  std::int32_t group_count = 0;
  const ScoreListsGroup* groups = nullptr;
};
void score_lists_reference(const ScoreListsArgs& args);
void score_lists_cpu(const ScoreListsArgs& args);

// ---- step 4: a budget split over segments that select on their own

// Fills budgets[segment_count] with B_s in proportion to mass (to rows where all masses are 0), by
// largest remainder, ties to the older segment, at most rows[s] each; the excess is handed on in
// the same way. Σ B_s = min(budget, Σ rows).
void split_budget(std::int32_t budget, std::int32_t segment_count, const float* mass,
                  const std::int32_t* rows, std::int32_t* budgets);

// ---- step 5, propose

struct ProposeGroup {
  std::int32_t row_count = 0;
  const float* q = nullptr;                // [G, d_k]
  const float* reference_level = nullptr;  // [G]
  std::int32_t segment_count = 0;
  const HeadIndex* segments = nullptr;
  SelectionRule rule;

  float* cluster_logit = nullptr;     // out [G, clusters] β q·μ
  float* cluster_vote = nullptr;      // scratch [clusters] P
  std::int32_t* order = nullptr;      // scratch [clusters]
  std::uint8_t* candidate = nullptr;  // out [clusters] 1: in C
};
struct ProposeArgs {
  HeadShape shape;
  std::int32_t group_count = 0;
  const ProposeGroup* groups = nullptr;
};
void propose_reference(const ProposeArgs& args);
void propose_cpu(const ProposeArgs& args);

// ---- step 5, rank

// A row of the segment table.
struct TableRow {
  std::int32_t segment = 0;
  std::int32_t row = 0;  // stored row in the segment
  friend bool operator==(const TableRow&, const TableRow&) = default;
};

// A row on its way into the selection.
struct RankedRow {
  float vote = 0;
  std::int32_t index = 0;  // in the group's per-row arrays
};
// Rows of scratch that selecting `budget` rows (the largest B_s, where they are given) needs; at
// most the indexed rows count.
constexpr std::int64_t rank_scratch_rows(std::int32_t budget) {
  return 2 * static_cast<std::int64_t>(budget) + 64;
}

struct RankGroup {
  std::int32_t row_count = 0;
  const float* q_rotated = nullptr;        // [G, d_k] rotate() of q
  const float* reference_level = nullptr;  // [G]
  std::int32_t segment_count = 0;
  const HeadIndex* segments = nullptr;
  const float* cluster_logit = nullptr;     // [G, clusters] from propose
  const std::uint8_t* candidate = nullptr;  // [clusters] from propose
  SelectionRule rule;

  float* token_logit = nullptr;  // out [G, rows] x̂ of the rows of C; others are undefined
  // out [rows] p of the rows of C, or x̂ - R where G = 1, which orders them alike (the largest
  // float where it is not a number); others are undefined
  float* vote = nullptr;
  RankedRow* ranking = nullptr;  // scratch rank_scratch_rows()
  // out [min(B, N)], or of Σ min(B_s, N_s): S, ascending
  TableRow* selected = nullptr;
  std::int32_t* selected_count = nullptr;  // out: as many, whatever the votes are
};
struct RankArgs {
  HeadShape shape;
  std::int32_t group_count = 0;
  const RankGroup* groups = nullptr;
};
void rank_reference(const RankArgs& args);
void rank_cpu(const RankArgs& args);

}  // namespace icefield
