#include "worker/hot_pool.h"

#include <gtest/gtest.h>

#include <vector>

#include "common/rng.h"

namespace icefield {
namespace {

constexpr std::int64_t kPage = 256;

HotPool pool_of(std::int64_t slots) {
  // The smallest capacity that holds this many.
  for (std::int64_t bytes = slots * kPage;; bytes += 8) {
    HotPool pool = HotPool::make(bytes, kPage).value();
    if (pool.slot_count() == slots) return pool;
  }
}

TEST(HotPool, KeepsItsByteLimitBookkeepingIncluded) {
  for (const std::int64_t capacity : {1000, 4096, 100000, 8 << 20}) {
    const HotPool pool = HotPool::make(capacity, kPage).value();
    EXPECT_LE(pool.bytes(), capacity);
    EXPECT_GT(pool.bytes(), capacity * 6 / 10);
  }
  EXPECT_EQ(HotPool::make(100, kPage).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(HotPool::make(0, kPage).error().code(), Code::kInvalidArgument);
}

TEST(HotPool, FindsWhatWasInserted) {
  HotPool pool = pool_of(4);
  EXPECT_EQ(pool.find(page_key(1, 2, 3, 4)), HotPool::kNoSlot);
  const std::int32_t slot = pool.insert(page_key(1, 2, 3, 4)).slot;
  EXPECT_EQ(pool.find(page_key(1, 2, 3, 4)), slot);
  EXPECT_EQ(pool.find(page_key(1, 2, 3, 5)), HotPool::kNoSlot);
  EXPECT_EQ(pool.find(page_key(2, 2, 3, 4)), HotPool::kNoSlot);
}

TEST(HotPool, PagesOfTheStepAreNeverEvicted) {
  HotPool pool = pool_of(4);
  pool.begin_layer();
  for (std::int32_t row = 0; row < 4; ++row)
    ASSERT_NE(pool.insert(page_key(0, 0, 0, row)).slot, HotPool::kNoSlot);
  EXPECT_EQ(pool.insert(page_key(0, 0, 0, 9)).slot, HotPool::kNoSlot);
  pool.begin_layer();
  EXPECT_NE(pool.find(page_key(0, 0, 0, 2)), HotPool::kNoSlot);
  for (std::int32_t row = 10; row < 13; ++row)
    ASSERT_NE(pool.insert(page_key(0, 0, 0, row)).slot, HotPool::kNoSlot);
  EXPECT_EQ(pool.insert(page_key(0, 0, 0, 13)).slot, HotPool::kNoSlot);
  EXPECT_NE(pool.find(page_key(0, 0, 0, 2)), HotPool::kNoSlot) << "used in this step";
}

TEST(HotPool, PagesThatAreSelectedAgainStay) {
  HotPool pool = pool_of(8);
  for (int step = 0; step < 6; ++step) {
    pool.begin_layer();
    if (pool.find(page_key(0, 0, 0, 1)) == HotPool::kNoSlot) pool.insert(page_key(0, 0, 0, 1));
  }
  // One-time pages flow through the other slots: each pass of the hand costs page 1 a life.
  for (std::int32_t row = 100; row < 112; ++row) {
    pool.begin_layer();
    ASSERT_NE(pool.insert(page_key(0, 0, 0, row)).slot, HotPool::kNoSlot);
  }
  EXPECT_NE(pool.find(page_key(0, 0, 0, 1)), HotPool::kNoSlot);
}

TEST(HotPool, DroppedSegmentsAreGoneAndTheirSlotsUsable) {
  HotPool pool = pool_of(6);
  pool.begin_layer();
  for (std::int32_t row = 0; row < 3; ++row) {
    pool.insert(page_key(1, 0, 0, row));
    pool.insert(page_key(2, 0, 0, row));
  }
  pool.drop_segment(1);
  for (std::int32_t row = 0; row < 3; ++row) {
    EXPECT_EQ(pool.find(page_key(1, 0, 0, row)), HotPool::kNoSlot);
    EXPECT_NE(pool.find(page_key(2, 0, 0, row)), HotPool::kNoSlot);
  }
  for (std::int32_t row = 0; row < 3; ++row) {
    EXPECT_NE(pool.insert(page_key(3, 0, 0, row)).slot, HotPool::kNoSlot);
  }
}

// Against what every slot was last given to: what the pool finds is right, whatever was evicted,
// and it says what it evicts.
TEST(HotPool, NeverReturnsAnotherPagesSlot) {
  HotPool pool = pool_of(64);
  SeededRng rng(1);
  std::vector<PageKey> holds(64, HotPool::kNoPage);
  for (int step = 0; step < 3000; ++step) {
    pool.begin_layer();
    for (int i = 0; i < 8; ++i) {
      const PageKey key = page_key(static_cast<std::uint32_t>(rng.below(3)),
                                   static_cast<std::int32_t>(rng.below(2)), 0,
                                   static_cast<std::int32_t>(rng.below(60)));
      if (const std::int32_t slot = pool.find(key); slot != HotPool::kNoSlot) {
        ASSERT_EQ(holds[static_cast<std::size_t>(slot)], key);
        continue;
      }
      const HotPool::Inserted inserted = pool.insert(key);
      ASSERT_NE(inserted.slot, HotPool::kNoSlot);
      PageKey& held = holds[static_cast<std::size_t>(inserted.slot)];
      ASSERT_EQ(inserted.evicted, held);
      held = key;
    }
    if (rng.below(100) == 0) {
      const auto segment = static_cast<std::uint32_t>(rng.below(3));
      pool.drop_segment(segment);
      for (PageKey& held : holds) {
        if (segment_of(held) == segment) held = HotPool::kNoPage;
      }
    }
  }
}

TEST(HotPool, SlotOfAForgottenKeyIsFoundEmpty) {
  // drop_segment() leaves used slots without a key; insert must take them before evicting others.
  HotPool pool = pool_of(2);
  pool.begin_layer();
  pool.insert(page_key(1, 0, 0, 0));
  pool.insert(page_key(2, 0, 0, 0));
  pool.drop_segment(1);
  EXPECT_NE(pool.insert(page_key(3, 0, 0, 0)).slot, HotPool::kNoSlot);
  EXPECT_NE(pool.find(page_key(2, 0, 0, 0)), HotPool::kNoSlot);
}

}  // namespace
}  // namespace icefield
