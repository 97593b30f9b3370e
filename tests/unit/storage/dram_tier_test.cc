#include "storage/dram_tier.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <map>

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

TEST_F(DramTierTest, WhatTakesThePlaceOfManyIsOnePiece) {
  open(8);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(put(random_key(rng_), 10).has_value());
  for (int i = 0; i < 3; ++i) {
    const ObjectKey large = random_key(rng_);
    ASSERT_TRUE(put(large, 4 * kSlot).has_value());
    EXPECT_EQ(get(large)->pieces().size(), 1u) << i;
  }
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

// Else the rest of the object would be what its slots held before.
TEST_F(DramTierTest, PiecesMustBeAsLongAsTheObject) {
  open(2);
  const ObjectKey key = random_key(rng_);
  const Bytes bytes(100);
  const std::vector<ConstByteSpan> pieces = {bytes};
  EXPECT_DEATH((void)run_task(tier_->put(key, pieces, {.bytes = 101})), "check failed");
  EXPECT_DEATH((void)run_task(tier_->put(key, pieces, {.bytes = 99})), "check failed");
}

TEST_F(DramTierTest, ObjectLargerThanTheTierIsRefusedAndEvictsNothing) {
  open(2);
  ASSERT_TRUE(put(random_key(rng_), 100).has_value());
  EXPECT_EQ(put(random_key(rng_), 2 * kSlot + 1).error().code(), Code::kResourceExhausted);
  EXPECT_TRUE(evicted_.empty());
}

TEST_F(DramTierTest, ReservedSlotsComeBackUnlessTheyAreStored) {
  open(8);
  const Bytes bytes(2 * kSlot, std::byte{7});
  const ObjectKey key = random_key(rng_);
  {
    const auto reserved = tier_->reserve(key, 2 * kSlot);
    ASSERT_TRUE(reserved.has_value());
    EXPECT_EQ(tier_->usage().used_bytes, 2 * kSlot);
    EXPECT_FALSE(get(key).has_value()) << "nothing is there yet";
    EXPECT_EQ(tier_->reserve(random_key(rng_), 1).status().code(), Code::kResourceExhausted)
        << "a quarter is reserved";
  }
  EXPECT_EQ(tier_->usage().used_bytes, 0);

  auto reserved = tier_->reserve(key, 2 * kSlot);
  std::vector<ByteSpan> runs;
  reserved->append_runs(runs);
  ASSERT_EQ(runs.size(), 1u) << "neighbours are one run";
  std::ranges::copy(bytes, runs[0].begin());
  EXPECT_EQ(tier_->store(std::move(*reserved), info_of(key, bytes)).value(), PutOutcome::kStored);
  EXPECT_EQ(get(key)->copy(), bytes);
}

TEST_F(DramTierTest, ReservedSlotsAreSplitAmongObjects) {
  open(32);
  auto slots = tier_->reserve_slots(8);
  ASSERT_TRUE(slots.has_value());
  std::vector<ByteSpan> room;
  slots->append_runs(room);
  ASSERT_EQ(room.size(), 1u);
  const std::int64_t sizes[] = {kSlot, kSlot + 1, 0, 3 * kSlot};
  const std::int64_t first_slots[] = {0, 1, 3, 4};
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 4; ++i) {
    keys.push_back(random_key(rng_));
    auto part = slots->split(keys.back(), sizes[i]);
    ASSERT_TRUE(part.has_value());
    std::vector<ByteSpan> runs;
    part->append_runs(runs);
    Bytes bytes;
    if (sizes[i] > 0) {
      ASSERT_EQ(runs.size(), 1u);
      EXPECT_EQ(runs[0].data(), room[0].data() + first_slots[i] * kSlot);
      std::ranges::fill(runs[0], static_cast<std::byte>(i));
      bytes.assign(runs[0].begin(), runs[0].end());
    }
    EXPECT_EQ(tier_->store(std::move(*part), info_of(keys.back(), bytes)).value(),
              PutOutcome::kStored);
  }
  EXPECT_FALSE(slots->split(random_key(rng_), kSlot + 1).has_value());
  EXPECT_EQ(tier_->usage().used_bytes, 8 * kSlot);
  EXPECT_TRUE(slots->split(random_key(rng_), kSlot).has_value()) << "and comes back at once";
  EXPECT_FALSE(slots->split(random_key(rng_), 0).has_value()) << "nothing is left";
  EXPECT_EQ(tier_->usage().used_bytes, 7 * kSlot);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(get(keys[static_cast<std::size_t>(i)])->size(), sizes[i]);
  }
  EXPECT_EQ(tier_->reserve_slots(9).status().code(), Code::kResourceExhausted)
      << "more than a quarter";
}

TEST_F(DramTierTest, ReservationThatCameSecondGivesItsSlotsBack) {
  open(8);
  const Bytes bytes(kSlot, std::byte{7});
  const ObjectKey key = random_key(rng_);
  auto reserved = tier_->reserve(key, kSlot);
  ASSERT_TRUE(put(key, kSlot).has_value());
  EXPECT_EQ(tier_->store(std::move(*reserved), info_of(key, bytes)).value(),
            PutOutcome::kAlreadyThere);
  EXPECT_EQ(tier_->usage().used_bytes, kSlot);
  EXPECT_EQ(get(key)->copy(), bytes);
}

