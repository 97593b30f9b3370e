// Values verified while they arrive (client/value_check.h).
#include "client/value_check.h"

#include <gtest/gtest.h>

#include "cache_node/chunk_sums.h"
#include "common/rng.h"
#include "tests/support/objects.h"

namespace icefield {
namespace {

// What a node would send for a batch of whole values and of ranges.
class ValueCheckTest : public testing::Test {
 protected:
  // Asks for [offset, offset + room) of a value of `bytes` random bytes.
  void add(std::int64_t bytes, std::int64_t offset, std::int64_t room) {
    const std::string key = "key " + std::to_string(asked_.size());
    AskedValue asked{.hash = value_hash("tests", 0, key), .offset = offset, .room = room};
    const Bytes value = random_bytes(rng_, static_cast<std::size_t>(bytes));
    ValueFacts& facts = reply_.facts;
    facts.statuses.emplace_back();
    facts.value_bytes.push_back(bytes);
    const std::int64_t end = std::min(bytes, offset + room);
    const std::int64_t count = value_chunk_count(bytes);
    const std::int64_t first = offset / kValueChunkBytes;
    const std::int64_t stop = std::max(first + 1, ceil_div(end, kValueChunkBytes));
    std::vector<std::uint64_t> checksums;
    for (std::int64_t i = 0; i < count; ++i) {
      const ObjectKey chunk = value_chunk_key(asked.hash, count, i);
      const ChunkRange range = chunk_range(bytes, i, offset, end);
      const ConstByteSpan all =
          ConstByteSpan(value).subspan(static_cast<std::size_t>(i * kValueChunkBytes),
                                       static_cast<std::size_t>(range.chunk_bytes));
      std::vector<std::uint64_t> checks;
      value_piece_checks(chunk, std::span(&all, 1), checks);
      checksums.push_back(value_chunk_checksum(chunk, checks));
      if (i < first || i >= stop) continue;
      facts.checksums.push_back(checksums.back());
      if (!range.whole()) {
        facts.piece_checks.insert(facts.piece_checks.end(), checks.begin(), checks.end());
      }
    }
    facts.versions.push_back(value_version(checksums));
    const auto part = ConstByteSpan(value).subspan(static_cast<std::size_t>(offset),
                                                   static_cast<std::size_t>(end - offset));
    payload_.insert(payload_.end(), part.begin(), part.end());
    asked_.push_back(asked);
  }

  // Shows the payload in steps of random size.
  Result<std::vector<CheckedValue>> check() {
    ValueChecker checker(asked_);
    reply_.payload = Buffer(std::ssize(payload_));
    reply_.payload.resize(std::ssize(payload_));
    std::ranges::copy(payload_, reply_.payload.bytes().begin());
    const ConstByteSpan all = std::as_const(reply_.payload).bytes();
    for (std::size_t seen = 0; seen < all.size(); seen += rng_.next() % 100'000) {
      checker.arrived(reply_.facts, all.first(seen));
    }
    checker.arrived(reply_.facts, all);
    return checker.finish(reply_);
  }

  void add_all() {
    add(0, 0, 0);
    add(1, 0, 100);
    add(200'000, 0, 200'000);
    add(3'000'000, 0, 3'000'000);
    add(3'000'000, 2 * kValuePieceBytes, 20 * kValuePieceBytes);
    add(200'000, kValuePieceBytes, 200'000);
  }

  SeededRng rng_{1};
  std::vector<AskedValue> asked_;
  Bytes payload_;
  GetValuesReply reply_;
};

TEST_F(ValueCheckTest, WholeValuesAndRangesAreFoundInThePayload) {
  add_all();
  const auto values = check();
  ASSERT_TRUE(values.has_value()) << values.error().to_string();
  std::size_t at = 0;
  for (const CheckedValue& value : *values) {
    ASSERT_TRUE(value.status.ok()) << value.status.to_string();
    EXPECT_TRUE(
        std::ranges::equal(value.bytes, ConstByteSpan(payload_).subspan(at, value.bytes.size())));
    at += value.bytes.size();
  }
  EXPECT_EQ(at, payload_.size());
}

TEST_F(ValueCheckTest, AFlippedBitSpoilsItsValueOnly) {
  add_all();
  for (int i = 0; i < 50; ++i) {
    const std::size_t at = rng_.next() % payload_.size();
    const auto bit = static_cast<std::byte>(1 << rng_.next() % 8);
    payload_[at] ^= bit;
    const auto values = check();
    payload_[at] ^= bit;
    ASSERT_TRUE(values.has_value()) << values.error().to_string();
    const auto spoiled = std::ranges::count_if(
        *values, [](const CheckedValue& value) { return value.status.code() == Code::kDataLoss; });
    EXPECT_EQ(spoiled, 1);
  }
}

TEST_F(ValueCheckTest, AFlippedBitInAChecksumIsSeen) {
  add_all();
  for (std::uint64_t& checksum : reply_.facts.checksums) {
    checksum ^= 1;
    const auto values = check();
    checksum ^= 1;
    ASSERT_TRUE(values.has_value());
    EXPECT_TRUE(std::ranges::any_of(*values, [](const auto& v) { return !v.status.ok(); }));
  }
}

// Every chunk of it is what its checksum says: only the version tells.
TEST_F(ValueCheckTest, ChunksOfTwoValuesAreNotOne) {
  add(3'000'000, 0, 3'000'000);
  reply_.facts.versions[0] ^= 1;
  auto values = check();
  ASSERT_TRUE(values.has_value());
  EXPECT_EQ(values->front().status.code(), Code::kDataLoss);
  EXPECT_TRUE(values->front().bytes.empty());
  reply_.facts.versions.pop_back();
  EXPECT_EQ(check().error().code(), Code::kInternal);
}

TEST_F(ValueCheckTest, AReplyOfAnotherShapeIsRefused) {
  add_all();
  payload_.pop_back();
  EXPECT_EQ(check().error().code(), Code::kInternal);
  payload_.push_back({});
  reply_.facts.checksums.pop_back();
  EXPECT_EQ(check().error().code(), Code::kInternal);
}

}  // namespace
}  // namespace icefield
