// Values over a disk that is slow, full or changed by others when the test says so.
#include "cache_node/node_values.h"

#include <gtest/gtest.h>

#include "cache_node/read_through.h"
#include "tests/support/node_values_fixture.h"
#include "tests/support/objects.h"

namespace icefield {
namespace {

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
  disk_.let_go();
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
  settle();
  EXPECT_EQ(disk_.usage().object_count, 0);
}

// What comes from disk counts like what is in memory.
TEST_F(NodeValuesTest, AReplyHoldsNoMoreThanItsLimitWhereverItComesFrom) {
  store("a", kMiB, {.level = WriteLevel::kDurable});
  for (const bool cold : {false, true}) {
    if (cold) {
      ASSERT_TRUE(run(memory_->remove(chunk_of("a", kMiB))).ok());
    }
    GetValues request;
    request.values.assign(65, {.key = "a", .room = kMiB});
    ValueReads reads;
    ASSERT_TRUE(run(values_.get(request, reads)).has_value());
    EXPECT_EQ(reads.payload_bytes, 64 * kMiB);
    ASSERT_EQ(reads.statuses.size(), 65u);
    EXPECT_EQ(std::ranges::count(reads.statuses, Code::kResourceExhausted, &Status::code), 1);
  }
}

// As many namespaces as a node has, asked for and not put into.
TEST_F(NodeValuesTest, ReadsMakeNoNamespaces) {
  constexpr int kMost = 1 << 16;
  const std::vector<std::string_view> keys = {"key"};
  const auto ask = [&]() -> Task<> {
    for (int i = 0; i <= kMost; ++i) {
      const std::string name = "asked " + std::to_string(i);
      const ValueScope scope{.name_space = name};
      GetValues request;
      request.scope = scope;
      request.values.push_back({.key = "key", .room = 1});
      ValueReads reads;
      ICE_CO_TRY(const ValueHead head, co_await values_.get(request, reads));
      ICE_CO_TRY(head.status);
      if (reads.statuses.back().reason() != MissReason::kNeverStored) co_return head.status;
      if (i > 10) continue;
      ICE_CO_TRY(const FoundValues found, co_await values_.find(scope, keys));
      ICE_CO_TRY(found.head.status);
      ICE_CO_TRY(const ListedValues listed, co_await values_.list(scope, "", "", 10));
      ICE_CO_TRY(listed.head.status);
      ICE_CO_TRY(const ValueHead removed, co_await values_.remove(scope, keys));
      ICE_CO_TRY(removed.status);
    }
    co_return Status();
  };
  EXPECT_TRUE(run(ask()).ok());
  store("new", 100);
  EXPECT_TRUE(run(get("new")).ok());
}

// They would leave no room for further flushes.
TEST_F(NodeValuesTest, FlushNumbersFarAheadAreRefused) {
  store("a", 100);
  for (const std::uint64_t number : {UINT64_MAX, std::uint64_t{1} << 33}) {
    ValueHead head;
    ASSERT_TRUE(run(values_.flush({.flush_number = number}, head)).has_value());
    EXPECT_EQ(head.status.code(), Code::kInvalidArgument) << head.status.to_string();
    const std::vector<std::string_view> keys = {"a"};
    EXPECT_EQ(run(values_.find({.flush_number = number}, keys)).value().head.status.code(),
              Code::kInvalidArgument);
  }
  EXPECT_TRUE(run(get("a")).ok());
  ValueHead head;
  ASSERT_TRUE(run(values_.flush({.flush_number = 1000}, head)).has_value());
  EXPECT_TRUE(head.status.ok()) << "a node may have missed some";
}

// Raised without the old record being removed, as when the disk cannot keep up.
TEST_F(NodeValuesTest, OldFlushRecordsGoAtTheNextStart) {
  const auto flush = [&](std::string_view space, std::uint64_t number) {
    ValueHead head;
    const ValueScope scope{.name_space = space, .flush_number = number};
    return run(values_.flush(scope, head)).has_value() && head.status.ok();
  };
  disk_.remove_refusals = 1000;
  ASSERT_TRUE(flush("a", 1) && flush("a", 2) && flush("b", 1));
  disk_.remove_refusals = 0;
  EXPECT_EQ(disk_.usage().object_count, 3);
  NodeValues next(*memory_, &disk_, clock_, {});
  ASSERT_TRUE(run(next.recover()).ok());
  EXPECT_EQ(disk_.usage().object_count, 2) << "b's number is none of a's";
}

TEST_F(NodeValuesTest, WhatIsOnDiskAlreadyIsNoCopy) {
  store("used", 100'000);
  use("used");
  store("used", 100'000, {.level = WriteLevel::kDurable});
  for (int i = 0; i < 3; ++i) store("filler " + std::to_string(i), 900'000);
  settle();
  EXPECT_EQ(values_.copied_to_disk.value(), 0);
}

// Values whose first chunk is here and others are still to come.
class NodeValuesUploadTest : public NodeValuesTest {
 protected:
  static constexpr std::int64_t kValueBytes = 2 * kMiB + 100;

  Result<PutOutcome> begin(const char* key, PinKind pin = PinKind::kNone) {
    return run(put({{.key = key, .bytes = kMiB, .value_bytes = kValueBytes}}, {.pin = pin}));
  }
  // All of a small value, by another client.
  Result<PutOutcome> put_by_another(const char* key) {
    Asked asked({{.key = key, .bytes = 100}}, {});
    asked.request.upload = 7;
    std::vector<IncomingChunk> chunks = values_.reserve(asked.request);
    chunks.front().checksum = asked.checksums.front();
    chunks.front().parts = std::span(asked.parts).first(1);
    return run(values_.put(asked.request, chunks)).value().outcomes.front();
  }
};

TEST_F(NodeValuesUploadTest, HardPinsCountFromTheFirstPartOn) {
  ASSERT_TRUE(begin("a", PinKind::kHard).has_value());
  ASSERT_TRUE(begin("a", PinKind::kHard).has_value()) << "itself is no reason to refuse it";
  EXPECT_EQ(begin("b", PinKind::kHard).error().reason(), MissReason::kQuota);
  clock_.advance(std::chrono::seconds(11));
  EXPECT_FALSE(put_by_another("a").has_value()) << "ends what is idle";
  EXPECT_TRUE(begin("b", PinKind::kHard).has_value());
}

// What a client that has gone began: another may put the value after a while, whatever the wall
// clock says.
TEST_F(NodeValuesUploadTest, TheyAreIdleByTheSteadyClock) {
  ASSERT_TRUE(begin("a").has_value());
  clock_.step_wall(std::chrono::hours(1));
  EXPECT_EQ(put_by_another("a").error().code(), Code::kUnavailable) << "it is not idle yet";
  ASSERT_TRUE(begin("a").has_value());
  clock_.step_wall(-std::chrono::hours(2));
  clock_.advance(std::chrono::seconds(11));
  EXPECT_EQ(put_by_another("a").error().code(), Code::kUnavailable) << "its chunks go first";
  settle();
  EXPECT_TRUE(put_by_another("a").has_value());
}

}  // namespace
}  // namespace icefield
