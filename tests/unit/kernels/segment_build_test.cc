// Clustering: the partition is one, the SIMD version clusters as tightly as the reference, and the
// statistics are those of docs/formats/attention.md step 2.
#include "kernels/segment_build.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "bench/support/head_fixture.h"
#include "tests/support/level_checks.h"

namespace icefield {
namespace {

struct Case {
  std::int32_t rows, first_indexed_row, d_k, d_v;
};

class SegmentBuild : public testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<HeadFixture> build(const Kernels& kernels) {
    SeededRng rng(7);
    const Case& c = GetParam();
    return HeadFixture::make(kernels, random_rows(rng, c.rows, c.d_k, c.d_v), c.d_k, c.d_v,
                             c.first_indexed_row);
  }
};

double error_of(const HeadFixture& head) {
  return squared_error(head.index.clusters, head.stored_rows.data());
}

TEST_P(SegmentBuild, PartitionHoldsEveryTokenOnceAndKeepsSinkAndLastExtentApart) {
  for (const Kernels* kernels : {&reference_kernels(), &cpu_kernels()}) {
    const auto head = build(*kernels);
    const Partition& partition = head->partition;
    const Case& c = GetParam();
    const std::set<std::uint16_t> tokens(partition.order.begin(), partition.order.end());
    EXPECT_EQ(tokens.size(), static_cast<std::size_t>(c.rows));
    for (std::int32_t i = 0; i < c.first_indexed_row; ++i) {
      EXPECT_EQ(partition.order[static_cast<std::size_t>(i)], i) << "sink rows keep their places";
    }
    for (std::int32_t i = c.rows - kExtentRows; i < c.rows; ++i) {
      EXPECT_GE(partition.order[static_cast<std::size_t>(i)] + 0, c.rows - kExtentRows);
    }
    for (const std::uint16_t rows : partition.cluster_rows) EXPECT_LE(rows, kMaxClusterTokens);
    const double mean = static_cast<double>(c.rows - c.first_indexed_row) /
                        static_cast<double>(partition.cluster_rows.size());
    EXPECT_GT(mean, 0.7 * kClusterTokens);
    EXPECT_LT(mean, 1.5 * kClusterTokens);
  }
}

TEST_P(SegmentBuild, SimdClustersAreAsTightAsTheReferences) {
  const double reference = error_of(*build(reference_kernels()));
  const double simd = error_of(*build(cpu_kernels()));
  EXPECT_NEAR(simd / reference, 1.0, 0.02);
}

TEST_P(SegmentBuild, SameInputGivesTheSameBytes) {
  const auto a = build(cpu_kernels());
  const auto b = build(cpu_kernels());
  EXPECT_EQ(a->partition.order, b->partition.order);
  EXPECT_EQ(a->lists, b->lists);
  EXPECT_EQ(a->clusters, b->clusters);
  EXPECT_EQ(a->codes, b->codes);
}

// The same partition described by both: integers may differ where a quotient is a tie.
TEST_P(SegmentBuild, StatisticsAndCodesAgreeWithTheReference) {
  const auto simd = build(cpu_kernels());
  expect_same_index(*simd);
}

// The optimal 4-level quantiser of a normal variable leaves 0.1175 of its power (Max 1960).
TEST_P(SegmentBuild, CodesLeaveWhatTheBestFourLevelsLeave) {
  const auto simd = build(cpu_kernels());
  const HeadIndex& index = simd->index;
  const CodeError codes = code_error(index.clusters, index.codes, simd->stored_rows.data());
  EXPECT_NEAR(codes.error / codes.power, 0.1175, 0.02);
}
INSTANTIATE_TEST_SUITE_P(Shapes, SegmentBuild,
                         testing::Values(Case{256, 0, 64, 64}, Case{256, 16, 64, 64},
                                         Case{1024, 0, 128, 128}, Case{1024, 16, 64, 128},
                                         Case{4096, 0, 64, 64}, Case{256, 16, 80, 96},
                                         Case{256, 0, 96, 64}, Case{256, 0, 256, 256}),
                         [](const auto& param) {
                           const Case& c = param.param;
                           return "rows" + std::to_string(c.rows) + "first" +
                                  std::to_string(c.first_indexed_row) + "k" +
                                  std::to_string(c.d_k) + "v" + std::to_string(c.d_v);
                         });

TEST(SegmentBuildEdge, EqualKeysMakeClustersOfAtMost48WithZeroVariance) {
  std::vector<Bf16> rows(256 * 128, float_to_bf16(1.5f));
  for (const Kernels* kernels : {&reference_kernels(), &cpu_kernels()}) {
    const auto head = HeadFixture::make(*kernels, rows, 64, 64, 0);
    for (std::int32_t c = 0; c < head->index.clusters.count; ++c) {
      EXPECT_LE(head->index.clusters.token_count[c], kMaxClusterTokens);
      EXPECT_TRUE(std::isfinite(fp16_to_float(head->index.clusters.sigma[c])));
    }
  }
}

TEST(SegmentBuildEdge, ZeroKeysHaveZeroScalesAndVariance) {
  const auto head = HeadFixture::make(cpu_kernels(), std::vector<Bf16>(256 * 128, 0), 64, 64, 0);
  for (std::int32_t c = 0; c < head->index.clusters.count; ++c) {
    EXPECT_EQ(head->index.clusters.key_scale[c], 0.0f);
    EXPECT_EQ(head->index.clusters.sigma[c], 0);
  }
}

}  // namespace
}  // namespace icefield
