// The value store over nodes in this process: what was put comes back, or a miss says why.
#include "client/value_store.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/objects.h"
#include "tests/support/temp_dir.h"
#include "tests/support/value_cluster.h"

namespace icefield {
namespace {

using Sizes = std::vector<Result<std::int64_t>>;

// Whether memory is shared with clients, which then read large values by themselves.
class ValueStoreTest : public testing::TestWithParam<bool> {
 protected:
  Bytes random(std::size_t size) { return random_bytes(rng_, size); }

  static Status put(ValueCluster& cluster, std::string_view key, ConstByteSpan value,
                    PutOptions options = {}, ValueCall call = {}) {
    return cluster.run(cluster.store().put(key, value, options, call)).status();
  }
  static Result<Bytes> get(ValueCluster& cluster, std::string_view key, std::int64_t room,
                           ValueCall call = {}) {
    const Result<Buffer> buffer = cluster.run(cluster.store().get(key, Buffer(room), call));
    if (!buffer.has_value()) return buffer.error();
    return Bytes(buffer->bytes().begin(), buffer->bytes().end());
  }
  // Where `bytes` stand in memory; its end: nowhere.
  static ByteSpan::iterator place_in(ByteSpan memory, ConstByteSpan bytes) {
    return std::search(memory.begin(), memory.end(), bytes.begin(), bytes.end());
  }
  static MissReason miss(ValueCluster& cluster, std::string_view key, ValueCall call = {}) {
    const Result<Bytes> got = get(cluster, key, 4 << 20, call);
    EXPECT_FALSE(got.has_value());
    if (got.has_value()) return MissReason::kNone;
    EXPECT_EQ(got.error().code(), Code::kNotFound) << got.error().to_string();
    return got.error().reason();
  }

