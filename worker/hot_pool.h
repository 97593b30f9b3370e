// worker/hot_pool.h — the pages a worker keeps because recent steps attended them.
#pragma once

#include <cstdint>
#include <vector>

#include "common/status.h"

namespace icefield {

// Which page: (segment number 20 bits, layer 8, KV head 8, first row 12).
using PageKey = std::uint64_t;
constexpr std::uint32_t kMaxSegmentNumber = (1u << 20) - 1;
constexpr PageKey page_key(std::uint32_t segment, std::int32_t layer, std::int32_t kv_head,
                           std::int32_t first_row) {
  return static_cast<PageKey>(segment) << 28 | static_cast<PageKey>(layer) << 20 |
         static_cast<PageKey>(kv_head) << 12 | static_cast<PageKey>(first_row);
}
constexpr std::uint32_t segment_of(PageKey key) { return static_cast<std::uint32_t>(key >> 28); }
constexpr std::int32_t layer_of(PageKey key) { return static_cast<std::int32_t>(key >> 20 & 0xff); }
constexpr std::int32_t kv_head_of(PageKey key) {
  return static_cast<std::int32_t>(key >> 12 & 0xff);
}
constexpr std::int32_t first_row_of(PageKey key) { return static_cast<std::int32_t>(key & 0xfff); }

// Which page is in which slot, for fixed slots under a byte limit that includes this bookkeeping;
// the pages' memory is the processor's that attends (worker/layer_attention.h). Eviction is a clock
// with a few lives: a page that is selected again gains one, the hand takes one away as it passes.
// Pages found or inserted since begin_layer() are pinned. Shared by all contexts of a worker:
// requests with a common document share its pages.
//
// Threads  One at a time.
class HotPool {
 public:
  static constexpr std::int32_t kNoSlot = -1;
  static constexpr PageKey kNoPage = ~PageKey{0};

  // kInvalidArgument when not even one slot fits, kResourceExhausted when there is no such memory.
  static Result<HotPool> make(std::int64_t capacity_bytes, std::int64_t page_bytes);

  // Unpins what the step before used.
  void begin_layer() { ++step_; }

  // The page's slot, pinned; kNoSlot when it is not here.
  std::int32_t find(PageKey key);

  // A slot for a page that is not here, pinned, its bytes to be written by the caller; kNoSlot when
  // every slot is pinned.
  struct Inserted {
    std::int32_t slot = kNoSlot;
    PageKey evicted = kNoPage;  // what it held
  };
  Inserted insert(PageKey key);

  // Forgets all pages of a segment, whose number may then be used again.
  void drop_segment(std::uint32_t segment);

  std::int64_t slot_count() const { return static_cast<std::int64_t>(slots_.size()); }
  std::int64_t bytes() const;  // of the slots and the bookkeeping

 private:
  static constexpr std::uint32_t kNone = 0xffffffff;
  static constexpr std::uint8_t kMaxLives = 3;

  struct Slot {
    PageKey key = kNoPage;
    std::uint32_t step = 0;  // of the last use
    std::uint8_t lives = 0;
  };

  HotPool(std::int64_t slots, std::int64_t page_bytes);
  std::size_t bucket_of(PageKey key) const;
  std::size_t probe(PageKey key) const;  // the key's bucket, or the empty one where it would go
  void unlink(PageKey key);
  Inserted evict();

  std::int64_t page_bytes_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> buckets_;  // open addressing, a power of two; slot or kNone
  std::uint32_t step_ = 1;
  std::uint32_t hand_ = 0;
  std::int64_t used_ = 0;
};

}  // namespace icefield
