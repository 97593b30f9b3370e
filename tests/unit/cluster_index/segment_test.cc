// Cutting, chaining, building: pure functions over segments.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include "cluster_index/segment/pieces.h"
#include "cluster_index/segment/segment_builder.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

TEST(AlignedPieces, LargestThatFitFromTheLeft) {
  EXPECT_EQ(aligned_pieces(0, 7168),
            (std::vector<Piece>{{0, 4096}, {4096, 1024}, {5120, 1024}, {6144, 1024}}));
  EXPECT_EQ(aligned_pieces(256, 1536),
            (std::vector<Piece>{{256, 256}, {512, 256}, {768, 256}, {1024, 256}, {1280, 256}}));
  EXPECT_EQ(aligned_pieces(0, 0), std::vector<Piece>{});
  EXPECT_EQ(aligned_pieces(0, 256), (std::vector<Piece>{{0, 256}}));
}

TEST(AlignedPieces, CoverEveryRunWithAlignedSegments) {
  for (std::int64_t begin = 0; begin <= 40 * 256; begin += 256) {
    for (std::int64_t end = begin; end <= 40 * 256; end += 256) {
      std::int64_t next = begin;
      for (const Piece& piece : aligned_pieces(begin, end)) {
        EXPECT_EQ(piece.first_token, next);
        EXPECT_TRUE(validate_alignment(piece.first_token, piece.token_count).ok());
        next += piece.token_count;
      }
      EXPECT_EQ(next, end);
    }
  }
}

TEST(WindowBegin, IsTheMultipleThatLeaves256To511Tokens) {
  for (std::int64_t end = 0; end < 5000; ++end) {
    const std::int64_t begin = window_begin(end);
    EXPECT_EQ(begin % 256, 0);
    if (end < 512) {
      EXPECT_EQ(begin, 0);
    } else {
      EXPECT_GE(end - begin, 256);
      EXPECT_LT(end - begin, 512);
    }
  }
}

class BestChain : public testing::Test {
 protected:
  BestChain() {
    for (int i = 0; i <= 28; ++i) {
      PrefixHash hash;
      hash.bytes[0] = static_cast<std::byte>(i + 1);
      prefix_.push_back(hash);
    }
  }
  StoredBuild build(std::int64_t first_block, std::int64_t blocks, int id = 0) const {
    StoredBuild out{.segment = {.before = prefix_[static_cast<std::size_t>(first_block)],
                                .end = prefix_[static_cast<std::size_t>(first_block + blocks)],
                                .first_token = first_block * 256,
                                .token_count = static_cast<std::int32_t>(blocks * 256)},
                    .slice = kWhole};
    out.build.bytes[0] = static_cast<std::byte>(id);
    return out;
  }
  // (first block, blocks, build id) of each link.
  std::vector<std::tuple<std::int64_t, int, int>> chain(const std::vector<StoredBuild>& builds) {
    std::vector<std::tuple<std::int64_t, int, int>> links;
    for (const StoredBuild& link : best_chain(prefix_, builds, kWhole)) {
      links.emplace_back(link.segment.first_token / 256, link.segment.token_count / 256,
                         std::to_integer<int>(link.build.bytes[0]));
    }
    return links;
  }
  using Links = std::vector<std::tuple<std::int64_t, int, int>>;
  static constexpr Slice kWhole{.layer_count = 2, .kv_head_count = 2};
  std::vector<PrefixHash> prefix_;
};

TEST_F(BestChain, ReachesFurthestThenTakesTheFewest) {
  std::vector<StoredBuild> builds = {build(0, 1), build(1, 1), build(2, 1), build(3, 1),
                                     build(4, 1)};
  EXPECT_EQ(chain(builds).size(), 5u);
  builds.push_back(build(0, 4));
  EXPECT_EQ(chain(builds), (Links{{0, 4, 0}, {4, 1, 0}}));
  builds.push_back(build(8, 4));  // a gap before it
  EXPECT_EQ(chain(builds), (Links{{0, 4, 0}, {4, 1, 0}}));
  builds.push_back(build(0, 16));
  EXPECT_EQ(chain(builds), (Links{{0, 16, 0}}));
}

TEST_F(BestChain, SeveralBuildsOfASegmentAreOneTheSmallest) {
  EXPECT_EQ(chain({build(0, 1, 9), build(0, 1, 3), build(0, 1, 5)}), (Links{{0, 1, 3}}));
}

TEST_F(BestChain, WhatDoesNotFitIsIgnored) {
  StoredBuild approx = build(0, 4);
  approx.segment.origin.approx_tag = 5;
  StoredBuild other_prefix = build(0, 4);
  other_prefix.segment.before.bytes[5] = std::byte{1};
  StoredBuild other_end = build(0, 4);
  other_end.segment.end.bytes[5] = std::byte{1};
  StoredBuild half = build(0, 4);
  half.slice.layer_count = 1;
  StoredBuild beyond = build(16, 4);
  beyond.segment.first_token = 1 << 20;
  StoredBuild misaligned = build(1, 4);
  EXPECT_TRUE(chain({approx, other_prefix, other_end, half, beyond, misaligned}).empty());
  EXPECT_TRUE(chain({}).empty());
}

