// Identity: the published vectors (tests/data/ids.json, made by an independent program), and that
// nothing that should matter is ignored.
#include "common/ids.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "common/fingerprint.h"

namespace icefield {
namespace {

nlohmann::json vectors() {
  std::ifstream in(std::string(ICEFIELD_SOURCE_DIR) + "/tests/data/ids.json");
  return nlohmann::json::parse(in);
}

std::string hex64(std::uint64_t value) {
  std::string text;
  for (int shift = 60; shift >= 0; shift -= 4) text += "0123456789abcdef"[(value >> shift) & 15];
  return text;
}

std::vector<std::uint32_t> first_block() {
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t i = 0; i < 256; ++i) tokens.push_back(i * 2654435761u);
  return tokens;
}
std::vector<std::uint32_t> second_block() {
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t i = 0; i < 256; ++i) tokens.push_back(i + 1);
  return tokens;
}

TEST(Ids, AgreeWithThePublishedVectors) {
  const nlohmann::json expected = vectors();
  const FingerprintHash fingerprint =
      fingerprint_hash(expected["fingerprint_text"].get<std::string>());
  EXPECT_EQ(to_string(fingerprint), expected["fingerprint"]);
  const PrefixHash h0 = prefix_root({.name_space = expected["namespace"],
                                     .salt = expected["salt"],
                                     .fingerprint = fingerprint,
                                     .flush_number = expected["flush_number"]});
  EXPECT_EQ(to_string(h0), expected["h0"]);
  const PrefixHash h1 = prefix_next(h0, first_block());
  EXPECT_EQ(to_string(h1), expected["h1"]);
  const PrefixHash h2 = prefix_next(h1, second_block());
  EXPECT_EQ(to_string(h2), expected["h2"]);
  const Bytes image = {std::byte{1}, std::byte{2}, std::byte{3}};
  const ConstByteSpan adapter = as_bytes("lora-7");
  EXPECT_EQ(
      to_string(prefix_next(h1, second_block(),
                            {{"image", image}, {"adapter", {adapter.begin(), adapter.end()}}})),
      expected["h2_with_extras"])
      << "extras are sorted";
  const SegmentId exact = segment_id(h0, h2, {});
  EXPECT_EQ(to_string(exact), expected["segment_exact"]);
  EXPECT_EQ(to_string(segment_id(h0, h2, {.approx_tag = 0x0123456789abcdef})),
            expected["segment_approx"]);
  const BuildId build = build_id(as_bytes(expected["build_of_text"].get<std::string>()));
  EXPECT_EQ(to_string(build), expected["build"]);
  const ObjectKey key{.segment = exact,
                      .build = build,
                      .part = {.kind = PartKind::kExtent, .layer = 29, .kv_head = 2, .extent = 15}};
  EXPECT_EQ(to_hex(key.bytes()), expected["object_key"]);
  Bytes row;
  for (int i = 0; i < 256; ++i) row.push_back(static_cast<std::byte>(i * 37 + 11));
  const std::uint64_t seed = checksum_seed(exact, PartKind::kExtent, 29, 2, 4095);
  EXPECT_EQ(hex64(seed), expected["row_seed"]);
  EXPECT_EQ(hex64(xxh3(row, seed)), expected["row_xxh3"]);
  EXPECT_EQ(hex64(row_check(row, exact, 29, 2, 4095)).substr(8), expected["row_check"]);
}

TEST(Ids, HashesOfVeryShortAndLongBytesAgreeWithThePublishedVectors) {
  EXPECT_EQ(hex64(xxh3(ConstByteSpan(), 1)), vectors()["xxh3_empty_seed_1"]);
  Bytes bytes(1 << 20);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 251);
  EXPECT_EQ(hex64(xxh3(bytes, 2)), vectors()["xxh3_1mb_seed_2"]);
  const ConstByteSpan whole = bytes;
  for (const std::size_t cut : {0u, 1u, 240u, 241u, 4096u, 1000000u}) {
    const std::vector<ConstByteSpan> pieces = {whole.first(cut), whole.subspan(cut)};
    EXPECT_EQ(xxh3(pieces, 2), xxh3(bytes, 2)) << "pieces hash as the whole, cut at " << cut;
  }
}

