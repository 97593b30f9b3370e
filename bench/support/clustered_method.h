// bench/support/clustered_method.h — ours, through the product's kernels.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "bench/support/head_fixture.h"
#include "bench/support/method.h"

namespace icefield {

// The index of one head over all segments of a context.
struct ClusteredIndex {
  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::vector<HeadIndex> segments;
  std::vector<std::int32_t> first_token;  // of each segment
  TableSize size;
  HeadSlope slope;  // of all segments together

  // Cuts [0, set.end_indexed), a multiple of 256, into the segments that the product would seal.
  void build(const Kernels& kernels, const KeySet& set);

  std::int32_t token_of(const TableRow& at) const;
  const Bf16* row(const TableRow& at) const;
  TableRow table_row(std::int32_t index) const;  // of a place in the per-row arrays
  std::int64_t bytes() const;                    // L0 to L2
  // What the tail reads of every cluster.
  std::int64_t tail_bytes() const;
};

// What a step reads of the index of one head: every list and every cluster is scored, the panels of
// the candidates' codes are ranked, the tail reads the mean value of every cluster and the slope.
struct IndexReads {
  std::int64_t bytes = 0;
  std::int64_t rows_ranked = 0;
};
// candidate [clusters of all segments].
IndexReads index_reads(std::span<const HeadIndex> segments, const HeadSlope& slope,
                       const std::uint8_t* candidate);

class ClusteredMethod final : public Method {
 public:
  // breadth: kAllClusters, a number, or kRuleBreadth.
  ClusteredMethod(const Kernels& kernels, const KeySet& set, std::int32_t breadth);

  void build() override;
  void select(const MethodQuery& query) override;
  void attend(const MethodQuery& query, Partial result) override;
  std::vector<std::int32_t> selected() const override;
  MethodCost cost() const override;
  std::int64_t index_bytes() const override { return index_.bytes(); }

  // The two halves of select(): what proposes candidates, and what ranks them.
  void propose(const MethodQuery& query);
  void rank(const MethodQuery& query);

  const ClusteredIndex& index() const { return index_; }

 private:
  SelectionRule rule(const MethodQuery& query) const;

  const Kernels& kernels_;
  const KeySet& set_;
  const std::int32_t breadth_;
  const HeadShape shape_;
  ClusteredIndex index_;

  std::vector<float> q_rotated_, list_logit_, reference_level_, segment_mass_;
  std::vector<float> cluster_logit_, cluster_vote_, token_logit_, vote_, scratch_;
  std::vector<std::int32_t> order_;
  std::vector<std::uint8_t> candidate_;
  std::vector<RankedRow> ranking_;
  std::vector<TableRow> selected_;
  std::int32_t selected_count_ = 0;
  std::vector<RowRun> runs_;
};

}  // namespace icefield
