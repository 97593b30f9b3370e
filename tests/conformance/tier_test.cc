// What every Tier promises (storage/tier.h). A new tier adds one line at the end.
#include <gtest/gtest.h>

#include <set>

#include "storage/dram_tier.h"
#include "storage/nvme_tier.h"
#include "tests/support/manual_clock.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

struct TierCase {
  const char* name;
  std::unique_ptr<Tier> (*open)(const std::string& dir, const Clock& clock);
};

class TierConformance : public testing::TestWithParam<TierCase> {
 protected:
  void SetUp() override { tier_ = GetParam().open(dir_.path(), clock_); }

  Result<PutOutcome> put(const ObjectKey& key, ConstByteSpan bytes, Retention retention = {}) {
    const std::vector<ConstByteSpan> pieces = {bytes};
    ObjectInfo info = info_of(key, bytes);
    info.retention = retention;
    return run_task(tier_->put(key, pieces, info));
  }
  Result<Bytes> get(const ObjectKey& key, Verify verify = Verify::kByTier) {
    ICE_TRY(const ObjectBytes bytes, run_task(tier_->get(key, verify)));
    return bytes.copy();
  }

  TempDir dir_;
  ManualClock clock_;
  std::unique_ptr<Tier> tier_;
  SeededRng rng_{1};
};

TEST_P(TierConformance, GetReturnsWhatWasPut) {
  for (const std::size_t size : {1u, 255u, 4096u, 16384u, 16385u, 65536u, 1000000u}) {
    const ObjectKey key = random_key(rng_);
    const Bytes bytes = random_bytes(rng_, size);
    ASSERT_EQ(put(key, bytes).value(), PutOutcome::kStored);
    EXPECT_EQ(get(key).value(), bytes);
    EXPECT_EQ(get(key, Verify::kByCaller).value(), bytes);
    EXPECT_EQ(tier_->find(key), info_of(key, bytes));
  }
}

TEST_P(TierConformance, PiecesAreStoredBackToBack) {
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 50000);
  const ConstByteSpan whole = bytes;
  const std::vector<ConstByteSpan> pieces = {whole.first(1), whole.subspan(1, 20000),
                                             whole.subspan(20001, 0), whole.subspan(20001)};
  ASSERT_TRUE(run_task(tier_->put(key, pieces, info_of(key, bytes))).has_value());
  EXPECT_EQ(get(key).value(), bytes);
}

TEST_P(TierConformance, MissSaysThatNothingWasStored) {
  const Result<Bytes> result = get(random_key(rng_));
  EXPECT_EQ(result.error().code(), Code::kNotFound);
  EXPECT_EQ(result.error().reason(), MissReason::kNeverStored);
  EXPECT_EQ(tier_->find(random_key(rng_)), std::nullopt);
}

TEST_P(TierConformance, SecondPutOfAKeyChangesNothing) {
  const ObjectKey key = random_key(rng_);
  const Bytes first = random_bytes(rng_, 5000);
  const Bytes second = random_bytes(rng_, 6000);
  EXPECT_EQ(put(key, first).value(), PutOutcome::kStored);
  EXPECT_EQ(put(key, second).value(), PutOutcome::kAlreadyThere);
  EXPECT_EQ(get(key).value(), first);
  EXPECT_EQ(tier_->usage().object_count, 1);
}

TEST_P(TierConformance, RemovedObjectsAreGone) {
  const ObjectKey key = random_key(rng_);
  ASSERT_TRUE(put(key, random_bytes(rng_, 5000)).has_value());
  EXPECT_TRUE(run_task(tier_->remove(key)).ok());
  EXPECT_EQ(get(key).error().code(), Code::kNotFound);
  EXPECT_EQ(tier_->usage().object_count, 0);
  EXPECT_EQ(tier_->usage().used_bytes, 0);
  EXPECT_TRUE(run_task(tier_->remove(key)).ok()) << "removing what is not there is no error";
  EXPECT_EQ(put(key, random_bytes(rng_, 100)).value(), PutOutcome::kStored);
}