// ---------------------------------------------------------------------------------------- build

class SegmentBuild : public testing::Test {
 protected:
  static constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 3, .d_k = 64, .d_v = 64};

  Result<BuiltSegment> build(int threads, std::int32_t tokens = 1024) {
    ThreadPool pool(threads);
    return build_segment({.name = {.token_count = tokens},
                          .fingerprint = {},
                          .model = kShape,
                          .slice = Slice::whole(kShape),
                          .read_rows =
                              [&](std::int32_t layer, std::int32_t head, Bf16* out) {
                                const auto& rows =
                                    sequence_.rows[static_cast<std::size_t>(layer * 3 + head)];
                                std::copy_n(rows.begin(), tokens * 128, out);
                              }},
                         cpu_kernels(), pool);
  }
  FakeSequence sequence_{3, kShape, 4096};
};

TEST_F(SegmentBuild, SameBytesForAnyThreadCountAndRun) {
  const BuiltSegment one = build(1).value();
  for (const int threads : {1, 2, 5}) {
    const BuiltSegment other = build(threads).value();
    EXPECT_EQ(other.build, one.build);
    EXPECT_EQ(other.manifest_bytes, one.manifest_bytes);
    for (std::size_t i = 0; i < one.manifest.parts.size(); ++i) {
      ASSERT_TRUE(std::ranges::equal(other.part(i), one.part(i))) << i;
    }
  }
}

TEST_F(SegmentBuild, ManifestHoldsTheChecksumsOfItsParts) {
  const BuiltSegment built = build(2).value();
  EXPECT_EQ(Manifest::parse(built.manifest_bytes).value(), built.manifest);
  EXPECT_EQ(build_id(built.manifest_bytes), built.build);
  for (std::size_t i = 0; i < built.manifest.parts.size(); ++i) {
    const PartEntry& part = built.manifest.parts[i];
    const ObjectKey key{
        .segment = built.manifest.segment.id(), .build = built.build, .part = part.id};
    EXPECT_EQ(xxh3(built.part(i), checksum_seed(key)), part.checksum);
    EXPECT_EQ(built.part(i).size(), part.bytes);
  }
}

TEST_F(SegmentBuild, RowsAndOrderGiveBackTheTokens) {
  const BuiltSegment built = build(2).value();
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    const OrderPart order = parse_order_part(built.order[static_cast<std::size_t>(layer)]).value();
    for (std::int32_t head = 0; head < 3; ++head) {
      const auto at = static_cast<std::size_t>(layer * 3 + head);
      const auto* stored = reinterpret_cast<const Bf16*>(built.rows[at].data());
      for (std::int32_t row = 0; row < 1024; ++row) {
        const std::int32_t token = order.heads[static_cast<std::size_t>(head)][row];
        ASSERT_TRUE(std::equal(stored + row * 128, stored + (row + 1) * 128,
                               sequence_.rows[at].begin() + token * 128));
      }
    }
  }
}

TEST_F(SegmentBuild, RowChecksAreThoseOfTheStoredRows) {
  BuiltSegment built = build(2).value();
  const auto index = SegmentIndex::parse(built.manifest, built.index).value();
  for (const std::int32_t row : {0, 15, 16, 777, 1023}) {
    const ConstByteSpan bytes =
        ConstByteSpan(built.rows[4]).subspan(static_cast<std::size_t>(row) * 256, 256);
    EXPECT_EQ(index->row_checks(1, 1)[row],
              row_check(bytes, built.manifest.segment.id(), 1, 1, static_cast<std::uint32_t>(row)));
  }
}

TEST_F(SegmentBuild, LastExtentIsLeftOutWhereTheWindowCoversIt) {
  BuiltSegment built = build(2).value();
  const auto index = SegmentIndex::parse(built.manifest, built.index).value();
  const HeadIndex all = index->head(0, 0, LastExtent::kIndexed);
  const HeadIndex shorter = index->head(0, 0, LastExtent::kInWindow);
  EXPECT_EQ(all.indexed_rows(), 1024 - kSinkTokens);
  EXPECT_EQ(shorter.indexed_rows(), 768 - kSinkTokens);
  EXPECT_LT(shorter.lists.count, all.lists.count);
  EXPECT_EQ(shorter.clusters.first_row[shorter.clusters.count], 768);
}

// Shares of the K/V that L0, L0 + L1 and L0 + L1 + L2 have, as docs/formats/part.md prints them.
std::array<std::string, 3> shares(std::int64_t l0, std::int64_t l1, std::int64_t l2,
                                  std::int64_t kv) {
  const auto percent = [kv](std::int64_t bytes) {
    char text[16];
    std::snprintf(text, sizeof(text), "%.2f",
                  100 * static_cast<double>(bytes) / static_cast<double>(kv));
    return std::string(text);
  };
  return {percent(l0), percent(l0 + l1), percent(l0 + l1 + l2)};
}

