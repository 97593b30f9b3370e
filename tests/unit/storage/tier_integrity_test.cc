// Flipped bits: every one is detected, none is returned. Goal: 10^5 flips in the DRAM slab and as
// many on disk, seeded; `icefield bench integrity` does 10^7.
#include <gtest/gtest.h>

#include <fstream>

#include "common/task_scope.h"
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

// What a hundred thousand objects take in turn: the clients of a measurement, side by side.
struct Objects {
  NvmeTier* tier = nullptr;
  std::vector<ObjectKey> keys;
  std::vector<Bytes> values;
  std::size_t next = 0;
  int stored = 0;
  int detected = 0;
};

asio::awaitable<void> put_some(Objects& objects) {
  while (objects.next < objects.keys.size()) {
    const std::size_t i = objects.next++;
    const std::vector<ConstByteSpan> pieces = {objects.values[i]};
    const ObjectInfo info = info_of(objects.keys[i], objects.values[i]);
    const Result<PutOutcome> put = co_await objects.tier->put(objects.keys[i], pieces, info);
    if (put.has_value()) ++objects.stored;
  }
}

asio::awaitable<void> get_some(Objects& objects) {
  while (objects.next < objects.keys.size()) {
    const std::size_t i = objects.next++;
    const Result<ObjectBytes> got = co_await objects.tier->get(objects.keys[i], Verify::kByTier);
    if (!got.has_value() && got.error().code() == Code::kDataLoss) ++objects.detected;
  }
}

void run_all(Objects& objects, asio::awaitable<void> (*some)(Objects&)) {
  asio::io_context io;
  TaskScope scope(io.get_executor());
  objects.next = 0;
  for (int i = 0; i < 64; ++i) scope.spawn(some(objects));
  io.run();
}

// Flips a bit of every value in the blob files of `dir`; how many.
int flip_one_bit_each(const TempDir& dir, std::size_t value_bytes, SeededRng& rng) {
  int flips = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string text(std::filesystem::file_size(entry.path()), '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    // A record is its value and 40 bytes before it (header and key), after the file's 30.
    for (std::size_t at = 30 + 40; at + value_bytes <= text.size(); at += 40 + value_bytes) {
      text[at + rng.below(value_bytes)] ^= static_cast<char>(1 << rng.below(8));
      ++flips;
    }
    file.seekp(0);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
  }
  return flips;
}

TEST(TierIntegrity, FlippedBitsOnDiskAreNeverReturned) {
  SeededRng rng(12);
  const TempDir dir;
  constexpr int kObjects = 100000;
  constexpr std::size_t kBytes = 600;
  Objects objects;
  for (int i = 0; i < kObjects; ++i) {
    objects.keys.push_back(random_key(rng));
    objects.values.push_back(random_bytes(rng, kBytes));
  }
  {
    const auto tier = NvmeTier::open({.path = dir.path()}).value();
    objects.tier = tier.get();
    run_all(objects, put_some);
    EXPECT_EQ(objects.stored, kObjects);
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  EXPECT_EQ(flip_one_bit_each(dir, kBytes, rng), kObjects);
  const auto tier = NvmeTier::open({.path = dir.path()}).value();
  objects.tier = tier.get();
  run_all(objects, get_some);
  EXPECT_EQ(objects.detected, kObjects);
  EXPECT_EQ(tier->damaged.value(), kObjects);
  EXPECT_EQ(tier->usage().object_count, 0);
}

}  // namespace
}  // namespace icefield
