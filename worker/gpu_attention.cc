#include "worker/gpu_attention.h"

#include <algorithm>

#include "common/bytes.h"
#include "worker/page_finder.h"

namespace icefield {
namespace {

bool has_kernels(const KvShape& kv) {
  constexpr std::int32_t kDims[] = {64, 80, 96, 128, 256};
  return kv.d_k == kv.d_v && std::ranges::find(kDims, kv.d_k) != std::end(kDims);
}

}  // namespace

Result<std::unique_ptr<GpuAttention>> GpuAttention::create(const AttentionShape& shape) {
  if (!has_kernels(shape.kv)) {
    return Status(Code::kUnimplemented,
                  "head dimensions " + std::to_string(shape.kv.d_k) + " and " +
                      std::to_string(shape.kv.d_v) +
                      " on a GPU, for which there are kernels of 64, 80, 96, 128, 256");
  }
  ICE_TRY(const std::int32_t processors, gpu_processors());
  ICE_TRY(GpuStream stream, GpuStream::create());
  std::unique_ptr<GpuAttention> attention(new GpuAttention(shape, processors, std::move(stream)));
  ICE_TRY(attention->rows_staging_.reserve(shape.kv.row_bytes(), attention->used_));
  ICE_TRY(attention->pages_staging_.reserve(shape.page_bytes(), attention->used_));
  return attention;
}

GpuAttention::GpuAttention(const AttentionShape& shape, std::int32_t processors, GpuStream stream)
    : shape_(shape),
      stream_(std::move(stream)),
      rows_staging_(stream_),
      pages_staging_(stream_),
      layer_(shape, processors, stream_, used_) {}

// What was submitted may still use the memory.
GpuAttention::~GpuAttention() { static_cast<void>(stream_.wait()); }

Status GpuAttention::resize_pool(std::int64_t slot_count) {
  ICE_TRY(GpuBlock pool, GpuBlock::allocate(slot_count * shape_.page_bytes(), used_));
  pool_ = std::move(pool);
  slot_count_ = slot_count;
  for (const std::weak_ptr<GpuSegmentCopy>& segment : segments_) {
    if (const auto copy = segment.lock(); copy != nullptr) {
      ICE_TRY(copy->forget_pages(stream_.get()));
    }
  }
  return stream_.wait();
}

// ---------------------------------------------------------------------------------------- copies

Status GpuAttention::check_sizes(std::span<const StepItem> items) const {
  constexpr std::int64_t kMostRows = GpuLayer::kMaxQueryRows;
  std::int64_t groups = 0;  // of the launch over exact rows, which has one for so many query rows
  std::int64_t tokens = 0;
  for (const StepItem& item : items) {
    const auto count = static_cast<std::int64_t>(item.tokens.size());
    const std::int64_t rows = count * shape_.query_group;
    if (!item.context->dense() && rows > kMostRows) {
      return Status(Code::kUnimplemented, std::to_string(rows) +
                                              " query rows share a selection, a GPU takes " +
                                              std::to_string(kMostRows) + ": at most " +
                                              std::to_string(kMostRows / shape_.query_group) +
                                              " tokens at a time (--group_tokens)");
    }
    groups += shape_.kv.kv_head_count * ceil_div(rows, kMostRows);
    tokens += count;
  }
  if (groups <= kGpuMaxGroups) return Status();
  const std::int64_t most = kGpuMaxGroups / shape_.kv.kv_head_count * kMostRows;
  return Status(Code::kInvalidArgument,
                "a step of " + std::to_string(tokens) + " tokens, a GPU takes at most " +
                    std::to_string(most / shape_.query_group) + " at a time");
}

Status GpuAttention::begin_step(std::span<const StepItem> items) {
  ICE_TRY(check_sizes(items));
  for (const StepItem& item : items) {
    if (!item.context->dense()) ICE_TRY(copy_context(*item.context));
  }
  return stream_.wait();
}

Status GpuAttention::copy_segments(const Context& context) {
  for (const auto& segment : context.segments()) {
    if (segment->device != nullptr) continue;
    ICE_TRY(std::shared_ptr<GpuSegmentCopy> copy,
            GpuSegmentCopy::make(*segment->index, shape_, used_, stream_.get()));
    if (segments_.size() <= segment->number) segments_.resize(segment->number + 1);
    segments_[segment->number] = copy;
    segment->device = std::move(copy);
  }
  return Status();
}

Status GpuAttention::copy_context(Context& context) {
  const Context::SinkRows* sink = context.sink();
  if (sink != nullptr && sink->device == nullptr) {
    const auto bytes = static_cast<std::int64_t>(sink->rows.size() * sizeof(Bf16));
    ICE_TRY(GpuBlock memory, GpuBlock::allocate(bytes, used_));
    ICE_TRY(copy_on_gpu(memory.data(), sink->rows.data(), bytes, stream_.get()));
    sink->device = std::make_shared<GpuRows>(std::move(memory));
  }
  if (context.device_tables() != nullptr || context.segments().empty()) return Status();
  ICE_TRY(copy_segments(context));
  const Context::Slopes* slopes = context.slopes();
  if (slopes != nullptr && slopes->device == nullptr) {
    ICE_TRY(slopes->device, GpuSlopes::make(slopes->heads, used_, stream_.get()));
  }
  ICE_TRY(context.device_tables(), GpuTables::make(context, shape_, used_, stream_.get()));
  return Status();
}

// Rows of the layer that the GPU does not have yet: in decoding, those of the step. Memory first: a
// step that ends without it may leave none of its copies waiting for the next.
Status GpuAttention::copy_rows(const LayerCall& call) {
  for (const StepItem& item : call.items) {
    for (const auto& block : item.context->rows().blocks()) ICE_TRY(make_room(*block));
  }
  for (const StepItem& item : call.items) {
    std::int64_t left = item.context->rows().end() - item.context->rows().begin();
    for (const auto& block : item.context->rows().blocks()) {
      const std::int64_t rows = std::min(left, ExactRows::kBlockRows);
      ICE_TRY(copy_block(call.layer, *block, static_cast<std::int32_t>(rows)));
      left -= rows;
    }
  }
  return rows_staging_.flush();
}

Status GpuAttention::make_room(ExactRows::Block& block) {
  if (block.device != nullptr) return Status();
  ICE_TRY(GpuBlock memory, GpuBlock::allocate(static_cast<std::int64_t>(block.rows.size()), used_));
  block.device = std::make_shared<GpuRows>(std::move(memory));
  block.device_rows.assign(static_cast<std::size_t>(shape_.kv.layer_count), 0);
  return Status();
}

Status GpuAttention::copy_block(std::int32_t layer, ExactRows::Block& block, std::int32_t rows) {
  std::int32_t& there = block.device_rows[static_cast<std::size_t>(layer)];
  std::byte* gpu = static_cast<const GpuRows&>(*block.device).memory.data();
  const std::int64_t row_bytes = shape_.kv.row_bytes();
  for (std::int32_t row = there; row < rows; ++row) {
    for (std::int32_t head = 0; head < shape_.kv.kv_head_count; ++head) {
      const std::int64_t index = std::int64_t{layer} * shape_.kv.kv_head_count + head;
      const std::int64_t at = (index * ExactRows::kBlockRows + row) * row_bytes;
      ICE_TRY(rows_staging_.add_page(block.rows.data() + at, gpu + at));
    }
  }
  there = std::max(there, rows);
  return Status();
}

// ----------------------------------------------------------------------------------------- pages

std::int32_t* GpuAttention::slot_of(PageKey key) const {
  const std::shared_ptr<GpuSegmentCopy> copy = segments_[segment_of(key)].lock();
  return copy->page_slot(layer_of(key), kv_head_of(key), first_row_of(key));
}

Status GpuAttention::place(std::span<const ArrivedPage> pages) {
  for (const ArrivedPage& page : pages) {
    if (page.slot == HotPool::kNoSlot) continue;
    ICE_TRY(pages_staging_.add_page(page.bytes, pool_.data() + page.slot * shape_.page_bytes()));
    const auto& segment = static_cast<const GpuSegmentCopy&>(*page.segment->device);
    ICE_TRY(pages_staging_.add_slot(segment.page_slot(page.layer, page.kv_head, page.first_row),
                                    page.slot));
    if (page.evicted == HotPool::kNoPage) continue;
    ICE_TRY(pages_staging_.add_slot(slot_of(page.evicted), HotPool::kNoSlot));
  }
  return pages_staging_.flush();
}

// Pages that found every slot pinned stand beside the pool until the layer is done.
Status GpuAttention::place_overflow(std::span<const ArrivedPage> pages) {
  const auto without_slot = [](const ArrivedPage& page) { return page.slot == HotPool::kNoSlot; };
  const std::int64_t bytes = std::ranges::count_if(pages, without_slot) * shape_.page_bytes();
  if (overflow_.bytes() < bytes) {
    ICE_TRY(overflow_, GpuBlock::allocate(bytes, used_));
  }
  for (const ArrivedPage& page : pages) {
    if (!without_slot(page)) continue;
    const auto index = static_cast<std::int64_t>(in_overflow_.size());
    const auto& segment = static_cast<const GpuSegmentCopy&>(*page.segment->device);
    in_overflow_.push_back(segment.page_slot(page.layer, page.kv_head, page.first_row));
    ICE_TRY(pages_staging_.add_page(page.bytes, overflow_.data() + index * shape_.page_bytes()));
    ICE_TRY(pages_staging_.add_slot(in_overflow_.back(),
                                    static_cast<std::int32_t>(slot_count_ + index)));
  }
  return pages_staging_.flush();
}

Status GpuAttention::forget_overflow() {
  // Two contexts may have wanted the same page.
  std::ranges::sort(in_overflow_);
  in_overflow_.erase(std::unique(in_overflow_.begin(), in_overflow_.end()), in_overflow_.end());
  for (std::int32_t* at : in_overflow_) ICE_TRY(pages_staging_.add_slot(at, HotPool::kNoSlot));
  in_overflow_.clear();
  return pages_staging_.flush();
}

// ---------------------------------------------------------------------------------------- attend

Status GpuAttention::attend(const LayerCall& call, PageFinder& pages) {
  const bool indexed = std::ranges::any_of(call.groups, &LayerGroup::indexed);
  const auto pool = [this] {
    return GpuPagePool{.pool = pool_.data(),
                       .slot_count = static_cast<std::int32_t>(slot_count_),
                       .overflow = overflow_.data()};
  };
  ICE_TRY(forget_overflow());  // of a layer that failed
  ICE_TRY(copy_rows(call));
  ICE_TRY(layer_.prepare(call, pool()));
  if (std::ranges::any_of(call.groups, [&](const LayerGroup& g) { return call.waits(g); })) {
    ICE_TRY(layer_.select());
    ICE_TRY(layer_.read_selection(call.groups));
    pages.find(call);
    if (!pages.arrived().empty()) {
      ICE_TRY(place(pages.arrived()));
      ICE_TRY(place_overflow(pages.arrived()));
      ICE_TRY(layer_.find_rows(pool()));
    }
    ICE_TRY(layer_.attend());
    ICE_TRY(layer_.read_results(call, GpuLayer::Read::kResults));
    ICE_TRY(forget_overflow());
  } else {
    ICE_TRY(layer_.select_and_attend());
    ICE_TRY(layer_.read_results(call, GpuLayer::Read::kAll));
    if (indexed) pages.find(call);
  }
  pages.release();
  layer_.drop_missing(call.groups);
  return Status();
}

}  // namespace icefield