  SeededRng rng_{7};
};

TEST_P(ValueStoreTest, WhatWasPutComesBackWhateverItsSize) {
  ValueCluster cluster({.shared = GetParam()}, 2);
  for (const std::size_t size :
       {0u, 1u, 100u, 16'384u, 65'535u, 65'536u, 65'537u, 1u << 20, (1u << 20) + 1, 3u << 20}) {
    const std::string key = "value of " + std::to_string(size);
    const Bytes value = random(size);
    ASSERT_TRUE(put(cluster, key, value).ok()) << size;
    const Result<Bytes> back = get(cluster, key, static_cast<std::int64_t>(size));
    ASSERT_TRUE(back.has_value()) << size << " " << back.error().to_string();
    EXPECT_TRUE(*back == value) << size;
  }
}

TEST_P(ValueStoreTest, ValuesLargerThanARequestGoInParts) {
  ValueCluster cluster({.shared = GetParam()}, 1, {.request_bytes = 2 << 20});
  const Bytes value = random((7 << 20) + 12'345);
  const ConstByteSpan whole = value;
  const std::vector<ConstByteSpan> parts = {whole.first(1'234'567), whole.subspan(1'234'567)};
  std::vector<ValueToPut> values = {{.key = "small", .parts = std::span(parts).first(0)},
                                    {.key = "large", .parts = parts}};
  const auto stored = cluster.run(cluster.store().put_batch(std::move(values), {}, {})).value();
  ASSERT_TRUE(stored[0].has_value() && stored[1].has_value());
  EXPECT_TRUE(get(cluster, "large", std::ssize(value)).value() == value);
  EXPECT_TRUE(get(cluster, "large", 32 << 20).value() == value) << "more room than needed";
  const std::int64_t begin = 100'001;
  const std::int64_t length = 5'000'000;
  const Buffer range = cluster.run(cluster.store().get_range("large", begin, length, {})).value();
  EXPECT_TRUE(std::ranges::equal(range.bytes(), whole.subspan(begin, length)));
  EXPECT_EQ(cluster.node(0).values().puts.value(), 2);
}

// Each chunk is what its checksum says; together they are no value that anybody put.
TEST_P(ValueStoreTest, ChunksOfTwoValuesAreAMissHoweverTheyAreRead) {
  for (const std::int64_t request_bytes : {16 << 20, 1 << 20}) {
    ValueCluster cluster({.shared = GetParam()}, 1, {.request_bytes = request_bytes});
    const Bytes value = random(3 << 20);
    ASSERT_TRUE(put(cluster, "k", value).ok());
    const Bytes other = random(1 << 20);
    const ConstByteSpan piece = other;
    const ObjectKey chunk = value_chunk_key(value_hash("", 0, "k"), 3, 1);
    DramTier& memory = cluster.node(0).memory();
    ASSERT_TRUE(cluster.run(memory.remove(chunk)).ok());
    const ObjectInfo info = info_of(chunk, other);
    ASSERT_TRUE(cluster.run(memory.put(chunk, std::span(&piece, 1), info)).has_value());
    EXPECT_EQ(miss(cluster, "k"), MissReason::kIntegrity) << request_bytes;
  }
}

TEST_P(ValueStoreTest, ASecondPutIsANoOpThatSaysSo) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  const Bytes first = random(1000);
  const Bytes second = random(2000);
  EXPECT_EQ(cluster.run(cluster.store().put("k", first, {}, {})).value(), PutOutcome::kStored);
  EXPECT_EQ(cluster.run(cluster.store().put("k", second, {}, {})).value(),
            PutOutcome::kAlreadyThere);
  EXPECT_TRUE(get(cluster, "k", 1000).value() == first);
}

TEST_P(ValueStoreTest, RangesAreCutAndVerified) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  const Bytes value = random((2 << 20) + 70'000);
  ASSERT_TRUE(put(cluster, "k", value).ok());
  const auto size = std::ssize(value);
  for (const auto& [begin, length] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 1},
                                                          {1, 1},
                                                          {65'536, 65'536},
                                                          {65'535, 2},
                                                          {1'048'570, 20},
                                                          {0, size},
                                                          {size - 1, 100},
                                                          {1 << 20, 1 << 20},
                                                          {70'000, 1'500'000}}) {
    const Result<Buffer> range = cluster.run(cluster.store().get_range("k", begin, length, {}));
    ASSERT_TRUE(range.has_value()) << begin << " " << range.error().to_string();
    const auto expected = ConstByteSpan(value).subspan(
        static_cast<std::size_t>(begin), static_cast<std::size_t>(std::min(length, size - begin)));
    EXPECT_TRUE(std::ranges::equal(range->bytes(), expected)) << begin << " + " << length;
  }
  EXPECT_EQ(cluster.run(cluster.store().get_range("k", size, 1, {})).error().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(cluster.run(cluster.store().get_range("k", size + (1 << 20), 1, {})).error().code(),
            Code::kInvalidArgument);
}

TEST_P(ValueStoreTest, RangesBeyondAllBoundsAreRefusedAlone) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  const Bytes value = random(1000);
  ASSERT_TRUE(put(cluster, "k", value).ok());
  constexpr std::int64_t kGiB = 1 << 30;
  std::vector<ValueToGet> items = {{.key = "k", .room = 1000}};
  for (const auto& [begin, room] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, INT64_MAX}, {kGiB, INT64_MAX - kGiB}, {0, kGiB + 1}, {INT64_MAX, 1}, {-1, 1}}) {
    items.push_back({.key = "k", .room = room, .range_begin = begin});
  }
  items.push_back({.key = "k", .room = kGiB, .range_begin = 10});
  const ValueBatch batch = cluster.run(cluster.store().get_batch(items, {})).value();
  EXPECT_TRUE(std::ranges::equal(batch.values.front().value(), value));
  for (std::size_t i = 1; i + 1 < items.size(); ++i) {
    EXPECT_EQ(batch.values[i].error().code(), Code::kInvalidArgument) << i;
  }
  EXPECT_TRUE(std::ranges::equal(batch.values.back().value(), ConstByteSpan(value).subspan(10)));
}

TEST_P(ValueStoreTest, BatchesHaveOneResultPerItemAndUseAllNodes) {
  ValueCluster cluster({.shared = GetParam()}, 3);
  std::map<std::string, Bytes> stored;
  std::vector<ValueToPut> values;
  std::vector<ConstByteSpan> spans;
  for (int i = 0; i < 60; ++i) {
    stored["block/" + std::to_string(i)] = random(static_cast<std::size_t>(1000 * i));
  }
  spans.reserve(stored.size());
  for (const auto& [key, value] : stored) {
    spans.emplace_back(value);
    values.push_back({.key = key, .parts = std::span(&spans.back(), 1)});
  }
  const auto outcomes = cluster.run(cluster.store().put_batch(values, {}, {})).value();
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.value(), PutOutcome::kStored);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_GT(cluster.node(i).values().puts.value(), 8);

