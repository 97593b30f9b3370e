// Stored parts and manifests: what is written is read back in place; what is malformed is refused.
#include "proto/part.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/rng.h"
#include "proto/manifest.h"

namespace icefield {
namespace {

constexpr PartShape kShape{.layer = 7,
                           .first_kv_head = 2,
                           .kv_head_count = 2,
                           .d_k = 64,
                           .d_v = 128,
                           .row_count = 512,
                           .first_indexed_row = kSinkTokens};

// A valid part of a kind: clusters of 16 rows (lists of 48 …), codes and order filled by number.
AlignedBytes make(PartKind kind) {
  const std::vector<std::int32_t> counts = {31, 31};
  if (kind == PartKind::kCodes) {
    AlignedBytes part = make_codes_part(kShape);
    for (std::int32_t head = 0; head < 2; ++head) {
      MutableCodesView codes = mutable_codes(part, head);
      for (std::int32_t row = 0; row < 512; ++row) {
        codes.scale[row] = float_to_fp16(1.5f);
        codes.check[row] = static_cast<std::uint32_t>(row * 7 + head);
        for (std::int32_t j = 0; j < 64; ++j) {
          codes.code_word(row, j) |= static_cast<std::uint32_t>((row + j) % 4)
                                     << MutableCodesView::code_shift(j);
        }
      }
    }
    return part;
  }
  if (kind == PartKind::kOrder) {
    AlignedBytes part = make_order_part(kShape);
    for (std::int32_t head = 0; head < 2; ++head) {
      for (std::uint16_t row = 0; row < 512; ++row) {
        mutable_order(part, head)[row] = static_cast<std::uint16_t>(511 - row);
      }
    }
    return part;
  }
  AlignedBytes part = make_level_part(kind, kShape, counts);
  for (std::int32_t head = 0; head < 2; ++head) {
    const MutableLevelView level = mutable_level(part, head);
    std::int32_t row = kSinkTokens;
    for (std::int32_t c = 0; c < 31; ++c) {
      level.token_count[c] = 16;
      level.first_row[c] = static_cast<std::uint16_t>(row);
      row += 16;
      level.key_scale[c] = static_cast<float>(c);
      level.value_scale[c] = 2;
      level.ln_count[c] = std::log(16.0f);
      level.sigma[c] = float_to_fp16(0.5f);
      for (std::int32_t j = 0; j < 64; ++j) {
        level.key_means[level.key_mean_at(c, j)] = static_cast<std::int8_t>(c + j);
      }
      for (std::int32_t j = 0; j < 128; ++j) {
        level.value_means[c * 128 + j] = static_cast<std::int8_t>(c - j);
      }
    }
    for (std::int32_t j = 0; j < 64; ++j) level.gamma[j] = static_cast<float>(j + head);
  }
  return part;
}

Status parse(ConstByteSpan part, PartKind kind) {
  switch (kind) {
    case PartKind::kCodes: return parse_codes_part(part).status();
    case PartKind::kOrder: return parse_order_part(part).status();
    default: return parse_level_part(part, kind).status();
  }
}

TEST(Part, LevelIsReadBackInPlace) {
  const AlignedBytes bytes = make(PartKind::kClusters);
  const LevelPart part = parse_level_part(bytes, PartKind::kClusters).value();
  EXPECT_EQ(part.shape, kShape);
  ASSERT_EQ(part.heads.size(), 2u);
  const LevelView& level = part.heads[1];
  EXPECT_EQ(level.count, 31);
  for (std::int32_t c = 0; c < 31; ++c) {
    EXPECT_EQ(level.key_means[level.key_mean_at(c, 63)], static_cast<std::int8_t>(c + 63));
    EXPECT_EQ(level.value_means[c * 128 + 127], static_cast<std::int8_t>(c - 127));
    EXPECT_EQ(level.key_scale[c], static_cast<float>(c));
  }
  EXPECT_EQ(level.gamma[3], 4.0f);
  EXPECT_EQ(level.ln_count[31], -HUGE_VALF) << "padding weighs nothing";
  EXPECT_EQ(level.token_count[31], 0);
}

// 31 clusters: one panel, 32 wide; 33 would be a full panel and one of 4.
TEST(Part, LastPanelIsRoundedUpToFour) {
  LevelView level;
  level.d_k = 64;
  level.stored_count = 33;
  EXPECT_EQ(level.panel_count(), 2);
  EXPECT_EQ(level.panel_width(0), 32);
  EXPECT_EQ(level.panel_width(1), 4);
  EXPECT_EQ(level.key_mean_at(0, 1), 1);
  EXPECT_EQ(level.key_mean_at(1, 0), 4);
  EXPECT_EQ(level.key_mean_at(0, 4), 128);
  EXPECT_EQ(level.key_mean_at(32, 0), 32 * 64);
  EXPECT_EQ(level.key_mean_at(32, 4), 32 * 64 + 16);
}

TEST(Part, EveryArrayStartsAtAMultipleOf64) {
  const AlignedBytes bytes = make(PartKind::kClusters);
  const LevelPart part = parse_level_part(bytes, PartKind::kClusters).value();
  for (const LevelView& level : part.heads) {
    for (const void* at :
         {static_cast<const void*>(level.key_means), static_cast<const void*>(level.value_means),
          static_cast<const void*>(level.key_scale), static_cast<const void*>(level.sigma),
          static_cast<const void*>(level.first_row), static_cast<const void*>(level.gamma)}) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(at) % 64, 0u);
    }
  }
}

