// What every Tier promises (storage/tier.h). A new tier adds one line at the end.
#include <gtest/gtest.h>

#include <set>

#include "storage/dram_tier.h"
#include "storage/nvme_tier.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

struct TierCase {
  const char* name;
  std::unique_ptr<Tier> (*open)(const std::string& dir);
};

class TierConformance : public testing::TestWithParam<TierCase> {
 protected:
  void SetUp() override { tier_ = GetParam().open(dir_.path()); }

  Result<PutOutcome> put(const ObjectKey& key, ConstByteSpan bytes) {
    const std::vector<ConstByteSpan> pieces = {bytes};
    return run_task(tier_->put(key, pieces, info_of(key, bytes)));
  }
  Result<Bytes> get(const ObjectKey& key, Verify verify = Verify::kByTier) {
    ICE_TRY(const ObjectBytes bytes, run_task(tier_->get(key, verify)));
    return bytes.copy();
  }

  TempDir dir_;
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

std::unique_ptr<Tier> open_dram(const std::string&) {
  return DramTier::open({.capacity_bytes = 64 << 20}).value();
}
std::unique_ptr<Tier> open_nvme(const std::string& dir) {
  return NvmeTier::open({.path = dir}).value();
}
INSTANTIATE_TEST_SUITE_P(Tiers, TierConformance,
                         testing::Values(TierCase{"dram", open_dram}, TierCase{"nvme", open_nvme}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace icefield