  std::vector<ValueToGet> wanted = {{.key = "absent", .room = 10}};
  for (const auto& [key, value] : stored) wanted.push_back({.key = key, .room = 60'000});
  wanted.push_back({.key = "block/59", .room = 100, .range_begin = 7});
  wanted.push_back({.key = "block/59", .room = 100});
  wanted.push_back({.key = "", .room = 100});
  const ValueBatch batch = cluster.run(cluster.store().get_batch(wanted, {})).value();
  ASSERT_EQ(batch.values.size(), 64u);
  EXPECT_EQ(batch.values[0].error().reason(), MissReason::kNeverStored);
  std::size_t i = 1;
  for (const auto& [key, value] : stored) {
    ASSERT_TRUE(batch.values[i].has_value()) << batch.values[i].error().to_string();
    EXPECT_TRUE(std::ranges::equal(*batch.values[i], value)) << key;
    ++i;
  }
  EXPECT_TRUE(
      std::ranges::equal(*batch.values[61], ConstByteSpan(stored["block/59"]).subspan(7, 100)));
  EXPECT_EQ(batch.values[62].error().code(), Code::kInvalidArgument) << "the target is too small";
  EXPECT_EQ(batch.values[63].error().code(), Code::kInvalidArgument) << "no key";

  Bytes into(59'000);
  std::vector<ValueInto> targets = {{.key = "block/59", .into = into},
                                    {.key = "absent", .into = into}};
  const Sizes sizes = cluster.run(cluster.store().get_into(targets, {})).value();
  EXPECT_EQ(sizes[0].value(), 59'000);
  EXPECT_TRUE(into == stored["block/59"]);
  EXPECT_FALSE(sizes[1].has_value());
}

TEST_P(ValueStoreTest, ExistsRemoveAndListSeeAllNodes) {
  ValueCluster cluster({.shared = GetParam()}, 2);
  for (int i = 0; i < 30; ++i) {
    const std::string key = (i % 2 == 0 ? "even/" : "odd/") + std::to_string(100 + i);
    ASSERT_TRUE(put(cluster, key, random(static_cast<std::size_t>(i))).ok());
  }
  const Sizes found =
      cluster.run(cluster.store().exists({"odd/103", "none", "even/100"}, {})).value();
  EXPECT_EQ(found[0].value(), 3);
  EXPECT_EQ(found[1].error().reason(), MissReason::kNeverStored);
  EXPECT_EQ(found[2].value(), 0);

  auto odd = cluster.run(cluster.store().list("odd/", 100, {})).value();
  ASSERT_EQ(odd.size(), 15u);
  EXPECT_EQ(odd.front(), (ListedValue{.key = "odd/101", .bytes = 1}));
  EXPECT_TRUE(std::ranges::is_sorted(odd, {}, &ListedValue::key));
  EXPECT_EQ(cluster.run(cluster.store().list("", 7, {})).value().size(), 7u);
  EXPECT_EQ(cluster.run(cluster.store().list("", 7, {})).value().back().key, "even/112");

  const auto removed = cluster.run(cluster.store().remove({"odd/103", "none"}, {})).value();
  EXPECT_TRUE(removed[0].ok() && removed[1].ok());
  EXPECT_EQ(miss(cluster, "odd/103"), MissReason::kNeverStored);
  EXPECT_EQ(cluster.run(cluster.store().list("odd/", 100, {})).value().size(), 14u);
}

// By their number, and by the length of their keys.
TEST_P(ValueStoreTest, BatchesLargerThanARequestGoInParts) {
  ValueCluster cluster({.dram_bytes = 256 << 20, .shared = GetParam()}, 1);
  constexpr std::size_t kLong = kMaxRequestKeyBytes / kMaxValueKeyBytes + 100;
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < kLong; ++i) {
    keys.push_back(std::to_string(i));
    keys.back().resize(kMaxValueKeyBytes, '.');
  }
  const std::vector<std::string_view> asked(keys.begin(), keys.end());
  const Bytes value = random(1);
  const ConstByteSpan whole = value;
  std::vector<ValueToPut> values;
  std::vector<ValueToGet> wanted;
  for (const std::string_view key : asked) {
    values.push_back({.key = key, .parts = std::span(&whole, 1)});
    wanted.push_back({.key = key, .room = 1});
  }
  const auto outcomes = cluster.run(cluster.store().put_batch(values, {}, {})).value();
  for (const auto& outcome : outcomes) ASSERT_EQ(outcome.value(), PutOutcome::kStored);
  const ValueBatch batch = cluster.run(cluster.store().get_batch(wanted, {})).value();
  for (const auto& got : batch.values) ASSERT_TRUE(std::ranges::equal(got.value(), whole));
  const Sizes sizes = cluster.run(cluster.store().exists(asked, {})).value();
  for (const auto& size : sizes) ASSERT_EQ(size.value(), 1);
  auto listed = cluster.run(cluster.store().list("", 2 * std::ssize(keys), {})).value();
  ASSERT_EQ(listed.size(), keys.size());
  std::vector<std::string> sorted = keys;
  std::ranges::sort(sorted);
  EXPECT_TRUE(std::ranges::equal(listed, sorted, {}, &ListedValue::key));
  listed = cluster.run(cluster.store().list("42", 7, {})).value();
  ASSERT_EQ(listed.size(), 7u);
  const auto begin = std::ranges::find_if(sorted, [](auto& key) { return key.starts_with("42"); });
  EXPECT_TRUE(std::ranges::equal(listed, std::span(begin, 7), {}, &ListedValue::key));
  const auto removed = cluster.run(cluster.store().remove(asked, {})).value();
  for (const Status& status : removed) ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(miss(cluster, keys.back()), MissReason::kNeverStored);

  keys.clear();
  for (std::size_t i = 0; i < kMaxRequestItems + 100; ++i) keys.push_back(std::to_string(i));
  const std::vector<std::string_view> many(keys.begin(), keys.end());
  const Sizes absent = cluster.run(cluster.store().exists(many, {})).value();
  ASSERT_EQ(absent.size(), many.size());
  for (const auto& size : absent) ASSERT_EQ(size.error().reason(), MissReason::kNeverStored);
}

TEST_P(ValueStoreTest, NamespacesDoNotShareValues) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  ASSERT_TRUE(put(cluster, "k", random(10), {}, {.name_space = "a"}).ok());
  EXPECT_EQ(miss(cluster, "k", {.name_space = "b"}), MissReason::kNeverStored);
  EXPECT_TRUE(cluster.run(cluster.store().list("", 10, {.name_space = "b"})).value().empty());
}

TEST_P(ValueStoreTest, AFlushMakesEverythingUnreachableForEveryClient) {
  ValueCluster cluster({.shared = GetParam()}, 2);
  ValueStore& ours = cluster.store();
  SeededRng rng(9);
  ValueStore other(cluster.clock(), rng, cluster.nodes(), {});
  const ValueCall call{.name_space = "a"};
  const Bytes value = random(100);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(put(cluster, "k" + std::to_string(i), value, {}, call).ok());
  }
  ASSERT_TRUE(put(cluster, "k0", value, {}, {.name_space = "b"}).ok());
  EXPECT_EQ(cluster.run(ours.flush(call)).value(), 1u);
  EXPECT_EQ(get(cluster, "k0", 100, call).status().code(), Code::kNotFound);
  EXPECT_TRUE(get(cluster, "k0", 100, {.name_space = "b"}).has_value());

  // The other client finds out when it asks, redoes the call once, and says what happened.
  EXPECT_EQ(cluster.run(other.get("k1", Buffer(100), call)).error().code(), Code::kNotFound);
  EXPECT_EQ(other.flush_numbers().of("a"), 1u);
  EXPECT_EQ(cluster.run(other.put("k1", value, {}, call)).value(), PutOutcome::kStored);
  EXPECT_TRUE(get(cluster, "k1", 100, call).has_value());

  SeededRng third_rng(10);
  ValueStore third(cluster.clock(), third_rng, cluster.nodes(), {});
  EXPECT_EQ(cluster.run(third.flush(call)).value(), 2u) << "it knew of no flush, and learned";
  EXPECT_EQ(cluster.run(third.put("k5", value, {}, call)).value(), PutOutcome::kStored);
  EXPECT_EQ(cluster.run(ours.exists({"k5"}, call)).value()[0].value(), 100);
}

TEST_P(ValueStoreTest, TheNodeThatHeldAFlushedValueSaysSo) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  ASSERT_TRUE(put(cluster, "k", random(10)).ok());
  ASSERT_TRUE(cluster.run(cluster.store().flush({})).has_value());
  EXPECT_EQ(miss(cluster, "k"), MissReason::kFlushed);
  EXPECT_EQ(cluster.node(0).memory().usage().object_count, 0);
}

