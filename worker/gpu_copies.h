// worker/gpu_copies.h — what the GPU keeps of segments, sinks, windows and tables.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/gpu.h"
#include "kernels/gpu_table.h"
#include "kernels/page_moves_cuda.h"
#include "worker/layer_attention.h"

namespace icefield {

// Memory of the GPU that counts itself.
//
// Threads  One at a time.
class GpuBlock {
 public:
  GpuBlock() = default;
  GpuBlock(GpuBlock&&) noexcept = default;
  GpuBlock& operator=(GpuBlock&& other) noexcept;
  ~GpuBlock() {
    if (used_ != nullptr) *used_ -= memory_.bytes();
  }

  static Result<GpuBlock> allocate(std::int64_t bytes, std::shared_ptr<std::int64_t> used);

  std::byte* data() const { return memory_.data(); }
  std::int64_t bytes() const { return memory_.bytes(); }

 private:
  GpuMemory memory_;
  std::shared_ptr<std::int64_t> used_;  // bytes of all blocks
};

// One piece of memory: a block of exact rows, a sink.
struct GpuRows : DeviceCopy {
  explicit GpuRows(GpuBlock memory_in) : memory(std::move(memory_in)) {}
  GpuBlock memory;
};

// L0 to L2 of a segment, and which of its pages are in the hot pool.
class GpuSegmentCopy : public DeviceCopy {
 public:
  // `index` stays until the stream has been waited for.
  static Result<std::shared_ptr<GpuSegmentCopy>> make(const SegmentIndex& index,
                                                      const AttentionShape& shape,
                                                      std::shared_ptr<std::int64_t> used,
                                                      Stream stream);

  // The views of a host index, moved.
  HeadIndex moved(std::int32_t layer, const HeadIndex& index) const;

  // [rows / page_rows] of one (layer, KV head).
  std::int32_t* page_slots(std::int32_t layer, std::int32_t kv_head) const;
  std::int32_t* page_slot(std::int32_t layer, std::int32_t kv_head, std::int32_t first_row) const {
    return page_slots(layer, kv_head) + first_row / page_rows_;
  }
  Status forget_pages(Stream stream) const;

 private:
  // Where a part of the host is on the GPU.
  struct Moved {
    const std::byte* host = nullptr;
    const std::byte* gpu = nullptr;
  };
  struct LayerParts {
    Moved lists, clusters, codes;
  };
  static LevelView moved(const LevelView& level, const Moved& part);

  GpuBlock memory_;
  GpuBlock slots_;
  std::vector<LayerParts> parts_;
  std::int32_t kv_head_count_ = 0;
  std::int32_t page_rows_ = 1;
  std::int32_t pages_ = 0;  // of one (layer, KV head)
};

// The segment tables of a context, all layers and KV heads.
class GpuTables : public DeviceCopy {
 public:
  static Result<std::shared_ptr<GpuTables>> make(const Context& context,
                                                 const AttentionShape& shape,
                                                 std::shared_ptr<std::int64_t> used, Stream stream);

  std::int32_t segment_count() const { return segment_count_; }
  const GpuSegment* table(std::int32_t layer, std::int32_t kv_head) const;
  const TableSize& size(std::int32_t layer, std::int32_t kv_head) const {
    return sizes_[static_cast<std::size_t>(layer * kv_head_count_ + kv_head)];
  }

 private:
  std::int32_t segment_count_ = 0;
  std::int32_t kv_head_count_ = 0;
  std::vector<GpuSegment> host_;  // what was copied
  std::vector<TableSize> sizes_;  // [layer, KV head]
  GpuBlock memory_;               // [layer, KV head, segment]
};

// Slopes of a context.
class GpuSlopes : public DeviceCopy {
 public:
  static Result<std::shared_ptr<GpuSlopes>> make(std::span<const HeadSlope> heads,
                                                 std::shared_ptr<std::int64_t> used, Stream stream);
  const SlopeView& head(std::size_t index) const { return heads_[index]; }

 private:
  std::vector<SlopeView> heads_;  // [layer, KV head]; null where there is none
  GpuBlock memory_;
};

// Pages of one size (or exact rows: then a page is a row) and slot numbers on their way to where
// they belong: one copy and a launch for many.
//
// Threads  One at a time.
class GpuStaging {
 public:
  explicit GpuStaging(const GpuStream& stream) : stream_(stream) {}

  // Once, before anything is added.
  Status reserve(std::int64_t page_bytes, std::shared_ptr<std::int64_t> used);
  Status add_page(const std::byte* from, std::byte* to);
  Status add_slot(std::int32_t* at, std::int32_t slot);
  Status flush();

 private:
  Status settle();

  const GpuStream& stream_;
  std::int64_t page_bytes_ = 0;
  std::int64_t most_pages_ = 0;
  std::int64_t pages_ = 0;
  std::int64_t slots_ = 0;
  bool in_flight_ = false;  // the host's side may not change
  PinnedMemory host_;       // pages, then their addresses, then slot updates
  GpuBlock gpu_;
};

}  // namespace icefield
