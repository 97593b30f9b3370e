// Random shapes and keys through partition and describe: the SIMD kernels against the float64
// reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "bench/support/head_fixture.h"
#include "tests/support/level_checks.h"
#include "tests/support/strange_rows.h"

namespace icefield {
namespace {

struct Head {
  StrangeKeys keys;
  std::int32_t rows, d_k, d_v, first_indexed_row;
};

Head random_head(Rng& rng) {
  const auto dim = [&] { return 16 * static_cast<std::int32_t>(1 + rng.below(16)); };
  return {.keys = static_cast<StrangeKeys>(rng.below(kStrangeKeyKinds)),
          .rows = rng.below(8) == 0 ? 4096 : 256 * static_cast<std::int32_t>(1 + rng.below(5)),
          .d_k = dim(),
          .d_v = dim(),
          .first_indexed_row = rng.below(2) == 0 ? 0 : kSinkTokens};
}

std::string text_of(const Head& head) {
  return "keys " + std::to_string(static_cast<int>(head.keys)) + ", " + std::to_string(head.rows) +
         " rows, dimensions " + std::to_string(head.d_k) + " and " + std::to_string(head.d_v);
}

// Every token once, lists that end at cluster ends, clusters that are not too large, the last
// extent by itself.
void expect_partition(const Partition& partition, const Head& head) {
  std::vector<std::uint16_t> tokens = partition.order;
  std::ranges::sort(tokens);
  std::vector<std::uint16_t> all(static_cast<std::size_t>(head.rows));
  std::iota(all.begin(), all.end(), std::uint16_t{0});
  EXPECT_EQ(tokens, all);
  std::vector<std::int32_t> list_ends = {head.first_indexed_row};
  for (const std::uint16_t rows : partition.list_rows) list_ends.push_back(list_ends.back() + rows);
  EXPECT_EQ(list_ends.back(), head.rows);
  std::vector<std::int32_t> ends = {head.first_indexed_row};
  for (const std::uint16_t rows : partition.cluster_rows) {
    EXPECT_GE(rows, 1);
    EXPECT_LE(rows, kMaxClusterTokens);
    ends.push_back(ends.back() + rows);
  }
  EXPECT_TRUE(std::ranges::includes(ends, list_ends));
  EXPECT_TRUE(std::ranges::binary_search(ends, std::max(head.rows - 256, head.first_indexed_row)));
}

TEST(BuildFuzz, SimdClustersAndDescribesAsTheReferenceDoes) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    SeededRng rng(seed);
    const Head shape = random_head(rng);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + text_of(shape));
    const std::vector<Bf16> rows = strange_rows(rng, shape.keys, shape.rows, shape.d_k, shape.d_v);
    const auto make = [&](const Kernels& kernels) {
      return HeadFixture::make(kernels, rows, shape.d_k, shape.d_v, shape.first_indexed_row);
    };
    const auto simd = make(cpu_kernels());
    expect_partition(simd->partition, shape);
    expect_same_index(*simd);
    const auto reference = make(reference_kernels());
    expect_partition(reference->partition, shape);
    const double ours = squared_error(simd->index.clusters, simd->stored_rows.data());
    const double theirs = squared_error(reference->index.clusters, reference->stored_rows.data());
    EXPECT_LE(ours, 1.01 * theirs);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace icefield