TEST_P(TierConformance, LeaseOutlivesRemoval) {
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 40000);
  ASSERT_TRUE(put(key, bytes).has_value());
  {
    const ObjectBytes lease = run_task(tier_->get(key, Verify::kByTier)).value();
    ASSERT_TRUE(run_task(tier_->remove(key)).ok());
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(put(random_key(rng_), random_bytes(rng_, 40000)).has_value());
    }
    EXPECT_EQ(lease.copy(), bytes);
  }
  EXPECT_EQ(get(key).error().code(), Code::kNotFound);
}

TEST_P(TierConformance, ForEachVisitsEveryObjectOnce) {
  std::set<ObjectKey> keys;
  for (int i = 0; i < 25; ++i) {
    keys.insert(random_key(rng_));
  }
  for (const ObjectKey& key : keys) ASSERT_TRUE(put(key, random_bytes(rng_, 300)).has_value());
  std::set<ObjectKey> seen;
  tier_->for_each([&](const ObjectKey& key, const ObjectInfo& info) {
    EXPECT_EQ(info.bytes, 300);
    EXPECT_TRUE(seen.insert(key).second);
  });
  EXPECT_EQ(seen, keys);
}

TEST_P(TierConformance, FlushSucceeds) {
  ASSERT_TRUE(put(random_key(rng_), random_bytes(rng_, 300)).has_value());
  EXPECT_TRUE(run_task(tier_->flush()).ok());
}

// A wrong checksum at put stands for bytes that changed since: they must never be returned.
TEST_P(TierConformance, DamagedObjectIsReportedAndDropped) {
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 20000);
  ObjectInfo wrong = info_of(key, bytes);
  wrong.checksum ^= 1;
  const std::vector<ConstByteSpan> pieces = {bytes};
  ASSERT_TRUE(run_task(tier_->put(key, pieces, wrong)).has_value());
  const Result<Bytes> first = get(key);
  EXPECT_EQ(first.error().code(), Code::kDataLoss);
  EXPECT_EQ(first.error().reason(), MissReason::kIntegrity);
  EXPECT_EQ(get(key).error().code(), Code::kNotFound) << "dropped, so the next get is a miss";
}

TEST_P(TierConformance, EmptyObjectsAreObjects) {
  const ObjectKey key = random_key(rng_);
  ASSERT_EQ(put(key, {}).value(), PutOutcome::kStored);
  EXPECT_EQ(get(key).value(), Bytes());
  EXPECT_EQ(tier_->usage().object_count, 1);
  EXPECT_TRUE(run_task(tier_->remove(key)).ok());
  EXPECT_EQ(tier_->usage().used_bytes, 0);
}

TEST_P(TierConformance, ImpossibleSizesAreRefused) {
  const ObjectKey key = random_key(rng_);
  for (const std::int64_t bytes : {std::int64_t{-1}, std::int64_t{1} << 32}) {
    const Result<PutOutcome> refused = run_task(tier_->put(key, {}, {.bytes = bytes}));
    EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
  }
  EXPECT_EQ(tier_->usage().object_count, 0);
}

TEST_P(TierConformance, ExpiredObjectsAreMissesThatSaySoAndCanBePutAgain) {
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 5000);
  const Bytes later = random_bytes(rng_, 6000);
  ASSERT_TRUE(put(key, bytes, {.expires_at_ms = clock_.unix_ms() + 10}).has_value());
  clock_.advance(std::chrono::milliseconds(9));
  EXPECT_EQ(get(key).value(), bytes);
  EXPECT_EQ(put(key, later).value(), PutOutcome::kAlreadyThere);
  clock_.advance(std::chrono::milliseconds(1));
  const Result<Bytes> miss = get(key);
  EXPECT_EQ(miss.error().code(), Code::kNotFound);
  EXPECT_EQ(miss.error().reason(), MissReason::kExpired);
  EXPECT_EQ(tier_->find(key), std::nullopt);
  tier_->for_each([](const ObjectKey&, const ObjectInfo&) { FAIL() << "it has expired"; });
  EXPECT_EQ(run_task(tier_->retain(key, {})).code(), Code::kNotFound);
  EXPECT_EQ(put(key, later).value(), PutOutcome::kStored);
  EXPECT_EQ(get(key).value(), later);
  EXPECT_EQ(tier_->usage().object_count, 1);
}

