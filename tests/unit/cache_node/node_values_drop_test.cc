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
  disk_.held_bytes = -1;
  disk_.held.notify_all();
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

}  // namespace
}  // namespace icefield
