#include "storage/dram_tier.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "tests/support/objects.h"
#include "tests/support/run_task.h"

namespace icefield {
namespace {

constexpr std::int64_t kSlot = 16 * 1024;

class DramTierTest : public testing::Test {
 protected:
  void open(std::int64_t slots) {
    tier_ = DramTier::open({.capacity_bytes = slots * kSlot}).value();
    tier_->on_evict([this](const ObjectKey& key) { evicted_.push_back(key); });
  }
  Result<PutOutcome> put(const ObjectKey& key, std::size_t size) {
    const Bytes bytes(size, std::byte{7});
    const std::vector<ConstByteSpan> pieces = {bytes};
    return run_task(tier_->put(key, pieces, info_of(key, bytes)));
  }
  Result<ObjectBytes> get(const ObjectKey& key) {
    return run_task(tier_->get(key, Verify::kByTier));
  }

  SeededRng rng_{1};
  std::vector<ObjectKey> evicted_;
  std::unique_ptr<DramTier> tier_;
};

TEST_F(DramTierTest, LeastRecentlyUsedObjectMakesRoom) {
  open(3);
  const ObjectKey a = random_key(rng_), b = random_key(rng_), c = random_key(rng_),
                  d = random_key(rng_);
  ASSERT_TRUE(put(a, 100).has_value());
  ASSERT_TRUE(put(b, 100).has_value());
  ASSERT_TRUE(put(c, 100).has_value());
  ASSERT_TRUE(get(a).has_value());  // now b is the oldest
  ASSERT_TRUE(put(d, 100).has_value());
  EXPECT_EQ(evicted_, std::vector<ObjectKey>{b});
  EXPECT_TRUE(get(a).has_value());
  EXPECT_TRUE(get(c).has_value());
  EXPECT_EQ(tier_->evicted.value(), 1);
}

TEST_F(DramTierTest, LargeObjectEvictsAsManyAsItNeeds) {
  open(4);
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 4; ++i) {
    keys.push_back(random_key(rng_));
    ASSERT_TRUE(put(keys.back(), 10).has_value());
  }
  ASSERT_TRUE(put(random_key(rng_), 3 * kSlot - 1).has_value());
  EXPECT_EQ(evicted_, (std::vector<ObjectKey>{keys[0], keys[1], keys[2]}));
}

TEST_F(DramTierTest, PinnedObjectsAreNotEvicted) {
  open(2);
  const ObjectKey a = random_key(rng_), b = random_key(rng_);
  ASSERT_TRUE(put(a, 100).has_value());
  ASSERT_TRUE(put(b, 100).has_value());
  {
    const ObjectBytes pin_a = get(a).value();
    const ObjectBytes pin_b = get(b).value();
    const Result<PutOutcome> refused = put(random_key(rng_), 100);
    EXPECT_EQ(refused.error().code(), Code::kResourceExhausted);
  }
  EXPECT_TRUE(put(random_key(rng_), 100).has_value());
  EXPECT_EQ(evicted_, std::vector<ObjectKey>{a});
}

TEST_F(DramTierTest, ObjectLargerThanTheTierIsRefusedAndEvictsNothing) {
  open(2);
  ASSERT_TRUE(put(random_key(rng_), 100).has_value());
  EXPECT_EQ(put(random_key(rng_), 2 * kSlot + 1).error().code(), Code::kResourceExhausted);
  EXPECT_TRUE(evicted_.empty());
}

TEST_F(DramTierTest, EveryFlippedBitIsDetected) {
  open(4);
  const ObjectKey key = random_key(rng_);
  for (std::size_t offset : {0u, 1u, 4095u, 16383u, 16384u, 20000u, 29999u}) {
    ASSERT_TRUE(put(key, 30000).has_value());
    for (std::byte& b : tier_->memory()) {  // find the object's slots: they hold sevens
      if (b != std::byte{7}) continue;
      const std::size_t begin = static_cast<std::size_t>(&b - tier_->memory().data());
      const std::size_t slot = begin / kSlot;
      // The second slot may come before the first one: damage either half of the object.
      tier_->memory()[(slot * kSlot + offset) % tier_->memory().size()] ^= std::byte{0x10};
      break;
    }
    const Result<ObjectBytes> result = get(key);
    if (result.has_value()) {
      // The flipped byte was in an unused slot: then the bytes must be right.
      EXPECT_EQ(result->copy(), Bytes(30000, std::byte{7}));
      ASSERT_TRUE(run_task(tier_->remove(key)).ok());
    } else {
      EXPECT_EQ(result.error().code(), Code::kDataLoss);
    }
  }
}

// What the process allocates beside the slab, with a tier that has been full for long: entries,
// index, policy and ghosts. The bar is 200 bytes.
TEST(DramTierMemory, AnObjectCostsAtMost200BytesBeyondItsSlots) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator is in the place of the one that is asked";
#endif
  constexpr std::int64_t kObjects = 200000;
  const auto allocated = [] {
    return static_cast<std::int64_t>(mallinfo2().uordblks) +
           static_cast<std::int64_t>(mallinfo2().hblkhd);
  };
  const std::int64_t before = allocated();
  const auto tier = DramTier::open({.capacity_bytes = kObjects * 4096, .slot_bytes = 4096}).value();
  SeededRng rng(1);
  const Bytes bytes(16, std::byte{1});
  const std::vector<ConstByteSpan> pieces = {bytes};
  for (std::int64_t i = 0; i < 3 * kObjects; ++i) {
    const ObjectKey key = random_key(rng);
    ASSERT_TRUE(run_task(tier->put(key, pieces, info_of(key, bytes))).has_value());
    if (i % 2 == 0) {
      ASSERT_TRUE(run_task(tier->get(key, Verify::kByTier)).has_value());
    }
  }
  ASSERT_EQ(tier->usage().object_count, kObjects);
  const double each = static_cast<double>(allocated() - before) / static_cast<double>(kObjects);
  RecordProperty("bytes_per_object", std::to_string(each));
  std::printf("%.1f bytes an object\n", each);
  EXPECT_LE(each, 200);
  EXPECT_GT(each, 80) << "the measurement misses something";
}

TEST(DramTierOptions, NonsenseIsRefused) {
  EXPECT_EQ(DramTier::open({.capacity_bytes = 0}).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(DramTier::open({.capacity_bytes = -5}).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(DramTier::open({.capacity_bytes = 1 << 20, .slot_bytes = 1000}).error().code(),
            Code::kInvalidArgument);
}

}  // namespace
}  // namespace icefield
