#include "worker/gpu_copies.h"

#include <algorithm>
#include <cstring>

namespace icefield {
namespace {

constexpr std::int64_t kCopyAlign = 256;
constexpr std::int64_t kStagedBytes = 4 << 20;

template <class T>
void move_view(const T*& at, const std::byte* host, const std::byte* gpu) {
  if (at != nullptr) {
    at = reinterpret_cast<const T*>(gpu + (reinterpret_cast<const std::byte*>(at) - host));
  }
}

}  // namespace

GpuBlock& GpuBlock::operator=(GpuBlock&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(used_, other.used_);
  return *this;
}

Result<GpuBlock> GpuBlock::allocate(std::int64_t bytes, std::shared_ptr<std::int64_t> used) {
  GpuBlock block;
  ICE_TRY(block.memory_, GpuMemory::allocate(bytes));
  *used += bytes;
  block.used_ = std::move(used);
  return block;
}

// ------------------------------------------------------------------------------------- segments

Result<std::shared_ptr<GpuSegmentCopy>> GpuSegmentCopy::make(const SegmentIndex& index,
                                                             const AttentionShape& shape,
                                                             std::shared_ptr<std::int64_t> used,
                                                             Stream stream) {
  auto copy = std::make_shared<GpuSegmentCopy>();
  copy->kv_head_count_ = shape.kv.kv_head_count;
  copy->page_rows_ = shape.page_rows;
  copy->pages_ = index.name().token_count / shape.page_rows;
  std::int64_t bytes = 0;
  for (const SegmentIndex::LayerParts& parts : index.parts()) {
    for (const AlignedBytes* part : {&parts.lists, &parts.clusters, &parts.codes}) {
      bytes += round_up(static_cast<std::int64_t>(part->size()), kCopyAlign);
    }
  }
  const std::int64_t heads = std::int64_t{shape.kv.layer_count} * shape.kv.kv_head_count;
  ICE_TRY(copy->memory_, GpuBlock::allocate(bytes, used));
  ICE_TRY(copy->slots_, GpuBlock::allocate(heads * copy->pages_ * 4, used));
  std::byte* at = copy->memory_.data();
  for (const SegmentIndex::LayerParts& parts : index.parts()) {
    LayerParts moved;
    for (const auto& [part, to] :
         {std::pair(&parts.lists, &moved.lists), std::pair(&parts.clusters, &moved.clusters),
          std::pair(&parts.codes, &moved.codes)}) {
      const auto part_bytes = static_cast<std::int64_t>(part->size());
      ICE_TRY(copy_on_gpu(at, part->data(), part_bytes, stream));
      *to = {.host = part->data(), .gpu = at};
      at += round_up(part_bytes, kCopyAlign);
    }
    copy->parts_.push_back(moved);
  }
  ICE_TRY(copy->forget_pages(stream));
  return copy;
}

Status GpuSegmentCopy::forget_pages(Stream stream) const {
  return fill_on_gpu(slots_.data(), 0xff, slots_.bytes(), stream);
}

std::int32_t* GpuSegmentCopy::page_slots(std::int32_t layer, std::int32_t kv_head) const {
  const std::int64_t head = std::int64_t{layer} * kv_head_count_ + kv_head;
  return reinterpret_cast<std::int32_t*>(slots_.data()) + head * pages_;
}

LevelView GpuSegmentCopy::moved(const LevelView& level, const Moved& part) {
  LevelView view = level;
  move_view(view.key_means, part.host, part.gpu);
  move_view(view.value_means, part.host, part.gpu);
  move_view(view.key_scale, part.host, part.gpu);
  move_view(view.value_scale, part.host, part.gpu);
  move_view(view.ln_count, part.host, part.gpu);
  move_view(view.sigma, part.host, part.gpu);
  move_view(view.token_count, part.host, part.gpu);
  move_view(view.first_row, part.host, part.gpu);
  move_view(view.gamma, part.host, part.gpu);
  move_view(view.slope, part.host, part.gpu);
  move_view(view.slope_scale, part.host, part.gpu);
  return view;
}

HeadIndex GpuSegmentCopy::moved(std::int32_t layer, const HeadIndex& index) const {
  const LayerParts& parts = parts_[static_cast<std::size_t>(layer)];
  HeadIndex view = index;
  view.lists = moved(index.lists, parts.lists);
  view.clusters = moved(index.clusters, parts.clusters);
  move_view(view.codes.codes, parts.codes.host, parts.codes.gpu);
  move_view(view.codes.scale, parts.codes.host, parts.codes.gpu);
  move_view(view.codes.check, parts.codes.host, parts.codes.gpu);
  return view;
}

// --------------------------------------------------------------------------------------- tables

Result<std::shared_ptr<GpuTables>> GpuTables::make(const Context& context,
                                                   const AttentionShape& shape,
                                                   std::shared_ptr<std::int64_t> used,
                                                   Stream stream) {
  auto tables = std::make_shared<GpuTables>();
  tables->segment_count_ = static_cast<std::int32_t>(context.table(0, 0).size());
  tables->kv_head_count_ = shape.kv.kv_head_count;
  for (std::int32_t layer = 0; layer < shape.kv.layer_count; ++layer) {
    for (std::int32_t head = 0; head < shape.kv.kv_head_count; ++head) {
      const std::span<const HeadIndex> table = context.table(layer, head);
      for (std::size_t s = 0; s < table.size(); ++s) {
        const auto& copy = static_cast<const GpuSegmentCopy&>(*context.segments()[s]->device);
        tables->host_.push_back(
            {.index = copy.moved(layer, table[s]), .page_slot = copy.page_slots(layer, head)});
      }
      tables->sizes_.push_back(place_segments(
          tables->host_.data() + tables->host_.size() - table.size(), tables->segment_count_));
    }
  }
  const auto bytes = static_cast<std::int64_t>(tables->host_.size() * sizeof(GpuSegment));
  ICE_TRY(tables->memory_, GpuBlock::allocate(bytes, std::move(used)));
  ICE_TRY(copy_on_gpu(tables->memory_.data(), tables->host_.data(), bytes, stream));
  return tables;
}

const GpuSegment* GpuTables::table(std::int32_t layer, std::int32_t kv_head) const {
  const std::int64_t head = std::int64_t{layer} * kv_head_count_ + kv_head;
  return reinterpret_cast<const GpuSegment*>(memory_.data()) + head * segment_count_;
}

Result<std::shared_ptr<GpuSlopes>> GpuSlopes::make(std::span<const HeadSlope> heads,
                                                   std::shared_ptr<std::int64_t> used,
                                                   Stream stream) {
  auto slopes = std::make_shared<GpuSlopes>();
  std::int64_t bytes = 0;
  for (const HeadSlope& head : heads) bytes += round_up(head.bytes(), kCopyAlign);
  ICE_TRY(slopes->memory_, GpuBlock::allocate(bytes, std::move(used)));
  std::byte* at = slopes->memory_.data();
  for (const HeadSlope& head : heads) {
    SlopeView& view = slopes->heads_.emplace_back();
    if (head.empty()) continue;
    const auto floats = static_cast<std::int64_t>(head.gamma.size() * sizeof(float));
    const auto means = static_cast<std::int64_t>(head.slope.size());
    view = {.gamma = reinterpret_cast<const float*>(at),
            .slope = reinterpret_cast<const std::int8_t*>(at + 2 * floats),
            .slope_scale = reinterpret_cast<const float*>(at + floats)};
    ICE_TRY(copy_on_gpu(at, head.gamma.data(), floats, stream));
    ICE_TRY(copy_on_gpu(at + floats, head.scale.data(), floats, stream));
    ICE_TRY(copy_on_gpu(at + 2 * floats, head.slope.data(), means, stream));
    at += round_up(head.bytes(), kCopyAlign);
  }
  return slopes;
}

// -------------------------------------------------------------------------------------- staging

Status GpuStaging::reserve(std::int64_t page_bytes, std::shared_ptr<std::int64_t> used) {
  page_bytes_ = page_bytes;
  most_pages_ = std::max<std::int64_t>(kStagedBytes / page_bytes, 1);
  // A page that moves in may move another out.
  const auto extra = static_cast<std::int64_t>(sizeof(std::byte*) + 2 * sizeof(SlotUpdate));
  const std::int64_t bytes = most_pages_ * (page_bytes + extra);
  ICE_TRY(host_, PinnedMemory::allocate(bytes));
  ICE_TRY(gpu_, GpuBlock::allocate(bytes, std::move(used)));
  return Status();
}

Status GpuStaging::settle() {
  if (!in_flight_) return Status();
  in_flight_ = false;
  return stream_.wait();
}

Status GpuStaging::add_page(const std::byte* from, std::byte* to) {
  if (pages_ == most_pages_) ICE_TRY(flush());
  ICE_TRY(settle());
  std::memcpy(host_.data() + pages_ * page_bytes_, from, static_cast<std::size_t>(page_bytes_));
  auto* addresses = reinterpret_cast<std::byte**>(host_.data() + most_pages_ * page_bytes_);
  addresses[pages_++] = to;
  return Status();
}

Status GpuStaging::add_slot(std::int32_t* at, std::int32_t slot) {
  if (slots_ == 2 * most_pages_) ICE_TRY(flush());
  ICE_TRY(settle());
  const auto addresses_end =
      most_pages_ * (page_bytes_ + static_cast<std::int64_t>(sizeof(std::byte*)));
  reinterpret_cast<SlotUpdate*>(host_.data() + addresses_end)[slots_++] = {at, slot};
  return Status();
}

Status GpuStaging::flush() {
  if (pages_ == 0 && slots_ == 0) return Status();
  const std::int64_t addresses = most_pages_ * page_bytes_;
  const std::int64_t updates =
      addresses + most_pages_ * static_cast<std::int64_t>(sizeof(std::byte*));
  const auto copy = [&](std::int64_t begin, std::int64_t bytes) {
    return copy_on_gpu(gpu_.data() + begin, host_.data() + begin, bytes, stream_.get());
  };
  ICE_TRY(copy(0, pages_ * page_bytes_));
  ICE_TRY(copy(addresses, pages_ * static_cast<std::int64_t>(sizeof(std::byte*))));
  ICE_TRY(copy(updates, slots_ * static_cast<std::int64_t>(sizeof(SlotUpdate))));
  ICE_TRY(page_scatter_cuda({.from = gpu_.data(),
                             .pages = reinterpret_cast<std::byte* const*>(gpu_.data() + addresses),
                             .page_bytes = page_bytes_,
                             .page_count = static_cast<std::int32_t>(pages_)},
                            stream_.get()));
  ICE_TRY(set_slots_cuda({.updates = reinterpret_cast<const SlotUpdate*>(gpu_.data() + updates),
                          .count = static_cast<std::int32_t>(slots_)},
                         stream_.get()));
  pages_ = slots_ = 0;
  in_flight_ = true;
  return Status();
}

}  // namespace icefield