TEST_F(DramTierTest, ReservingEvictsWhatAPutWould) {
  open(4);
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 4; ++i) {
    keys.push_back(random_key(rng_));
    ASSERT_TRUE(put(keys.back(), 10).has_value());
  }
  const auto reserved = tier_->reserve(random_key(rng_), kSlot);
  ASSERT_TRUE(reserved.has_value());
  EXPECT_EQ(evicted_, std::vector<ObjectKey>{keys[0]});
  ASSERT_TRUE(put(random_key(rng_), 10).has_value());
  EXPECT_EQ(evicted_, (std::vector<ObjectKey>{keys[0], keys[1]})) << "not what is reserved";
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

// Random operations beside a plain map: what is there has its bytes, what went was told, leases and
// pins hold, and no slot is lost.
class DramTierModel : public testing::TestWithParam<EvictionKind> {
 protected:
  struct Object {
    Bytes bytes;
    bool pinned = false;
  };
  struct Lease {
    ObjectKey key;  // of nothing once the object was removed
    Bytes expected;
    ObjectBytes bytes;
  };

  DramTierModel() {
    for (int i = 0; i < 60; ++i) keys_.push_back(random_key(rng_));
    tier_->on_evict([this](const ObjectKey& key) {
      ASSERT_TRUE(model_.contains(key));
      EXPECT_FALSE(model_[key].pinned);
      for (const Lease& lease : leases_) EXPECT_NE(lease.key, key);
      model_.erase(key);
    });
  }

  void put(const ObjectKey& key) {
    Object object{.bytes = random_bytes(rng_, rng_.below(5 * 4096)), .pinned = rng_.below(20) == 0};
    const std::vector<ConstByteSpan> pieces = {object.bytes};
    ObjectInfo info = info_of(key, object.bytes);
    if (object.pinned) info.retention.pinned_until_ms = Retention::kForever;
    const Result<PutOutcome> outcome = run_task(tier_->put(key, pieces, info));
    if (!outcome.has_value()) {
      EXPECT_EQ(outcome.error().code(), Code::kResourceExhausted);
    } else if (*outcome == PutOutcome::kStored) {
      EXPECT_TRUE(model_.emplace(key, std::move(object)).second);
    } else {
      EXPECT_TRUE(model_.contains(key));
    }
  }
  void look(const ObjectKey& key, bool touch) {
    std::optional<ObjectBytes> bytes;
    if (touch) {
      Result<ObjectBytes> got = run_task(tier_->get(key, Verify::kByTier));
      if (got.has_value()) bytes = std::move(*got);
    } else {
      bytes = tier_->lease(key);
    }
    ASSERT_EQ(bytes.has_value(), model_.contains(key));
    if (!bytes.has_value()) return;
    EXPECT_EQ(bytes->copy(), model_[key].bytes);
    if (rng_.below(3) == 0) leases_.push_back({key, model_[key].bytes, std::move(*bytes)});
  }
  void remove(const ObjectKey& key) {
    ASSERT_TRUE(run_task(tier_->remove(key)).ok());
    for (Lease& lease : leases_) {
      if (lease.key == key) lease.key = {};
    }
    model_.erase(key);
  }
  void end_lease() {
    if (leases_.empty()) return;
    EXPECT_EQ(leases_.front().bytes.copy(), leases_.front().expected);
    leases_.erase(leases_.begin());
  }
  void unpin(const ObjectKey& key) {
    EXPECT_EQ(run_task(tier_->retain(key, {})).ok(), model_.contains(key));
    if (model_.contains(key)) model_[key].pinned = false;
  }

  SeededRng rng_{9};
  std::vector<ObjectKey> keys_;
  std::unique_ptr<DramTier> tier_ =
      DramTier::open({.capacity_bytes = 40 * 4096, .slot_bytes = 4096, .eviction = GetParam()})
          .value();
  std::map<ObjectKey, Object> model_;
  std::vector<Lease> leases_;
};

TEST_P(DramTierModel, RandomOperationsAgreeWithAMap) {
  for (int step = 0; step < 20000; ++step) {
    const ObjectKey& key = keys_[rng_.below(keys_.size())];
    switch (rng_.below(8)) {
      case 0: remove(key); break;
      case 1: unpin(key); break;
      case 2: look(key, true); break;
      case 3: look(key, false); break;
      case 4: end_lease(); break;
      default: put(key);
    }
    if (leases_.size() > 6) end_lease();
    ASSERT_EQ(tier_->usage().object_count, static_cast<std::int64_t>(model_.size()));
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
  EXPECT_GT(tier_->evicted.value(), 1000);
  leases_.clear();
  for (const ObjectKey& key : keys_) remove(key);
  EXPECT_EQ(tier_->usage().used_bytes, 0) << "slots were lost";
}
INSTANTIATE_TEST_SUITE_P(Policies, DramTierModel,
                         testing::Values(EvictionKind::kLru, EvictionKind::kArc),
                         [](const auto& kind) { return std::string(to_string(kind.param)); });

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