// L1 of the longest segments has a slope for every head; nothing else has.
TEST(Part, SlopesAreReadBackWhereTheyAre) {
  PartShape shape = kShape;
  shape.row_count = kSlopeTokens;
  shape.first_indexed_row = 0;
  const std::int32_t counts[] = {kSlopeTokens / 16, kSlopeTokens / 16};
  AlignedBytes bytes = make_level_part(PartKind::kClusters, shape, counts);
  for (std::int32_t head = 0; head < 2; ++head) {
    MutableLevelView level = mutable_level(bytes, head);
    ASSERT_NE(level.slope, nullptr);
    for (std::int32_t c = 0; c < level.count; ++c) {
      level.first_row[c] = static_cast<std::uint16_t>(c * 16);
      level.token_count[c] = 16;
      level.ln_count[c] = std::log(16.0f);
    }
    level.slope[0] = static_cast<std::int8_t>(1 + head);
    level.slope[64 * 128 - 1] = -5;
    level.slope_scale[63] = 0.5f;
  }
  const LevelPart part = parse_level_part(bytes, PartKind::kClusters).value();
  EXPECT_EQ(part.heads[0].slope[0], 1);
  EXPECT_EQ(part.heads[1].slope[0], 2);
  EXPECT_EQ(part.heads[1].slope[64 * 128 - 1], -5);
  EXPECT_EQ(part.heads[1].slope_scale[63], 0.5f);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(part.heads[1].slope) % 64, 0u);
  mutable_level(bytes, 1).slope_scale[3] = NAN;
  EXPECT_EQ(parse(bytes, PartKind::kClusters).code(), Code::kInvalidArgument);
  AlignedBytes shorter = make(PartKind::kClusters);
  EXPECT_EQ(mutable_level(shorter, 0).slope, nullptr);
  AlignedBytes lists = make_level_part(PartKind::kLists, shape, counts);
  EXPECT_EQ(mutable_level(lists, 0).slope, nullptr);
}

TEST(Part, CodesAndOrderAreReadBack) {
  const AlignedBytes codes_bytes = make(PartKind::kCodes);
  const CodesView codes = parse_codes_part(codes_bytes).value().heads[1];
  for (const std::int32_t row : {0, 15, 16, 511}) {
    for (const std::int32_t j : {0, 63}) {
      EXPECT_EQ(codes.code(row, j), static_cast<std::uint32_t>((row + j) % 4));
    }
    EXPECT_EQ(codes.check[row], static_cast<std::uint32_t>(row * 7 + 1));
  }
  const AlignedBytes order_bytes = make(PartKind::kOrder);
  EXPECT_EQ(parse_order_part(order_bytes).value().heads[0][5], 506);
}

class PartKinds : public testing::TestWithParam<PartKind> {};

