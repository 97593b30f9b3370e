#include "worker/hot_pool.h"

#include <bit>
#include <exception>
#include <limits>

namespace icefield {
namespace {

// Buckets for `slots` pages: at most two thirds full.
std::size_t bucket_count(std::int64_t slots) {
  return std::bit_ceil(static_cast<std::size_t>(slots + slots / 2 + 1));
}

}  // namespace

Result<HotPool> HotPool::make(std::int64_t capacity_bytes, std::int64_t page_bytes) {
  const auto cost = [page_bytes](std::int64_t slots) {
    return slots * (page_bytes + static_cast<std::int64_t>(sizeof(Slot))) +
           static_cast<std::int64_t>(bucket_count(slots) * sizeof(std::uint32_t));
  };
  // The largest count that fits: bucket counts are powers of two, so search instead of dividing.
  std::int64_t low = 0;
  std::int64_t high = capacity_bytes / page_bytes + 1;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (cost(middle) <= capacity_bytes ? low : high) = middle;
  }
  if (low < 1) {
    return Status(Code::kInvalidArgument,
                  "hot pool of " + std::to_string(capacity_bytes) + " bytes holds no page of " +
                      std::to_string(page_bytes) + " bytes; raise pool_bytes");
  }
  const Status no_memory(
      Code::kResourceExhausted,
      "no memory for a hot pool of " + std::to_string(capacity_bytes) + " bytes; lower pool_bytes");
  if (low > std::numeric_limits<std::int32_t>::max()) return no_memory;  // slots have 31 bits
  try {
    return HotPool(low, page_bytes);
  } catch (const std::exception&) {  // bad_alloc, length_error
    return no_memory;
  }
}

HotPool::HotPool(std::int64_t slots, std::int64_t page_bytes)
    : page_bytes_(page_bytes),
      slots_(static_cast<std::size_t>(slots)),
      buckets_(bucket_count(slots), kNone) {}

std::int64_t HotPool::bytes() const {
  return slot_count() * (page_bytes_ + static_cast<std::int64_t>(sizeof(Slot))) +
         static_cast<std::int64_t>(buckets_.size() * sizeof(std::uint32_t));
}

std::size_t HotPool::bucket_of(PageKey key) const {
  // Fibonacci hashing: the top bits of the product are well mixed.
  return (key * 0x9e3779b97f4a7c15u) >> (64 - std::countr_zero(buckets_.size()));
}

std::size_t HotPool::probe(PageKey key) const {
  std::size_t bucket = bucket_of(key);
  while (buckets_[bucket] != kNone && slots_[buckets_[bucket]].key != key) {
    bucket = (bucket + 1) & (buckets_.size() - 1);
  }
  return bucket;
}

std::int32_t HotPool::find(PageKey key) {
  const std::uint32_t index = buckets_[probe(key)];
  if (index == kNone) return kNoSlot;
  Slot& slot = slots_[index];
  if (slot.step != step_ && slot.lives < kMaxLives) ++slot.lives;
  slot.step = step_;
  return static_cast<std::int32_t>(index);
}

HotPool::Inserted HotPool::insert(PageKey key) {
  ICE_DCHECK(buckets_[probe(key)] == kNone);
  const Inserted place =
      used_ < slot_count() ? Inserted{.slot = static_cast<std::int32_t>(used_)} : evict();
  if (place.slot == kNoSlot) return place;
  if (used_ < slot_count()) ++used_;
  const auto index = static_cast<std::uint32_t>(place.slot);
  slots_[index] = {.key = key, .step = step_, .lives = 1};
  buckets_[probe(key)] = index;
  return place;
}

// Removes the key's bucket and closes the gap in its probe sequence.
void HotPool::unlink(PageKey key) {
  std::size_t hole = probe(key);
  const std::size_t mask = buckets_.size() - 1;
  for (std::size_t next = (hole + 1) & mask; buckets_[next] != kNone; next = (next + 1) & mask) {
    const std::size_t home = bucket_of(slots_[buckets_[next]].key);
    if (((next - home) & mask) >= ((next - hole) & mask)) {
      buckets_[hole] = buckets_[next];
      hole = next;
    }
  }
  buckets_[hole] = kNone;
}

HotPool::Inserted HotPool::evict() {
  const auto count = static_cast<std::uint32_t>(slots_.size());
  // Each pass of the hand takes a life from every page that is not pinned.
  for (std::uint32_t looked = 0; looked < count * (kMaxLives + 1u); ++looked) {
    const std::uint32_t index = hand_;
    hand_ = hand_ + 1 == count ? 0 : hand_ + 1;
    Slot& slot = slots_[index];
    if (slot.key == kNoPage) return {.slot = static_cast<std::int32_t>(index)};
    if (slot.step == step_) continue;
    if (slot.lives > 0) {
      --slot.lives;
      continue;
    }
    unlink(slot.key);
    return {.slot = static_cast<std::int32_t>(index), .evicted = slot.key};
  }
  return {};
}

void HotPool::drop_segment(std::uint32_t segment) {
  for (Slot& slot : slots_) {
    if (slot.key == kNoPage || segment_of(slot.key) != segment) continue;
    unlink(slot.key);
    slot = {};
  }
}

}  // namespace icefield