Bytes vector_value() {
  Bytes value((1 << 20) + (64 << 10) + 5);
  for (std::size_t i = 0; i < value.size(); ++i) value[i] = static_cast<std::byte>(i % 253);
  return value;
}

TEST(Ids, ValuesAgreeWithThePublishedVectors) {
  const nlohmann::json expected = vectors();
  const ValueHash hash = value_hash("tenant", 7, expected["value_key"].get<std::string>());
  EXPECT_EQ(to_string(hash), expected["value_hash"]);
  const Bytes value = vector_value();
  const auto bytes = static_cast<std::int64_t>(value.size());
  EXPECT_EQ(value_chunk_count(bytes), 2);
  const ObjectKey chunk = value_chunk_key(hash, 2, 1);
  EXPECT_EQ(to_hex(chunk.bytes()), expected["value_chunk_key"]);
  const ConstByteSpan second = ConstByteSpan(value).subspan(kValueChunkBytes);
  std::vector<std::uint64_t> checks;
  value_piece_checks(chunk, std::span(&second, 1), checks);
  ASSERT_EQ(checks.size(), 2u);
  EXPECT_EQ(hex64(checks[0]), expected["value_piece_16"]);
  EXPECT_EQ(hex64(checks[1]), expected["value_piece_17"]);
  EXPECT_EQ(value_piece_check(hash, 17, second.subspan(kValuePieceBytes)), checks[1]);
  EXPECT_EQ(hex64(object_checksum(chunk, std::span(&second, 1))), expected["value_chunk_checksum"]);
  EXPECT_EQ(value_chunk_count(0), 1);
  const ObjectKey empty = value_chunk_key(hash, 1, 0);
  EXPECT_EQ(to_hex(empty.bytes()), expected["value_empty_chunk_key"]);
  EXPECT_EQ(hex64(object_checksum(empty, {})), expected["value_empty_checksum"]);
}