TEST_P(PartKinds, OtherKindsVersionsAndLengthsAreRefused) {
  const AlignedBytes good = make(GetParam());
  ASSERT_TRUE(parse(good, GetParam()).ok());
  for (const PartKind other : {PartKind::kLists, PartKind::kCodes, PartKind::kOrder}) {
    if (other == GetParam()) continue;
    EXPECT_EQ(parse(good, other).code(), Code::kInvalidArgument);
  }
  AlignedBytes bad = good;
  bad[4] = std::byte{9};  // version
  const Status version = parse(bad, GetParam());
  EXPECT_NE(version.message().find("layout version 9"), std::string::npos) << version.to_string();
  bad = good;
  bad[0] ^= std::byte{1};
  EXPECT_NE(parse(bad, GetParam()).message().find("magic"), std::string::npos);
  for (const std::size_t size : {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{100},
                                 good.size() - 1, good.size() - 64}) {
    bad.assign(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(parse(bad, GetParam()).code(), Code::kInvalidArgument) << size;
  }
  bad = good;
  bad.resize(good.size() + 64);
  EXPECT_EQ(parse(bad, GetParam()).code(), Code::kInvalidArgument);
}

// Bytes that a transport or a tier left somewhere else than kernels can scan them.
TEST_P(PartKinds, BytesAtAnOddAddressAreRefused) {
  const AlignedBytes good = make(GetParam());
  for (const std::size_t offset : {1, 2, 4, 32}) {
    AlignedBytes elsewhere(good.size() + offset);
    std::ranges::copy(good, elsewhere.begin() + static_cast<std::ptrdiff_t>(offset));
    const Status status = parse(ConstByteSpan(elsewhere).subspan(offset), GetParam());
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << offset;
    EXPECT_NE(status.message().find("multiple of 64"), std::string::npos) << status.to_string();
  }
}

// Whatever the bytes are, parsing neither crashes nor lets an index through that is out of range.
TEST_P(PartKinds, RandomDamageNeverGetsThroughAsABadIndex) {
  const AlignedBytes good = make(GetParam());
  SeededRng rng(1);
  for (int trial = 0; trial < 2000; ++trial) {
    AlignedBytes bad = good;
    for (std::uint64_t flips = 1 + rng.below(4); flips > 0; --flips) {
      const std::size_t at = rng.below(trial % 2 == 0 ? 200 : bad.size());
      bad[at] ^= static_cast<std::byte>(1 << rng.below(8));
    }
    if (GetParam() == PartKind::kOrder) {
      const Result<OrderPart> part = parse_order_part(bad);
      for (std::size_t i = 0; part.has_value() && i < 512; ++i) {
        ASSERT_LT(part->heads[0][i], 512);
      }
      continue;
    }
    if (GetParam() == PartKind::kCodes) {
      (void)parse_codes_part(bad);
      continue;
    }
    const Result<LevelPart> part = parse_level_part(bad, GetParam());
    if (!part.has_value()) continue;
    for (const LevelView& level : part->heads) {
      for (std::int32_t c = 0; c < level.count; ++c) {
        ASSERT_LE(level.first_row[c] + level.token_count[c], 512);
        ASSERT_GE(level.first_row[c], kSinkTokens);
        ASSERT_TRUE(std::isfinite(level.key_scale[c]));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PartKinds,
                         testing::Values(PartKind::kLists, PartKind::kClusters, PartKind::kCodes,
                                         PartKind::kOrder),
                         [](const auto& param) { return std::string(to_string(param.param)); });

// ------------------------------------------------------------------------------------- manifest

Manifest example() {
  Manifest manifest{
      .segment = {.first_token = 1024, .token_count = 1024},
      .model = {.layer_count = 4, .kv_head_count = 2, .d_k = 64, .d_v = 64},
      .slice = {.first_layer = 1, .layer_count = 2, .first_kv_head = 0, .kv_head_count = 2}};
  manifest.segment.before.bytes[1] = std::byte{5};
  manifest.segment.end.bytes[2] = std::byte{6};
  manifest.fingerprint.bytes[3] = std::byte{7};
  for (const PartId& id : parts_of(manifest.slice, 1024)) {
    manifest.parts.push_back({.id = id, .bytes = 100, .checksum = id.extent + 77u});
  }
  return manifest;
}

TEST(Manifest, IsReadBack) {
  Manifest manifest = example();
  EXPECT_EQ(Manifest::parse(manifest.serialise()).value(), manifest);
  manifest.segment.origin.approx_tag = 0;
  EXPECT_EQ(Manifest::parse(manifest.serialise()).value(), manifest);
  EXPECT_EQ(manifest.part_bytes(), static_cast<std::int64_t>(manifest.parts.size()) * 100);
}

TEST(Manifest, ListsEveryPartOfItsSliceInOrder) {
  const std::vector<PartId> ids =
      parts_of({.first_layer = 3, .layer_count = 2, .first_kv_head = 1, .kv_head_count = 3}, 1024);
  EXPECT_EQ(ids.size(), 2u * 4 + 2 * 3 * 4);
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
  EXPECT_EQ(ids.front(), (PartId{.kind = PartKind::kLists, .layer = 3, .kv_head = 0xffff}));
  EXPECT_EQ(ids.back(), (PartId{.kind = PartKind::kExtent, .layer = 4, .kv_head = 3, .extent = 3}));
}

TEST(Manifest, AnyChangedByteIsFound) {
  const Bytes good = example().serialise();
  for (std::size_t at = 0; at < good.size(); ++at) {
    Bytes bad = good;
    bad[at] ^= std::byte{4};
    const Result<Manifest> manifest = Manifest::parse(bad);
    ASSERT_FALSE(manifest.has_value()) << at;
  }
}

TEST(Manifest, EveryTruncationIsRefused) {
  const Bytes good = example().serialise();
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(Manifest::parse(ConstByteSpan(good).first(size)).has_value());
  }
}

TEST(Manifest, NonsenseIsRefused) {
  const auto refused = [](auto change) {
    Manifest manifest = example();
    change(manifest);
    return !Manifest::parse(manifest.serialise()).has_value();
  };
  EXPECT_TRUE(refused([](Manifest& m) { m.parts.pop_back(); }));
  EXPECT_TRUE(refused([](Manifest& m) { std::swap(m.parts[0], m.parts[1]); }));
  EXPECT_TRUE(refused([](Manifest& m) { m.segment.first_token = 256; })) << "not aligned";
  EXPECT_TRUE(refused([](Manifest& m) { m.segment.token_count = 512; }));
  EXPECT_TRUE(refused([](Manifest& m) { m.slice.first_layer = 3; })) << "slice outside the model";
  EXPECT_TRUE(refused([](Manifest& m) { m.model.d_k = 72; }));
}

}  // namespace
}  // namespace icefield
