// worker/gpu_attention.h — attention on the GPU. No CUDA header is needed to include this one.
#pragma once

#include <memory>

#include "worker/gpu_copies.h"
#include "worker/gpu_layer.h"

namespace icefield {

// Segments' indexes, sinks, exact rows and the hot pool's pages are in the memory of the GPU. The
// host keeps its own of all but the pages: sealing reads rows there, fetching verifies against L2.
// Per layer new rows and queries go up, outputs come down. Where an item waits for pages
// (OnMiss::kFetch), S comes down between selection and attention; where none does, the layer is one
// recorded graph and the host learns afterwards what was selected.
//
// Errors   kUnavailable where there is no GPU, kUnimplemented for head dimensions without kernels
//          and for more than 128 query rows that share a selection, kInvalidArgument for steps of
//          more tokens than a launch has blocks for, kResourceExhausted when its memory is short.
// Threads  The worker's caller.
class GpuAttention : public LayerAttention {
 public:
  static Result<std::unique_ptr<GpuAttention>> create(const AttentionShape& shape);
  ~GpuAttention() override;

  Status resize_pool(std::int64_t slot_count) override;
  std::int32_t most_query_rows() const override { return GpuLayer::kMaxQueryRows; }
  Status begin_step(std::span<const StepItem> items) override;
  Status place(std::span<const ArrivedPage> pages) override;
  Status attend(const LayerCall& call, PageFinder& pages) override;

  // Memory of the GPU in use: what contexts have there, pool, scratch.
  std::int64_t gpu_bytes() const { return *used_; }
  // Layers that ran as a recorded graph, and how often one was recorded.
  std::int64_t graph_launches() const { return layer_.graph_launches(); }
  std::int64_t graphs_recorded() const { return layer_.graphs_recorded(); }

 private:
  GpuAttention(const AttentionShape& shape, std::int32_t processors, GpuStream stream);

  Status check_sizes(std::span<const StepItem> items) const;
  Status copy_segments(const Context& context);
  Status copy_context(Context& context);
  Status copy_rows(const LayerCall& call);
  Status make_room(ExactRows::Block& block);
  Status copy_block(std::int32_t layer, ExactRows::Block& block, std::int32_t rows);
  Status place_overflow(std::span<const ArrivedPage> pages);
  Status forget_overflow();
  std::int32_t* slot_of(PageKey key) const;

  const AttentionShape shape_;
  const std::shared_ptr<std::int64_t> used_ = std::make_shared<std::int64_t>(0);
  const GpuStream stream_;
  GpuBlock pool_;
  std::int64_t slot_count_ = 0;
  GpuBlock overflow_;                                    // pages without a slot, of one layer
  std::vector<std::int32_t*> in_overflow_;               // their entries in page_slot
  std::vector<std::weak_ptr<GpuSegmentCopy>> segments_;  // by number
  GpuStaging rows_staging_;
  GpuStaging pages_staging_;
  GpuLayer layer_;
};

}  // namespace icefield
