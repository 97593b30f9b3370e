// Values that go, and the disk that does not go along at once.
#include <gtest/gtest.h>

#include "cache_node/node_values.h"
#include "tests/support/node_values_fixture.h"

namespace icefield {
namespace {

class NodeValuesDropTest : public NodeValuesTest {
 protected:
  static constexpr PutOptions kDurable{.level = WriteLevel::kDurable};

  static ObjectKey first_chunk(std::string_view key) {
    return value_chunk_key(value_hash("", 0, key), 2, 0);
  }
  static ObjectKey second_chunk(std::string_view key) {
    return value_chunk_key(value_hash("", 0, key), 2, 1);
  }
  // Two chunks.
  Bytes two_chunks() { return random_bytes(rng_, kMiB + 100); }

  testing::AssertionResult reads(const std::string& key, const Bytes& bytes) {
    const Result<Bytes> read = run(bytes_of(key));
    if (!read.has_value()) return testing::AssertionFailure() << read.error().to_string();
    return testing::AssertionResult(*read == bytes);
  }

  SeededRng rng_{1};
};

TEST_F(NodeValuesDropTest, WhatIsNotAllRemovedIsNoPartOfWhatIsPutNext) {
  ASSERT_TRUE(run(put_bytes("a", two_chunks(), kDurable)).has_value());
  disk_.remove_refusals = 1'000'000;
  (void)run(remove("a"));
  EXPECT_FALSE(memory_->find(second_chunk("a")).has_value()) << "memory waits for no disk";
  const Bytes next = two_chunks();
  EXPECT_FALSE(run(put_bytes("a", next)).has_value());
  EXPECT_TRUE(disk_.find(second_chunk("a")).has_value());
  disk_.remove_refusals = 0;
  ASSERT_TRUE(run(put_bytes("a", next)).has_value());
  EXPECT_FALSE(disk_.find(second_chunk("a")).has_value());
  EXPECT_TRUE(reads("a", next));
}

TEST_F(NodeValuesDropTest, WhatCannotBeRemovedIsNoErrorOfOthers) {
  for (const char* key : {"a", "b", "c"}) {
    ASSERT_TRUE(run(put_bytes(key, random_bytes(rng_, 1000), kDurable)).has_value());
  }
  disk_.remove_refusals = 1'000'000;
  EXPECT_TRUE(run(remove("a")).ok());
  EXPECT_TRUE(run(bytes_of("b")).has_value());
  EXPECT_EQ(run(bytes_of("a")).error().code(), Code::kNotFound);
  EXPECT_TRUE(run(put_bytes("d", random_bytes(rng_, 1000), kDurable)).has_value());
  EXPECT_EQ(run(put_bytes("a", random_bytes(rng_, 1000))).error().code(), Code::kUnavailable);
  const std::vector<std::string_view> keys = {"b"};
  EXPECT_TRUE(run(values_.find({}, keys)).value().sizes.front().has_value());
  ValueHead head;
  EXPECT_TRUE(run(values_.flush({.flush_number = 1}, head)).has_value());
  EXPECT_TRUE(head.status.ok()) << head.status.to_string();
}

TEST_F(NodeValuesDropTest, ChunksThatAreLeftOfAnotherValueGiveWay) {
  const Bytes stale = random_bytes(rng_, 100);
  const ConstByteSpan piece = stale;
  const ObjectInfo info = info_of(second_chunk("a"), stale);
  for (const PutOptions& options : {PutOptions(), kDurable}) {
    for (Tier* const tier : std::initializer_list<Tier*>{memory_.get(), &disk_}) {
      ASSERT_TRUE(run(tier->put(second_chunk("a"), std::span(&piece, 1), info)).has_value());
    }
    const Bytes bytes = two_chunks();
    ASSERT_TRUE(run(put_bytes("a", bytes, options)).has_value());
    EXPECT_TRUE(reads("a", bytes));
    const auto on_disk = disk_.find(second_chunk("a"));
    EXPECT_TRUE(!on_disk.has_value() || on_disk == memory_->find(second_chunk("a")));
    ASSERT_TRUE(run(remove("a")).ok());
  }
}

// A copy is under way to disk when its value is removed and put again, durably.
TEST_F(NodeValuesDropTest, ALateCopyIsNoPartOfWhatIsPutNext) {
  ASSERT_TRUE(run(put_bytes("a", two_chunks())).has_value());
  store("filler", kMiB);
  disk_.held_bytes = 100;
  ASSERT_TRUE(run(bytes_of("a")).has_value());
  settle();
  ASSERT_TRUE(disk_.find(first_chunk("a")).has_value()) << "the second one waits";
  ASSERT_TRUE(run(remove("a")).ok());
  const Bytes next = two_chunks();
  std::optional<Result<PutOutcome>> outcome;
  const auto put_again = [&]() -> asio::awaitable<void> {
    outcome = co_await put_bytes("a", next, kDurable);
  };
  TaskScope scope(io_.get_executor());
  scope.spawn(put_again());
  settle();
  disk_.let_go();
  settle();
  ASSERT_TRUE(outcome.has_value());
  if (!outcome->has_value()) outcome = run(put_bytes("a", next, kDurable));
  ASSERT_TRUE(outcome->has_value()) << outcome->error().to_string();
  for (const ObjectKey& key : {first_chunk("a"), second_chunk("a")}) {
    EXPECT_TRUE(run(memory_->remove(key)).ok());
  }
  EXPECT_TRUE(reads("a", next)) << "from disk";
}

TEST_F(NodeValuesDropTest, AScrubDropsWhatIsMixed) {
  ASSERT_TRUE(run(put_bytes("a", two_chunks())).has_value());
  const Bytes other = random_bytes(rng_, 100);
  const ConstByteSpan piece = other;
  ASSERT_TRUE(run(memory_->remove(second_chunk("a"))).ok());
  const ObjectInfo info = info_of(second_chunk("a"), other);
  ASSERT_TRUE(run(memory_->put(second_chunk("a"), std::span(&piece, 1), info)).has_value());
  EXPECT_EQ(run(bytes_of("a")).error().code(), Code::kDataLoss) << "as a client sees it";
  EXPECT_EQ(run(bytes_of("a", true)).error().reason(), MissReason::kIntegrity);
  EXPECT_EQ(memory_->usage().object_count, 0);
}

// Thousands may be on their way out.
TEST_F(NodeValuesDropTest, NobodyWaitsUntilWhatOthersDroppedIsGone) {
  for (int i = 0; i < 3; ++i) store("gone " + std::to_string(i), 1000, kDurable);
  disk_.hold_removals = true;
  ValueHead head;
  EXPECT_TRUE(run(values_.flush({.flush_number = 1}, head)).has_value());
  EXPECT_TRUE(head.status.ok());
  const std::vector<std::string_view> keys = {"gone 0"};
  EXPECT_EQ(run(values_.find({.flush_number = 1}, keys)).value().sizes[0].error().reason(),
            MissReason::kFlushed);
  settle();
  EXPECT_EQ(memory_->usage().object_count, 2) << "the first one's removal waits";
  EXPECT_EQ(disk_.usage().object_count, 3 * 2 + 1);
  disk_.let_go();
  settle();
  EXPECT_EQ(memory_->usage().object_count, 0);
  EXPECT_EQ(disk_.usage().object_count, 1) << "the flush number";
}

// One waits for the disk to let go of another value whose time is over when the second one comes.
TEST_F(NodeValuesDropTest, TwoPutsOfAKeyAtOnceMakeOneValue) {
  store("over", 1000, {.level = WriteLevel::kDurable, .ttl_ms = 10});
  clock_.advance(std::chrono::milliseconds(20));
  disk_.hold_removals = true;
  const auto put_durably = [&]() -> asio::awaitable<void> {
    std::vector<Item> items(1, Item{.key = "a", .bytes = 100});
    const PutOptions pinned{.level = WriteLevel::kDurable, .ttl_ms = 2000, .pin = PinKind::kHard};
    (void)co_await put(std::move(items), pinned);
  };
  TaskScope scope(io_.get_executor());
  scope.spawn(put_durably());
  settle();
  (void)run(put({{.key = "a", .bytes = 100}}, {.ttl_ms = 1000, .pin = PinKind::kHard}));
  disk_.let_go();
  settle();
  NodeStats stats;
  values_.add_stats(stats);
  ASSERT_EQ(stats.namespaces.size(), 1u);
  EXPECT_EQ(stats.namespaces[0].value_count, 1);
  clock_.advance(std::chrono::seconds(10));
  store("b", 100);
  settle();
  store("pinned", 3 * kMiB / 4, {.pin = PinKind::kHard});
  store("pinned, too", 3 * kMiB / 4, {.pin = PinKind::kHard});
}

TEST_F(NodeValuesDropTest, AReadThatFailsDropsNothingElse) {
  ASSERT_TRUE(run(put_bytes("a", two_chunks(), kDurable)).has_value());
  for (const ObjectKey& key : {first_chunk("a"), second_chunk("a")}) memory_->erase(key);
  disk_.hold_gets = true;
  std::optional<Result<Bytes>> read;
  const auto read_old = [&]() -> asio::awaitable<void> { read = co_await bytes_of("a"); };
  TaskScope scope(io_.get_executor());
  scope.spawn(read_old());
  settle();
  ASSERT_TRUE(run(remove("a")).ok());
  const Bytes next = random_bytes(rng_, 1000);
  ASSERT_TRUE(run(put_bytes("a", next, kDurable)).has_value());
  disk_.let_go();
  settle();
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->error().code(), Code::kNotFound);
  EXPECT_TRUE(reads("a", next));
}

TEST_F(NodeValuesDropTest, WhatTheDiskEvictedIsNotTakenForDurable) {
  const Bytes bytes = two_chunks();
  ASSERT_TRUE(run(put_bytes("a", bytes, kDurable)).has_value());
  const ObjectKey name = value_name_key(value_hash("", 0, "a"));
  for (const ObjectKey& key : {name, second_chunk("a")}) {
    ASSERT_TRUE(run(disk_.remove(key)).ok());
    values_.note_disk_evicted(key);
  }
  EXPECT_TRUE(reads("a", bytes)) << "from memory";
  EXPECT_EQ(run(put_bytes("a", bytes, kDurable)).value(), PutOutcome::kAlreadyThere);
  for (const ObjectKey& key : {name, first_chunk("a"), second_chunk("a")}) {
    EXPECT_TRUE(disk_.find(key).has_value());
    memory_->erase(key);
  }
  EXPECT_TRUE(reads("a", bytes)) << "from disk";
}

// After a restart only its name says whose a value is.
TEST_F(NodeValuesDropTest, AValueGoesWithItsNameWhileThatIsNotKnown) {
  ASSERT_TRUE(run(put_bytes("a", two_chunks(), kDurable)).has_value());
  NodeValues next(*memory_, &disk_, clock_, {});
  ASSERT_TRUE(run(next.recover()).ok());
  const ObjectKey name = value_name_key(value_hash("", 0, "a"));
  ASSERT_TRUE(run(disk_.remove(name)).ok());
  next.note_disk_evicted(name);
  next.start_removing();
  settle();
  EXPECT_EQ(disk_.usage().object_count, 0);
  EXPECT_TRUE(run(next.stop()).ok());
}

}  // namespace
}  // namespace icefield