TEST_P(ValueStoreTest, BadInputIsRefusedInWords) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  const std::string long_key(1025, 'k');
  const Bytes value = random(10);
  const auto refused = [&](const Status& status) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.message();
  };
  EXPECT_EQ(refused(put(cluster, long_key, value)), "key of 1025 bytes, at most 1024");
  EXPECT_TRUE(put(cluster, std::string(1024, 'k'), value).ok());
  EXPECT_EQ(refused(put(cluster, "", value)), "the key is empty");
  EXPECT_EQ(refused(put(cluster, "k", value, {.ttl_ms = -1})), "a time to live is negative");
  EXPECT_EQ(refused(put(cluster, "k", value, {.pin = PinKind::kSoft})),
            "a soft pin needs a time to live");
  const std::string long_space(257, 'n');
  EXPECT_EQ(refused(put(cluster, "k", value, {}, {.name_space = long_space})),
            "namespace of 257 bytes, at most 256");
  const std::vector<ConstByteSpan> huge(1025, ConstByteSpan(value.data(), 1 << 20));  // not read
  std::vector<ValueToPut> values = {{.key = "huge", .parts = huge}};
  EXPECT_EQ(refused(cluster.run(cluster.store().put_batch(values, {}, {})).value()[0].status()),
            "value of 1074790400 bytes, at most 1073741824");
  ASSERT_TRUE(put(cluster, "k", value).ok());
  EXPECT_EQ(refused(get(cluster, "k", 9).status()), "value of 10 bytes, room for 9");
  EXPECT_EQ(refused(put(cluster, "d", value, {.level = WriteLevel::kDurable}).code() ==
                            Code::kFailedPrecondition
                        ? Status(Code::kInvalidArgument, "no disk")
                        : Status()),
            "no disk");
}

