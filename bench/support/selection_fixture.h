// bench/support/selection_fixture.h — runs the selection and attention kernels of one group with
// memory of its own, step by step or all at once.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/rotation.h"

namespace icefield {

// Partial results of G rows.
struct PartialBuffer {
  std::vector<float> out, lse, tail, fault, drift;

  PartialBuffer(std::int32_t rows, std::int32_t d_v)
      : out(static_cast<std::size_t>(rows * d_v), NAN),
        lse(static_cast<std::size_t>(rows), NAN),
        tail(lse),
        fault(lse),
        drift(lse) {}
  Partial view() { return {out.data(), lse.data(), tail.data(), fault.data(), drift.data()}; }
};

// One group over one segment table. The arrays are poisoned with NaN before every kernel call.
class GroupFixture {
 public:
  GroupFixture(const Kernels& kernels, HeadShape shape, std::vector<HeadIndex> segments,
               std::vector<const Bf16*> stored_rows, std::vector<float> q,
               std::vector<float> exact_lse);

  void score_lists();
  void propose(const SelectionRule& rule);
  void rank(const SelectionRule& rule);
  void select(const SelectionRule& rule);  // the three above

  // What those calls pass to the kernels, for calls of several groups. The arrays are the fixture's
  // and valid until its next call; after a rank of several groups, keep_selected().
  ScoreListsGroup score_lists_group();
  ProposeGroup propose_group(const SelectionRule& rule);
  RankGroup rank_group(const SelectionRule& rule);
  void keep_selected();
  AttendGroup attend_group(PartialBuffer& result, const std::vector<SegmentAccount>& accounts,
                           const std::vector<std::uint8_t>& faulty);

  // Attends the selected rows and the tail.
  PartialBuffer attend(const std::vector<SegmentAccount>& accounts = {},
                       const std::vector<std::uint8_t>& faulty = {});

  std::int32_t rows() const { return static_cast<std::int32_t>(exact_lse.size()); }

  const Kernels& kernels;
  HeadShape shape;
  std::vector<HeadIndex> segments;
  std::vector<const Bf16*> stored_rows;  // of each segment
  TableSize size;

  std::vector<float> q, q_rotated, exact_lse;
  std::vector<float> list_logit, reference_level, segment_mass;
  std::vector<float> cluster_logit, cluster_vote;
  std::vector<std::uint8_t> candidate;
  std::vector<float> token_logit, vote;
  std::vector<TableRow> selected;

 private:
  std::vector<std::int32_t> order_;
  std::vector<RankedRow> ranking_;
  std::int32_t selected_count_ = -1;
  std::vector<RowRun> runs_;
  std::vector<float> scratch_;
};

// Runs of every row of `rows`, of `row_elements` each.
std::vector<RowRun> runs_of(const Bf16* rows, std::int64_t count, std::int64_t row_elements);

// Attention over exact rows only: every row of `rows` [count, d_k + d_v].
PartialBuffer attend_rows(const Kernels& kernels, const HeadShape& shape,
                          const std::vector<float>& q, const Bf16* rows, std::int64_t count,
                          const std::vector<std::int32_t>& hidden = {});

// Merges partial results in order.
PartialBuffer merge(const Kernels& kernels, std::int32_t d_v, std::vector<PartialBuffer*> parts);

}  // namespace icefield
