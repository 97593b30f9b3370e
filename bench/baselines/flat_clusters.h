// bench/baselines/flat_clusters.h — RetroInfer's rule: flat clusters, fetched whole, the rest
// estimated from means.
#pragma once

#include "bench/baselines/pages.h"

namespace icefield {

// Spherical k-means on the centred keys of 8 192 tokens at a time, ten iterations, one cluster per
// 16 tokens. Clusters are ranked by the sum over query rows of softmax(ln n + β q·mean) and fetched
// in that order until they hold the budget (the last one may exceed it); every other cluster counts
// as n tokens at its mean, n e^(β q·mean), with its mean value. The paper estimates a quarter of
// the clusters and drops the rest; here all of them are, which can only help. Means are int8 where
// the paper has bf16: a smaller and faster index, measured to lose nothing.
class FlatClusters final : public Method {
 public:
  FlatClusters(const Kernels& kernels, const KeySet& set);

  void build() override;
  void select(const MethodQuery& query) override;
  void attend(const MethodQuery& query, Partial result) override;
  std::vector<std::int32_t> selected() const override;
  MethodCost cost() const override;
  std::int64_t index_bytes() const override;

  const std::vector<Page>& clusters() const { return clusters_; }  // runs of stored rows
  const std::vector<std::int32_t>& order() const { return order_; }

 private:
  // A cluster as the attend kernel sees it: in pieces of at most kMaxClusterTokens with the same
  // mean, which together are the same term. A view is a run of pieces of at most kMaxSegmentTokens.
  struct View {
    AlignedBytes part;
    HeadIndex index;
    std::int32_t first_piece = 0;
    std::int32_t first_row = 0;  // stored row
  };
  void cluster_keys();
  void describe();
  void add_view(std::size_t begin, std::size_t end, const std::vector<float>& value_means);

  const Kernels& kernels_;
  const KeySet& set_;
  std::vector<std::int32_t> order_;  // token of each stored row
  std::vector<Bf16> rows_;           // in stored order
  std::vector<Page> clusters_;
  Int8Vectors means_;
  std::vector<float> ln_count_;  // by cluster

  std::vector<Page> pieces_;
  std::vector<std::int32_t> cluster_of_;  // by piece
  std::vector<View> views_;
  std::vector<HeadIndex> segments_;

  std::vector<float> dot_;    // [group, padded clusters] β q·mean
  std::vector<float> logit_;  // the same with ln n
  std::vector<float> vote_, scratch_;
  std::vector<Scored> best_;
  std::vector<std::int32_t> chosen_;  // ascending
  std::vector<float> piece_dot_, token_logit_, attend_scratch_;
  std::vector<std::uint8_t> candidate_;  // by piece: chosen
  std::vector<TableRow> selected_;
  std::vector<RowRun> runs_;
};

}  // namespace icefield