TEST_P(TierConformance, RetainChangesWhenAnObjectExpires) {
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 5000);
  ASSERT_TRUE(put(key, bytes, {.expires_at_ms = clock_.unix_ms() + 10}).has_value());
  const Retention longer{.expires_at_ms = clock_.unix_ms() + 1000,
                         .pinned_until_ms = Retention::kForever};
  ASSERT_TRUE(run_task(tier_->retain(key, longer)).ok());
  EXPECT_EQ(tier_->find(key)->retention, longer);
  clock_.advance(std::chrono::milliseconds(500));
  EXPECT_EQ(get(key).value(), bytes);
  clock_.advance(std::chrono::milliseconds(500));
  EXPECT_EQ(get(key).error().reason(), MissReason::kExpired);
  EXPECT_EQ(run_task(tier_->retain(random_key(rng_), longer)).code(), Code::kNotFound);
}

// More than the tier holds: the newest are there, the pinned one too, and nothing is wrong.
TEST_P(TierConformance, AFullTierEvictsButNotWhatIsPinned) {
  const ObjectKey pinned = random_key(rng_);
  const Bytes precious = random_bytes(rng_, 100000);
  ASSERT_TRUE(put(pinned, precious, {.pinned_until_ms = Retention::kForever}).has_value());
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  for (int i = 0; i < 400; ++i) {  // 40 MB
    objects.emplace_back(random_key(rng_), Bytes(100000, static_cast<std::byte>(i)));
    Result<PutOutcome> stored = put(objects.back().first, objects.back().second);
    while (!stored.has_value()) {  // back-pressure, never anything else
      ASSERT_EQ(stored.error().code(), Code::kResourceExhausted) << stored.error().to_string();
      ASSERT_TRUE(run_task(tier_->flush()).ok());
      stored = put(objects.back().first, objects.back().second);
    }
  }
  EXPECT_EQ(get(pinned).value(), precious);
  EXPECT_LE(tier_->usage().used_bytes, tier_->usage().capacity_bytes);
  EXPECT_LT(tier_->usage().object_count, 300);
  int hits = 0;
  for (const auto& [key, bytes] : objects) {
    const Result<Bytes> found = get(key);
    if (found.has_value()) {
      ++hits;
      EXPECT_EQ(*found, bytes);
    } else {
      EXPECT_EQ(found.error().code(), Code::kNotFound);
    }
  }
  EXPECT_EQ(hits, tier_->usage().object_count - 1);
  EXPECT_GT(hits, 50);
  EXPECT_TRUE(get(objects.back().first).has_value());
}

std::unique_ptr<Tier> open_dram(const std::string&, const Clock& clock) {
  return DramTier::open({.capacity_bytes = 16 << 20}, clock).value();
}
std::unique_ptr<Tier> open_dram_lru(const std::string&, const Clock& clock) {
  return DramTier::open(
             {.capacity_bytes = 16 << 20, .slot_bytes = 4096, .eviction = EvictionKind::kLru},
             clock)
      .value();
}
std::unique_ptr<Tier> open_dram_given(const std::string&, const Clock& clock) {
  static AlignedBytes slab(16 << 20);
  return DramTier::open({.memory = slab}, clock).value();
}
NvmeTier::Options small_nvme(const std::string& dir) {
  return {.path = dir, .write_buffer_bytes = 1 << 20, .capacity_bytes = 16 << 20};
}
std::unique_ptr<Tier> open_nvme(const std::string& dir, const Clock& clock) {
  return NvmeTier::open(small_nvme(dir), clock).value();
}
std::unique_ptr<Tier> open_nvme_buffered(const std::string& dir, const Clock& clock) {
  NvmeTier::Options options = small_nvme(dir);
  options.direct_io = false;
  options.eviction = EvictionKind::kLru;
  return NvmeTier::open(options, clock).value();
}
INSTANTIATE_TEST_SUITE_P(Tiers, TierConformance,
                         testing::Values(TierCase{"dram", open_dram},
                                         TierCase{"dram_lru", open_dram_lru},
                                         TierCase{"dram_given", open_dram_given},
                                         TierCase{"nvme", open_nvme},
                                         TierCase{"nvme_buffered", open_nvme_buffered}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace icefield
