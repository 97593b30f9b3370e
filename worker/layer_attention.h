// worker/layer_attention.h — the processor that attends: where it keeps what contexts attend, and
// attention of one layer of a step over all groups.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "worker/hot_pool.h"
#include "worker/step_item.h"

namespace icefield {

class PageFinder;

// What every layer of a worker has in common.
struct AttentionShape {
  KvShape kv;  // of the slice
  float beta = 0;
  std::int32_t query_group = 1;  // query heads per KV head
  std::int32_t page_rows = 1;

  HeadShape head() const { return {.d_k = kv.d_k, .d_v = kv.d_v, .beta = beta}; }
  std::int64_t page_bytes() const { return page_rows * kv.row_bytes(); }
};

// Selected rows that stand in one page.
struct SelectedPage {
  std::uint32_t begin = 0;  // rows [begin, end) of S
  std::uint32_t end = 0;
  std::int32_t slot = HotPool::kNoSlot;
  const std::byte* bytes = nullptr;  // where it arrived, when every slot is pinned

  bool missing() const { return slot == HotPool::kNoSlot && bytes == nullptr; }
};

// A page that arrived, and the slot that it is to stand in; kNoSlot: it is needed by this layer
// only.
struct ArrivedPage {
  const AttachedSegment* segment = nullptr;
  std::int32_t layer = 0;  // within the slice
  std::int32_t kv_head = 0;
  std::int32_t first_row = 0;
  const std::byte* bytes = nullptr;
  std::int32_t slot = HotPool::kNoSlot;
  PageKey evicted = HotPool::kNoPage;  // what the slot held
};

// One (context, KV head) of the layer under way. Memory is reused from layer to layer.
struct LayerGroup {
  std::size_t item = 0;
  Context* context = nullptr;
  std::int32_t kv_head = 0;
  std::int32_t row_count = 0;       // query tokens × query heads per KV head
  std::int32_t budget = 0;          // B
  std::int32_t most_rows = 0;       // the largest B of its layers
  bool indexed = false;             // has a segment table; else the rest stays empty
  bool everything = false;          // B = N: full attention
  bool any_fault = false;           // out: rows of S were missing
  std::vector<TableRow> selected;   // out: S, without the missing rows after attend()
  std::vector<SelectedPage> pages;  // of S, by PageFinder
  std::vector<float> tail, fault;   // out [row_count] shares of the merged result

  // Takes the rows of missing pages out of S.
  void drop_missing();
};

struct LayerCall {
  std::int32_t layer = 0;  // of the slice
  std::span<const StepItem> items;
  std::span<const std::int64_t> first_token;  // of each item in the packed batch
  const float* q = nullptr;                   // [tokens, query heads, d_k]
  float* out = nullptr;                       // [tokens, query heads, d_v]
  std::span<LayerGroup> groups;               // [item, KV head]
  StepReport* report = nullptr;

  // Whether the step waits for pages of this group that are not in the hot pool.
  bool waits(const LayerGroup& group) const {
    return group.indexed && items[group.item].options.on_miss == OnMiss::kFetch;
  }
};

// q of a group [row_count, d_k], out of the call's; and its result into the call's.
void copy_queries(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                  float* q);
void write_result(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                  const float* out);
// How many of the last rows of E each query row must not see: [row_count].
void hide_later_tokens(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                       std::int32_t* hidden);

// Threads  The worker's caller.
class LayerAttention {
 public:
  virtual ~LayerAttention() = default;

  // Memory for the slots of an empty hot pool. kResourceExhausted when there is none: the pool that
  // was there stays, so both have to fit for a moment.
  virtual Status resize_pool(std::int64_t slot_count) = 0;

  // How many query rows may share a selection: query tokens × query heads per KV head.
  virtual std::int32_t most_query_rows() const = 0;

  // Called before the layers of a step: brings to the processor what these contexts attend.
  // kUnimplemented for more query rows than that, kInvalidArgument for more tokens than it takes at
  // a time, kResourceExhausted without memory.
  virtual Status begin_step(std::span<const StepItem> items) = 0;

  // Puts pages into their slots.
  virtual Status place(std::span<const ArrivedPage> pages) = 0;

  // Attention of one layer: fills `out` and what LayerGroup says. Hands S to `pages` once, which
  // finds its pages, waiting for them where an item wants that.
  virtual Status attend(const LayerCall& call, PageFinder& pages) = 0;
};

}  // namespace icefield
