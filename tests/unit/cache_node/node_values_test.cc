// Values over a disk that is slow, full or changed by others when the test says so.
#include "cache_node/node_values.h"

#include <gtest/gtest.h>

#include "cache_node/read_through.h"
#include "common/run_writer.h"
#include "common/waiters.h"
#include "tests/support/manual_clock.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"

namespace icefield {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

// Memory that behaves like a disk in trouble.
class FakeDisk final : public Tier {
 public:
  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override {
    if (refusals > 0) {
      --refusals;
      co_return Status(Code::kResourceExhausted, "the disk cannot keep up");
    }
    while (info.bytes == held_bytes) co_await held.wait(Deadline::never());
    co_return co_await tier_->put(key, pieces, info);
  }
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override {
    ICE_CO_TRY(ObjectBytes bytes, co_await tier_->get(key, verify));
    if (replacement.empty()) co_return bytes;
    const ConstByteSpan piece = replacement;
    ICE_CO_TRY(co_await tier_->remove(key));
    ICE_CO_TRY(co_await tier_->put(key, std::span(&piece, 1), info_of(key, piece)));
    co_return bytes;
  }
  Task<> remove(ObjectKey key) override { return tier_->remove(key); }
  Task<> flush() override { return tier_->flush(); }
  Task<> retain(ObjectKey key, Retention retention) override {
    return tier_->retain(key, retention);
  }
  std::optional<ObjectInfo> find(const ObjectKey& key) const override { return tier_->find(key); }
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override {
    tier_->for_each(visit);
  }
  TierUsage usage() const override { return tier_->usage(); }

  int refusals = 0;              // of the next puts
  std::int64_t held_bytes = -1;  // puts of objects this long wait
  Waiters held;
  Bytes replacement;  // put in the place of what is read, during the read

 private:
  std::unique_ptr<DramTier> tier_ = DramTier::open({.capacity_bytes = 64 * kMiB}).value();
};

// Disk, memory of 4 MiB, values. All values are zeros, and of one chunk unless they say more.
class NodeValuesTest : public testing::Test {
 protected:
  struct Item {
    std::string key;
    std::int64_t bytes = 0;
    std::int64_t value_bytes = bytes;  // more: its first chunk comes alone
  };
  // A request, and what it refers to.
  struct Asked {
    Asked(std::vector<Item> items_in, PutOptions options)
        : items(std::move(items_in)), parts(items.size()), checksums(items.size()) {
      request.options = options;
      for (std::size_t i = 0; i < items.size(); ++i) {
        parts[i] = ConstByteSpan(zeros).first(static_cast<std::size_t>(items[i].bytes));
        checksums[i] = object_checksum(chunk_of(items[i].key, items[i].value_bytes),
                                       std::span<const ConstByteSpan>(&parts[i], 1));
        request.values.push_back({.key = items[i].key,
                                  .value_bytes = items[i].value_bytes,
                                  .checksums = std::span(&checksums[i], 1)});
      }
    }
    Asked(const Asked&) = delete;

    const Bytes zeros = Bytes(kMiB);
    const std::vector<Item> items;
    std::vector<ConstByteSpan> parts;
    std::vector<std::uint64_t> checksums;
    PutValues request;
  };

  NodeValuesTest() {
    memory_->on_evict([this](const ObjectKey& key) { values_.note_evicted(key); });
  }
  ~NodeValuesTest() override { EXPECT_TRUE(run(values_.stop()).ok()); }