TEST(Ids, AChunkHasTheSameChecksumHoweverItIsCut) {
  const ObjectKey chunk = value_chunk_key(value_hash("n", 0, "k"), 1, 0);
  const Bytes value(200'000, std::byte{7});
  const ConstByteSpan whole = value;
  const std::uint64_t checksum = object_checksum(chunk, std::span(&whole, 1));
  for (const std::size_t cut : {0u, 1u, 16'384u, 65'536u, 65'537u, 199'999u, 200'000u}) {
    const std::vector<ConstByteSpan> parts = {whole.first(cut), whole.subspan(cut)};
    EXPECT_EQ(object_checksum(chunk, parts), checksum) << "cut at " << cut;
  }
  EXPECT_NE(object_checksum(value_chunk_key(value_hash("n", 1, "k"), 1, 0), std::span(&whole, 1)),
            checksum)
      << "another flush number is another value";
  EXPECT_NE(object_checksum(value_chunk_key(value_hash("n", 0, "k"), 2, 0), std::span(&whole, 1)),
            checksum)
      << "the number of chunks is checked, too";
}

TEST(Ids, EverythingThatDecidesTheKvChangesTheHash) {
  const PrefixRoot root{.name_space = "a", .salt = "b", .flush_number = 1};
  std::set<std::string> seen = {to_string(prefix_root(root))};
  const auto differs = [&](PrefixRoot other) {
    return seen.insert(to_string(prefix_root(other))).second;
  };
  EXPECT_TRUE(differs({.name_space = "ab", .salt = "", .flush_number = 1})) << "fields do not run "
                                                                               "into each other";
  EXPECT_TRUE(differs({.name_space = "a", .salt = "c", .flush_number = 1}));
  EXPECT_TRUE(differs({.name_space = "a", .salt = "b", .flush_number = 2}));
  PrefixRoot model = root;
  model.fingerprint.bytes[3] = std::byte{1};
  EXPECT_TRUE(differs(model));

  const PrefixHash h0 = prefix_root(root);
  std::vector<std::uint32_t> tokens = first_block();
  const PrefixHash h1 = prefix_next(h0, tokens);
  tokens[255] ^= 1u << 31;
  EXPECT_NE(prefix_next(h0, tokens), h1);
  EXPECT_NE(prefix_next(h0, first_block(), {{"image", {}}}), h1);
  EXPECT_NE(segment_id(h0, h1, {}), segment_id(h1, h0, {}));
  EXPECT_NE(segment_id(h0, h1, {}), segment_id(h0, h1, {.approx_tag = 0}));
}

TEST(Ids, ChainHasOneHashPerWholeBlock) {
  std::vector<std::uint32_t> tokens = first_block();
  EXPECT_EQ(prefix_chain({}, std::span(tokens).first(255)).size(), 1u);
  EXPECT_EQ(prefix_chain({}, tokens).size(), 2u);
  tokens.push_back(5);
  EXPECT_EQ(prefix_chain({}, tokens).size(), 2u);
  EXPECT_EQ(prefix_chain({}, tokens)[1], prefix_next(prefix_root({}), first_block()));
}

TEST(Ids, ObjectKeysSurviveTheirBytesAndSortByThem) {
  ObjectKey key;
  key.segment.bytes[0] = std::byte{9};
  key.part = {.kind = PartKind::kExtent, .layer = 300, .kv_head = 7, .extent = 15};
  EXPECT_EQ(ObjectKey::parse(key.bytes()).value(), key);
  ObjectKey later = key;
  later.part.layer = 301;
  EXPECT_LT(key.bytes(), later.bytes());
  EXPECT_EQ(ObjectKey::parse(ConstByteSpan(key.bytes()).first(38)).error().code(),
            Code::kInvalidArgument);
  auto bytes = key.bytes();
  bytes[32] = std::byte{200};
  EXPECT_EQ(ObjectKey::parse(bytes).error().code(), Code::kInvalidArgument);
}

TEST(Ids, RightBytesInAWrongPlaceFailTheirCheck) {
  const Bytes row(256, std::byte{5});
  SegmentId segment;
  const std::uint32_t check = row_check(row, segment, 1, 2, 3);
  EXPECT_NE(row_check(row, segment, 2, 2, 3), check);
  EXPECT_NE(row_check(row, segment, 1, 3, 3), check);
  EXPECT_NE(row_check(row, segment, 1, 2, 4), check);
  segment.bytes[0] = std::byte{1};
  EXPECT_NE(row_check(row, segment, 1, 2, 3), check);
}

TEST(Fingerprint, TextIsSortedAndNamesEveryField) {
  ModelFingerprint model{.model_name = "m", .weight_revision = "r", .layout_version = 3};
  model.layers.push_back(
      {.kv_heads = 2, .d_k = 64, .d_v = 64, .softmax_scale = 0.125, .rope_base = 10000});
  const std::string text = model.text();
  EXPECT_NE(text.find("layer.0000.softmax_scale=3fc0000000000000\n"), std::string::npos) << text;
  EXPECT_NE(text.find("layout_version=3\n"), std::string::npos);
  std::vector<std::string> names;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    names.push_back(line.substr(0, line.find('=')));
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
}

TEST(Fingerprint, FirstDifferenceIsNamed) {
  ModelFingerprint a{.model_name = "m", .weight_revision = "1"};
  ModelFingerprint b{.model_name = "m", .weight_revision = "2"};
  EXPECT_EQ(first_difference(a.text(), b.text()), "weight_revision is 1, here 2");
  EXPECT_EQ(first_difference(a.text(), a.text()), "");
  b.layers.push_back({});
  EXPECT_EQ(first_difference(a.text(), b.text()), "layer_count is 0, here 1");
}

}  // namespace
}  // namespace icefield
