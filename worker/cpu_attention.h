// worker/cpu_attention.h — attention on the CPU: everything is where the host keeps it anyway.
#pragma once

#include <limits>
#include <vector>

#include "common/bytes.h"
#include "common/thread_pool.h"
#include "worker/layer_attention.h"

namespace icefield {

// Groups are spread over the pool of threads; results do not depend on its size. Allocates nothing
// after a step of the same shape in which no page is missed.
//
// Ownership  Borrows kernels and threads.
class CpuAttention : public LayerAttention {
 public:
  CpuAttention(const AttentionShape& shape, const Kernels& kernels, ThreadPool& threads)
      : shape_(shape), kernels_(kernels), threads_(threads) {}

  Status resize_pool(std::int64_t slot_count) override;
  std::int32_t most_query_rows() const override { return std::numeric_limits<std::int32_t>::max(); }
  Status begin_step(std::span<const StepItem> items) override;
  Status place(std::span<const ArrivedPage> pages) override;
  Status attend(const LayerCall& call, PageFinder& pages) override;

  // Which clusters of a group's segment table the last attend() ranked [clusters]; only of groups
  // that did not select everything.
  std::span<const std::uint8_t> candidates(std::size_t group) const {
    return scratch_[group].candidate;
  }

 private:
  // A partial result with memory of its own.
  struct PartialRows {
    std::vector<float> out, lse, tail, fault, drift;

    void resize(std::int32_t rows, std::int32_t d_v);
    Partial view() { return {out.data(), lse.data(), tail.data(), fault.data(), drift.data()}; }
  };
  // Memory of one group, reused from layer to layer and step to step.
  struct Scratch {
    std::vector<float> q, q_rotated;
    std::vector<std::int32_t> hidden;
    std::vector<RowRun> exact_runs, runs;
    PartialRows exact, chosen, merged;
    std::vector<float> list_logit, reference_level, segment_mass;
    std::vector<float> cluster_logit, cluster_vote, token_logit, vote, attend;
    std::vector<std::int32_t> order, first_cluster;
    std::vector<std::uint8_t> candidate, faulty;
    std::vector<RankedRow> ranking;
  };

  void attend_exact(const LayerCall& call, const LayerGroup& group, Scratch& work);
  void select(const LayerCall& call, LayerGroup& group, Scratch& work);
  void rank(std::int32_t layer, LayerGroup& group, Scratch& work, const SelectionRule& rule);
  void drop_missing(std::int32_t layer, LayerGroup& group, Scratch& work);
  void list_runs(const LayerGroup& group, Scratch& work);
  void attend_selected(const LayerCall& call, LayerGroup& group, Scratch& work);
  std::byte* slot(std::int32_t index) { return pool_.data() + index * shape_.page_bytes(); }

  const AttentionShape shape_;
  const Kernels& kernels_;
  ThreadPool& threads_;
  AlignedBytes pool_;
  std::vector<Scratch> scratch_;  // of each group
};

}  // namespace icefield
