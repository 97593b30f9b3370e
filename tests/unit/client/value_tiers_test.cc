// Values between memory and disk: who stays, who goes down, and when.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/objects.h"
#include "tests/support/temp_dir.h"
#include "tests/support/value_cluster.h"

namespace icefield {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

// One node of 4 MiB of memory.
class ValueTiers : public testing::Test {
 protected:
  Bytes random(std::int64_t size) { return random_bytes(rng_, static_cast<std::size_t>(size)); }
  void open(EvictionKind eviction, bool with_disk) {
    TestNode::Options options{.dram_bytes = 4 * kMiB, .eviction = eviction};
    if (with_disk) options.store = dir_.path();
    cluster_ = std::make_unique<ValueCluster>(options, 1);
  }
  NodeValues& values() { return cluster_->node(0).values(); }

  void put(const std::string& key, ConstByteSpan value) {
    ASSERT_TRUE(cluster_->run(cluster_->store().put(key, value, {}, {})).has_value()) << key;
  }
  Result<Buffer> get(const std::string& key, std::int64_t room = 4 * kMiB) {
    return cluster_->run(cluster_->store().get(key, Buffer(room), {}));
  }
  bool has(const std::string& key) { return get(key).has_value(); }
  // Until nothing is being copied; nothing can be asked for a copy afterwards.
  void finish_copies() { ASSERT_TRUE(cluster_->run(values().stop()).ok()); }
  // Waits for that many copies, by asking for something.
  void await_copies(std::int64_t count) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (values().copied_to_disk.value() < count && std::chrono::steady_clock::now() < give_up) {
      (void)get("absent");
    }
    ASSERT_EQ(values().copied_to_disk.value(), count);
  }

  TempDir dir_;
  SeededRng rng_{7};
  std::unique_ptr<ValueCluster> cluster_;
};

TEST_F(ValueTiers, ValuesInUseGoToDiskWhenMemoryFillsUp) {
  open(EvictionKind::kLru, true);
  const Bytes used = random(kMiB);
  put("used", used);
  put("filler", random(kMiB));
  EXPECT_TRUE(has("used"));
  await_copies(1);
  for (int i = 0; i < 6; ++i) put("k" + std::to_string(i), random(kMiB));
  EXPECT_TRUE(std::ranges::equal(get("used", kMiB).value().bytes(), used)) << "from disk";
  EXPECT_GT(values().disk_reads.value(), 0);
  EXPECT_EQ(get("filler").error().reason(), MissReason::kEvicted)
      << "never used: not worth the disk";
}

// What was read while there was plenty of memory is copied once there is less, before it must go.
TEST_F(ValueTiers, ValuesReadEarlierGoToDiskAheadOfEviction) {
  open(EvictionKind::kLru, true);
  for (int i = 0; i < 100; ++i) {
    put("k" + std::to_string(i), random(10'000));
    EXPECT_TRUE(has("k" + std::to_string(i)));
  }
  EXPECT_EQ(values().copied_to_disk.value(), 0) << "memory is less than half full";
  put("filler", random(kMiB));
  await_copies(100);
  for (int i = 0; i < 4; ++i) put("more " + std::to_string(i), random(kMiB));
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(has("k" + std::to_string(i))) << i;
  EXPECT_EQ(values().copies_late.value(), 0);
  EXPECT_EQ(values().copies_refused.value(), 0);
}

// Computed again after it was lost: that is reuse, too.
TEST_F(ValueTiers, AValueThatComesBackGoesToDisk) {
  open(EvictionKind::kLru, true);
  for (const char* key : {"k", "a", "b", "c", "d"}) put(key, random(kMiB));
  EXPECT_EQ(get("k").error().reason(), MissReason::kEvicted);
  put("k", random(kMiB));
  await_copies(1);
  for (const char* key : {"e", "f", "g", "h"}) put(key, random(kMiB));
  EXPECT_TRUE(has("k"));
}

// Removed while it waits for its copy: nothing is left of it.
TEST_F(ValueTiers, AValueThatIsRemovedMeanwhileLeavesNothingOnDisk) {
  open(EvictionKind::kLru, true);
  for (int i = 0; i < 20; ++i) {
    const std::string key = "k" + std::to_string(i);
    put(key, random(150'000));
    EXPECT_TRUE(has(key));
    const std::vector<std::string_view> keys = {key};
    ASSERT_TRUE(cluster_->run(cluster_->store().remove(keys, {})).has_value());
  }
  finish_copies();
  EXPECT_EQ(cluster_->node(0).disk()->usage().object_count, 0);
}

// Memory full of values that were read again, and new ones in one request: all of them are there
// when it has been answered.
TEST_F(ValueTiers, TheValuesOfABatchDoNotEvictEachOther) {
  open(EvictionKind::kArc, false);
  for (int i = 0; i < 256; ++i) {
    put("old " + std::to_string(i), random(16'000));
    EXPECT_TRUE(has("old " + std::to_string(i)));
  }
  std::vector<std::string> keys;
  for (int i = 0; i < 40; ++i) keys.push_back("new " + std::to_string(i));
  const Bytes bytes = random(16'000);
  const ConstByteSpan part = bytes;
  std::vector<ValueToPut> batch;
  for (const std::string& key : keys) {
    batch.push_back({.key = key, .parts = std::span(&part, 1)});
  }
  const auto outcomes = cluster_->run(cluster_->store().put_batch(batch, {}, {})).value();
  for (const auto& outcome : outcomes) EXPECT_TRUE(outcome.has_value());
  for (const std::string& key : keys) EXPECT_TRUE(has(key)) << key;
}

// Its chunks are looked at while it is put, which is no use of it.
TEST_F(ValueTiers, PuttingALargeValueIsOneUse) {
  open(EvictionKind::kArc, false);
  put("small", random(kMiB / 2));
  EXPECT_TRUE(has("small"));
  put("large", random(3 * kMiB));
  put("larger", random(3 * kMiB + 5));
  EXPECT_TRUE(has("small")) << "used twice";
  EXPECT_FALSE(has("large")) << "used once";
  EXPECT_TRUE(has("larger"));
}

}  // namespace
}  // namespace icefield