  static ObjectKey chunk_of(std::string_view key, std::int64_t value_bytes) {
    return value_chunk_key(value_hash("", 0, key), value_chunk_count(value_bytes), 0);
  }
  template <class R>
  R run(asio::awaitable<R> task) {
    return run_task(io_, std::move(task));
  }
  // What goes on in the background.
  void settle() {
    io_.restart();
    io_.poll();
  }
  // All at once, as if they had arrived; the outcome is the last one's.
  Task<PutOutcome> put(std::vector<Item> items, PutOptions options) {
    Asked asked(std::move(items), options);
    std::vector<IncomingChunk> chunks = values_.reserve(asked.request);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      chunks[i].checksum = asked.checksums[i];
      chunks[i].parts = std::span(&asked.parts[i], 1);
      if (!chunks[i].slots.has_value()) continue;
      std::vector<ByteSpan> runs;
      chunks[i].slots->append_runs(runs);
      RunWriter(runs).put(asked.parts[i]);
    }
    ICE_CO_TRY(const PutValuesReply reply, co_await values_.put(asked.request, chunks));
    ICE_CO_TRY(reply.head.status);
    co_return reply.outcomes.back();
  }
  void store(const std::string& key, std::int64_t bytes, PutOptions options = {}) {
    ASSERT_TRUE(run(put({{.key = key, .bytes = bytes}}, options)).has_value()) << key;
  }
  // A durable batch: a large value, and a small one that the disk may hold up.
  asio::awaitable<void> put_behind_held(int i, int& stored) {
    std::vector<Item> items;
    items.push_back({.key = "large " + std::to_string(i), .bytes = 900'000});
    items.push_back({.key = "held " + std::to_string(i), .bytes = 10});
    const PutOptions options{.level = WriteLevel::kDurable};
    const Result<PutOutcome> outcome = co_await put(std::move(items), options);
    if (outcome.has_value()) ++stored;
  }
  Task<> get(std::string key) {
    GetValues request;
    request.values.push_back({.key = key, .room = kMiB});
    ValueReads reads;
    ICE_CO_TRY(const ValueHead head, co_await values_.get(request, reads));
    ICE_CO_TRY(head.status);
    co_return reads.statuses.back();
  }
  void use(const std::string& key) { ASSERT_TRUE(run(get(key)).ok()) << key; }

  asio::io_context io_;
  ManualClock clock_;
  FakeDisk disk_;
  std::unique_ptr<DramTier> memory_ =
      DramTier::open({.capacity_bytes = 4 * kMiB, .eviction = EvictionKind::kLru}, clock_).value();
  NodeValues values_{*memory_, &disk_, clock_, {.hard_pin_bytes = kMiB}};
};

TEST_F(NodeValuesTest, WhatIsReplacedWhileItIsReadIsNotKeptInMemory) {
  SeededRng rng(1);
  const ObjectKey key = random_key(rng);
  const Bytes old = random_bytes(rng, 1000);
  const ConstByteSpan piece = old;
  ASSERT_TRUE(run(disk_.put(key, std::span(&piece, 1), info_of(key, old))).has_value());
  disk_.replacement = random_bytes(rng, 2000);
  Counter reads{"reads", ""};
  const auto read = run(read_through(*memory_, &disk_, key, Verify::kByCaller, reads));
  EXPECT_EQ(read.value().copy(), old);
  EXPECT_FALSE(memory_->find(key).has_value());
  const auto next = run(read_through(*memory_, &disk_, key, Verify::kByCaller, reads));
  EXPECT_EQ(next.value().copy(), disk_.replacement);
}

// Read from disk into memory until it is half full: what was used before is copied then.
TEST_F(NodeValuesTest, ReadsThatFillMemoryStartTheCopies) {
  for (const char* key : {"cold 0", "cold 1"}) {
    store(key, kMiB, {.level = WriteLevel::kDurable});
    ASSERT_TRUE(run(memory_->remove(chunk_of(key, kMiB))).ok());
  }
  store("used", 100'000);
  use("used");
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 0) << "memory is less than half full";
  use("cold 0");
  use("cold 1");
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 1);
  EXPECT_TRUE(disk_.find(chunk_of("used", 100'000)).has_value());
}

TEST_F(NodeValuesTest, CopiesGoOnAfterTheDiskRefusedOne) {
  for (const char* key : {"a", "b", "c"}) {
    store(key, 100'000);
    use(key);
  }
  disk_.refusals = 1;
  store("filler 0", 900'000);
  store("filler 1", 900'000);
  settle();
  EXPECT_EQ(values_.copies_refused.value(), 1);
  EXPECT_EQ(values_.copied_to_disk.value(), 0);
  use("b");
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 2);
  use("a");
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 3) << "asked for again";
}

// Four batches wait for the disk in the middle: what they have put so far must not fill memory.
TEST_F(NodeValuesTest, BatchesUnderWayDoNotCostOthersTheirSoftPins) {
  store("pinned", 100'000, {.pin = PinKind::kSoft, .pin_ttl_ms = 1'000'000});
  disk_.held_bytes = 10;
  int stored = 0;
  TaskScope scope(io_.get_executor());
  for (int i = 0; i < 4; ++i) scope.spawn(put_behind_held(i, stored));
  settle();
  store("new", 500'000);
  const auto pinned = memory_->find(chunk_of("pinned", 100'000));
  EXPECT_TRUE(pinned.has_value() && pinned->retention.pinned_until_ms > 0);
  EXPECT_EQ(stored, 0);
  disk_.held_bytes = -1;
  disk_.held.notify_all();
  settle();
  EXPECT_EQ(stored, 4);
}

TEST_F(NodeValuesTest, PutsThatWillBeRefusedEvictNothing) {
  const Item half{.key = "half", .bytes = kMiB, .value_bytes = 2 * kMiB};
  ASSERT_TRUE(run(put({half}, {})).has_value());
  for (int i = 0; i < 3; ++i) store("k" + std::to_string(i), kMiB);
  ValueHead head;
  ASSERT_TRUE(run(values_.flush({.name_space = "flushed", .flush_number = 1}, head)).has_value());
  const auto takes_room = [&](NodeValues& values, const PutValues& request) {
    return values.reserve(request).front().slots.has_value();
  };
  Asked stale({{.key = "new", .bytes = kMiB}}, {});
  stale.request.scope.name_space = "flushed";
  EXPECT_FALSE(takes_room(values_, stale.request));
  Asked rival({half}, {});
  rival.request.upload = 1;
  EXPECT_FALSE(takes_room(values_, rival.request));
  const Asked pinned({{.key = "a", .bytes = kMiB}, {.key = "b", .bytes = 1}},
                     {.pin = PinKind::kHard});
  NodeValues no_pins(*memory_, nullptr, clock_, {});
  EXPECT_FALSE(takes_room(no_pins, pinned.request));
  const Asked durable({{.key = "new", .bytes = kMiB}}, {.level = WriteLevel::kDurable});
  EXPECT_FALSE(takes_room(no_pins, durable.request));
  EXPECT_EQ(memory_->evicted.value(), 0);
  EXPECT_TRUE(takes_room(values_, durable.request));
  EXPECT_GT(memory_->evicted.value(), 0);
}

TEST_F(NodeValuesTest, ChunksOfAnotherMakeAreNotTakenForAValue) {
  const ValueHash hash = value_hash("", 0, "foreign");
  const Bytes bytes(kMiB + 1);
  const ConstByteSpan piece = bytes;
  for (const ObjectKey& key : {value_chunk_key(hash, 1, 0), value_name_key(hash)}) {
    ASSERT_TRUE(run(disk_.put(key, std::span(&piece, 1), info_of(key, bytes))).has_value());
  }
  ASSERT_TRUE(run(values_.recover()).ok());
  EXPECT_EQ(disk_.usage().object_count, 0);
}

TEST_F(NodeValuesTest, WhatIsOnDiskAlreadyIsNoCopy) {
  store("used", 100'000);
  use("used");
  store("used", 100'000, {.level = WriteLevel::kDurable});
  for (int i = 0; i < 3; ++i) store("filler " + std::to_string(i), 900'000);
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 0);
}

}  // namespace
}  // namespace icefield