// The table of docs/formats/part.md: 64 lists, 215 clusters, three heads in a part.
TEST(SegmentSize, IsWhatIsPublished) {
  for (const auto& [d, published] :
       {std::pair(64, std::array<std::string, 3>{"0.92", "4.38", "12.98"}),
        std::pair(128, std::array<std::string, 3>{"0.86", "4.52", "11.94"})}) {
    const PartShape shape{.kv_head_count = 3, .d_k = d, .d_v = d, .row_count = 4096};
    const std::vector<std::int32_t> lists(3, 4096 / kListTokens);
    const std::vector<std::int32_t> clusters(3, 215);
    const auto size = [](const AlignedBytes& part) {
      return static_cast<std::int64_t>(part.size());
    };
    EXPECT_EQ(shares(size(make_level_part(PartKind::kLists, shape, lists)),
                     size(make_level_part(PartKind::kClusters, shape, clusters)),
                     size(make_codes_part(shape)), 3 * 4096 * 4 * d),
              published)
        << d;
  }
}

// What is built has about as many lists and clusters; at most 13 % of the K/V for every model, and
// what is published, 1 % of it more or less.
TEST(SegmentSize, BuiltIndexesKeepToIt) {
  for (const auto& [d, published] : {std::pair(64, 0.1298), std::pair(128, 0.1194)}) {
    const KvShape shape{.layer_count = 1, .kv_head_count = 3, .d_k = d, .d_v = d};
    const FakeSequence sequence(3, shape, 4096);
    ThreadPool pool(2);
    const BuiltSegment built =
        build_segment({.name = {.first_token = 4096, .token_count = 4096},
                       .fingerprint = {},
                       .model = shape,
                       .slice = Slice::whole(shape),
                       .read_rows =
                           [&](std::int32_t, std::int32_t head, Bf16* out) {
                             std::ranges::copy(sequence.rows[static_cast<std::size_t>(head)], out);
                           }},
                      cpu_kernels(), pool)
            .value();
    const SegmentIndex::LayerParts& index = built.index[0];
    const auto bytes =
        static_cast<double>(index.lists.size() + index.clusters.size() + index.codes.size());
    const double share = bytes / (3 * 4096 * 4 * d);
    EXPECT_LE(share, 0.13) << d;
    EXPECT_NEAR(share, published, 0.01 * published) << d;
  }
}

TEST_F(SegmentBuild, KeysAndValuesThatAreNotFiniteAreNamedWithTheirLayerAndHead) {
  std::vector<Bf16>& rows = sequence_.rows[4];
  for (const float bad : {NAN, HUGE_VALF, -HUGE_VALF}) {
    for (const std::size_t at : {500 * 128 + 3, 500 * 128 + 64 + 3}) {  // a key, a value
      const Bf16 good = std::exchange(rows[at], float_to_bf16(bad));
      const Status status = build(2).error();
      rows[at] = good;
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_NE(status.message().find("layer 1 KV head 1"), std::string::npos)
          << status.to_string();
      EXPECT_NE(status.message().find("token 500"), std::string::npos) << status.to_string();
    }
  }
  EXPECT_TRUE(build(2).has_value());
}

TEST_F(SegmentBuild, SegmentsOfOtherLengthsAreRefused) {
  for (const std::int32_t tokens : {0, 1, 255, 257, 512, 4095}) {
    const Result<BuiltSegment> built = build(1, tokens);
    ASSERT_FALSE(built.has_value()) << tokens;
    EXPECT_EQ(built.error().code(), Code::kInvalidArgument);
    EXPECT_NE(built.error().message().find(std::to_string(tokens)), std::string::npos)
        << built.error().to_string();
  }
  EXPECT_TRUE(build(1, 256).has_value());
}

TEST(SegmentIndex, PartsOfAnotherLayerOrSegmentAreRefused) {
  constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 1, .d_k = 64, .d_v = 64};
  const FakeSequence sequence(3, kShape, 256);
  ThreadPool pool(1);
  BuiltSegment built =
      build_segment({.name = {.token_count = 256},
                     .fingerprint = {},
                     .model = kShape,
                     .slice = Slice::whole(kShape),
                     .read_rows =
                         [&](std::int32_t layer, std::int32_t, Bf16* out) {
                           std::ranges::copy(sequence.rows[static_cast<std::size_t>(layer)], out);
                         }},
                    cpu_kernels(), pool)
          .value();
  auto swapped = built.index;
  std::swap(swapped[0], swapped[1]);
  EXPECT_EQ(SegmentIndex::parse(built.manifest, swapped).error().code(), Code::kInvalidArgument);
  Manifest elsewhere = built.manifest;
  elsewhere.segment.first_token = 256;  // not the first segment: it has no sink rows
  EXPECT_EQ(SegmentIndex::parse(elsewhere, built.index).error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace icefield