TEST_P(ValueStoreTest, ValuesExpire) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  ASSERT_TRUE(put(cluster, "k", random(10), {.ttl_ms = 1000}).ok());
  cluster.clock().advance(std::chrono::milliseconds(999));
  EXPECT_TRUE(get(cluster, "k", 10).has_value());
  cluster.clock().advance(std::chrono::milliseconds(1));
  EXPECT_EQ(miss(cluster, "k"), MissReason::kExpired);
  EXPECT_EQ(cluster.node(0).memory().usage().object_count, 0);
  ASSERT_TRUE(put(cluster, "k", random(20)).ok()) << "its place is free again";
  EXPECT_TRUE(get(cluster, "k", 20).has_value());
}

// Times to live are wall time: what a step of that clock moves, and nothing is lost or stuck by it.
TEST_P(ValueStoreTest, StepsOfTheWallClockMoveExpiryAndNothingElse) {
  using std::chrono::hours;
  ValueCluster cluster({.shared = GetParam()}, 1);
  ASSERT_TRUE(put(cluster, "k", random(10), {.ttl_ms = 60'000}).ok());
  ASSERT_TRUE(put(cluster, "ever", random(10)).ok());
  cluster.clock().step_wall(-hours(2));
  EXPECT_TRUE(get(cluster, "k", 10).has_value());
  cluster.clock().advance(hours(1));
  EXPECT_TRUE(get(cluster, "k", 10).has_value()) << "an hour longer, until the clock is mended";
  cluster.clock().step_wall(hours(4));
  EXPECT_EQ(miss(cluster, "k"), MissReason::kExpired);
  EXPECT_TRUE(get(cluster, "ever", 10).has_value());
  ASSERT_TRUE(put(cluster, "k", random(10), {.ttl_ms = 60'000}).ok());
  EXPECT_TRUE(get(cluster, "k", 10).has_value());
}

// How long values are kept is in the catalog of the disk.
TEST_P(ValueStoreTest, TimesToLiveAndPinsSurviveARestart) {
  TempDir dir;
  ValueCluster cluster({.dram_bytes = 4 << 20, .store = dir.path(), .shared = GetParam()}, 1);
  const auto durable = [](PutOptions options) {
    options.level = WriteLevel::kDurable;
    return options;
  };
  ASSERT_TRUE(put(cluster, "short", random(2'000'000), durable({.ttl_ms = 1000})).ok());
  ASSERT_TRUE(put(cluster, "long", random(10), durable({.ttl_ms = 9000})).ok());
  ASSERT_TRUE(put(cluster, "hard", random(900'000), durable({.pin = PinKind::kHard})).ok());
  const std::int64_t stored = cluster.node(0).disk()->usage().object_count;
  cluster.stop(0);
  cluster.clock().advance(std::chrono::milliseconds(1000));
  cluster.start(0);
  EXPECT_EQ(put(cluster, "more", random(900'000), {.pin = PinKind::kHard}).reason(),
            MissReason::kQuota);
  EXPECT_FALSE(get(cluster, "short", 2'000'000).has_value());
  EXPECT_TRUE(get(cluster, "long", 10).has_value());
  EXPECT_TRUE(get(cluster, "hard", 900'000).has_value());
  ASSERT_TRUE(cluster.run(cluster.node(0).disk()->flush()).ok());
  EXPECT_EQ(cluster.node(0).disk()->usage().object_count, stored - 3) << "two chunks and a name";
  cluster.clock().advance(std::chrono::milliseconds(8000));
  EXPECT_EQ(miss(cluster, "long"), MissReason::kExpired);
}

TEST_P(ValueStoreTest, DamageInMemoryIsAMissAndNeverReturned) {
  ValueCluster cluster({.shared = GetParam()}, 1);
  for (unsigned i = 0; i < 20; ++i) {
    const Bytes value = random(300'000);  // others: bytes stay where values were
    ASSERT_TRUE(put(cluster, "k", value).ok());
    ByteSpan slab = cluster.node(0).memory().memory();
    const auto at = place_in(slab, std::span(value).subspan(i * 14'000, 64));
    ASSERT_NE(at, slab.end());
    *at ^= std::byte{1} << (i % 8);
    EXPECT_EQ(miss(cluster, "k"), MissReason::kIntegrity) << i;
  }
  EXPECT_EQ(cluster.node(0).values().damaged.value(), 20);
  EXPECT_EQ(cluster.node(0).memory().usage().object_count, 0);
}

TEST_P(ValueStoreTest, DamageInMemoryIsMendedFromDisk) {
  TempDir dir;
  ValueCluster cluster({.store = dir.path(), .shared = GetParam()}, 1);
  const Bytes value = random(100'000);
  ASSERT_TRUE(put(cluster, "k", value, {.level = WriteLevel::kDurable}).ok());
  ByteSpan slab = cluster.node(0).memory().memory();
  const auto at = place_in(slab, std::span(value).subspan(70'000, 64));
  ASSERT_NE(at, slab.end());
  *at ^= std::byte{4};
  EXPECT_TRUE(get(cluster, "k", 100'000).value() == value);
  EXPECT_TRUE(get(cluster, "k", 100'000).value() == value);
  EXPECT_EQ(cluster.node(0).memory().damaged.value(), 1);
}

TEST_P(ValueStoreTest, EvictedValuesSaySoAndLeaveNothing) {
  ValueCluster cluster({.dram_bytes = 4 << 20, .shared = GetParam()}, 1);
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(put(cluster, "k" + std::to_string(i), random((1 << 20) + 5'000)).ok());
  }
  EXPECT_EQ(miss(cluster, "k0"), MissReason::kEvicted);
  EXPECT_EQ(miss(cluster, "k7"), MissReason::kNeverStored);
  EXPECT_TRUE(get(cluster, "k5", 2 << 20).has_value());
  const auto listed = cluster.run(cluster.store().list("", 100, {})).value();
  EXPECT_EQ(cluster.node(0).memory().usage().object_count, 2 * std::ssize(listed))
      << "no half of a value stays";
  EXPECT_EQ(put(cluster, "huge", random(5 << 20)).code(), Code::kResourceExhausted);
}

TEST_P(ValueStoreTest, PinnedValuesStay) {
  ValueCluster cluster({.dram_bytes = 4 << 20, .shared = GetParam()}, 1);
  const auto fill = [&](const std::string& name) {
    for (int i = 0; i < 8; ++i) {
      ASSERT_TRUE(put(cluster, name + std::to_string(i), random(900'000)).ok());
    }
  };
  ASSERT_TRUE(put(cluster, "hard", random(900'000), {.pin = PinKind::kHard}).ok());
  const PutOptions soft{.pin = PinKind::kSoft, .pin_ttl_ms = 1000};
  ASSERT_TRUE(put(cluster, "soft", random(900'000), soft).ok());
  EXPECT_EQ(put(cluster, "more", random(900'000), {.pin = PinKind::kHard}).reason(),
            MissReason::kQuota);
  fill("a");
  EXPECT_TRUE(get(cluster, "hard", 1 << 20).has_value());
  EXPECT_TRUE(get(cluster, "soft", 1 << 20).has_value());
  cluster.clock().advance(std::chrono::seconds(1));
  fill("b");
  EXPECT_TRUE(get(cluster, "hard", 1 << 20).has_value());
  EXPECT_EQ(miss(cluster, "soft"), MissReason::kEvicted) << "the pin is over";
  // A soft pin gives way when there is no room otherwise.
  ASSERT_TRUE(put(cluster, "soft", random(900'000), soft).ok());
  ASSERT_TRUE(put(cluster, "soft 2", random(900'000), soft).ok());
  ASSERT_TRUE(put(cluster, "soft 3", random(900'000), soft).ok());
  EXPECT_TRUE(put(cluster, "wide", random(2 << 20)).ok());
  EXPECT_TRUE(get(cluster, "hard", 1 << 20).has_value());
  EXPECT_TRUE(cluster.run(cluster.store().remove({"hard"}, {})).has_value());
  EXPECT_EQ(put(cluster, "hard", random(900'000), {.pin = PinKind::kHard}).code(), Code::kOk)
      << "the quota is free again";
}

TEST_P(ValueStoreTest, DurableValuesSurviveARestart) {
  TempDir dir;
  ValueCluster cluster({.store = dir.path(), .shared = GetParam()}, 1);
  const ValueCall call{.name_space = "a"};
  const PutOptions durable{.level = WriteLevel::kDurable};
  const Bytes large = random((2 << 20) + 100);
  ASSERT_TRUE(cluster.run(cluster.store().flush(call)).has_value());
  ASSERT_TRUE(put(cluster, "large", large, durable, call).ok());
  ASSERT_TRUE(put(cluster, "empty", {}, durable, call).ok());
  ASSERT_TRUE(
      put(cluster, "short", large, {.level = WriteLevel::kDurable, .ttl_ms = 1000}, call).ok());
  ASSERT_TRUE(put(cluster, "memory", large, {}, call).ok());
  ASSERT_TRUE(put(cluster, "later", large, {}, call).ok());
  EXPECT_EQ(cluster.run(cluster.store().put("later", large, durable, call)).value(),
            PutOutcome::kAlreadyThere);
  cluster.stop(0);
  cluster.start(0);
  EXPECT_TRUE(get(cluster, "large", 3 << 20, call).value() == large);
  EXPECT_TRUE(get(cluster, "empty", 0, call).value().empty());
  EXPECT_TRUE(get(cluster, "later", 3 << 20, call).value() == large) << "put again, durably";
  EXPECT_EQ(miss(cluster, "memory", call), MissReason::kNeverStored);
  const auto listed = cluster.run(cluster.store().list("", 10, call)).value();
  EXPECT_EQ(listed.size(), 4u);
  cluster.clock().advance(std::chrono::seconds(1));
  EXPECT_EQ(miss(cluster, "short", call), MissReason::kExpired) << "times to live survive, too";

  // So does the flush number: a client that knows of none is told.
  SeededRng rng(3);
  ValueStore fresh(cluster.clock(), rng, cluster.nodes(), {});
  EXPECT_TRUE(cluster.run(fresh.get("large", Buffer(3 << 20), call)).has_value());
  EXPECT_EQ(fresh.flush_numbers().of("a"), 1u);
  ASSERT_TRUE(cluster.run(fresh.flush(call)).has_value());
  cluster.stop(0);
  cluster.start(0);
  EXPECT_EQ(cluster.node(0).disk()->usage().object_count, 1) << "the namespace, nothing else";
}

INSTANTIATE_TEST_SUITE_P(Memory, ValueStoreTest, testing::Bool(),
                         [](const auto& shared) { return shared.param ? "shared" : "private"; });

}  // namespace
}  // namespace icefield
