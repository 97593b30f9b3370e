// Flipped bits: every one is detected, none is returned. Goal: 10^5 flips in the DRAM slab and as
// many as time allows on disk, seeded; `icefield bench integrity` does 10^7.
#include <gtest/gtest.h>

#include <fstream>

#include "storage/dram_tier.h"
#include "storage/nvme_tier.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

Result<PutOutcome> put(Tier& tier, const ObjectKey& key, ConstByteSpan bytes) {
  const std::vector<ConstByteSpan> pieces = {bytes};
  return run_task(tier.put(key, pieces, info_of(key, bytes)));
}

TEST(TierIntegrity, EveryFlippedBitOfTheDramSlabIsDetected) {
  SeededRng rng(11);
  const auto tier = DramTier::open({.capacity_bytes = 1 << 20, .slot_bytes = 4096}).value();
  const ObjectKey key = random_key(rng);
  const Bytes bytes = random_bytes(rng, 700);
  ASSERT_TRUE(put(*tier, key, bytes).has_value());
  for (int flip = 0; flip < 100000; ++flip) {
    // Slots are handed out from the front, and the one object takes the one that was given back.
    std::byte& damaged = tier->memory()[rng.below(bytes.size())];
    damaged ^= static_cast<std::byte>(1 << rng.below(8));
    const Result<ObjectBytes> result = run_task(tier->get(key, Verify::kByTier));
    ASSERT_FALSE(result.has_value()) << "flip " << flip;
    ASSERT_EQ(result.error().code(), Code::kDataLoss);
    ASSERT_TRUE(put(*tier, key, bytes).has_value());
  }
  EXPECT_EQ(tier->damaged.value(), 100000);
}

// One flip in each of many small values of blob files, which are found by what they hold.
TEST(TierIntegrity, FlippedBitsOnDiskAreNeverReturned) {
  SeededRng rng(12);
  const TempDir dir;
  constexpr int kObjects = 20000;
  constexpr std::size_t kBytes = 600;
  std::vector<ObjectKey> keys;
  std::vector<Bytes> values;
  {
    const auto tier = NvmeTier::open({.path = dir.path()}).value();
    for (int i = 0; i < kObjects; ++i) {
      keys.push_back(random_key(rng));
      values.push_back(random_bytes(rng, kBytes));
      ASSERT_TRUE(put(*tier, keys.back(), values.back()).has_value());
    }
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  int flips = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string text(std::filesystem::file_size(entry.path()), '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    // A record is its value and 40 bytes before it (header and key), after the file's 30.
    for (std::size_t at = 30 + 40; at + kBytes <= text.size(); at += 40 + kBytes) {
      text[at + rng.below(kBytes)] ^= static_cast<char>(1 << rng.below(8));
      ++flips;
    }
    file.seekp(0);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
  }
  EXPECT_EQ(flips, kObjects);
  const auto tier = NvmeTier::open({.path = dir.path()}).value();
  for (int i = 0; i < kObjects; ++i) {
    const auto& key = keys[static_cast<std::size_t>(i)];
    const Result<ObjectBytes> result = run_task(tier->get(key, Verify::kByTier));
    ASSERT_FALSE(result.has_value()) << "object " << i;
    ASSERT_EQ(result.error().code(), Code::kDataLoss) << result.error().to_string();
  }
  EXPECT_EQ(tier->damaged.value(), kObjects);
  EXPECT_EQ(tier->usage().object_count, 0);
}

}  // namespace
}  // namespace icefield
