// Random shapes, keys and queries through build, select and attend: the SIMD kernels against the
// float64 reference, and a defined result for what no model should produce.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"

namespace icefield {
namespace {

enum class Keys { kUsual, kAllEqual, kZero, kOneOutlier, kTiny, kLarge };

std::vector<Bf16> make_rows(Rng& rng, Keys keys, std::int32_t rows, std::int32_t d_k,
                            std::int32_t d_v) {
  std::vector<Bf16> out = random_rows(rng, rows, d_k, d_v);
  const std::int32_t width = d_k + d_v;
  for (std::int32_t i = 0; i < rows; ++i) {
    for (std::int32_t j = 0; j < d_k; ++j) {
      Bf16& key = out[static_cast<std::size_t>(i * width + j)];
      switch (keys) {
        case Keys::kUsual: break;
        case Keys::kAllEqual: key = float_to_bf16(static_cast<float>(j % 5) - 2); break;
        case Keys::kZero: key = 0; break;
        case Keys::kOneOutlier:
          if (i == rows / 2) key = float_to_bf16(j % 2 == 0 ? 3000.0f : -3000.0f);
          break;
        case Keys::kTiny: key = float_to_bf16(1e-20f * bf16_to_float(key)); break;
        case Keys::kLarge: key = float_to_bf16(20.0f * bf16_to_float(key)); break;
      }
    }
  }
  return out;
}

template <class T>
const T& pick(Rng& rng, const std::vector<T>& from) {
  return from[rng.below(from.size())];
}

// A context of random segments with a group of query rows.
struct World {
  HeadShape shape;
  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::vector<HeadIndex> table;
  std::vector<const Bf16*> rows;
  std::vector<float> q, exact_lse;
  SelectionRule rule;

  explicit World(Rng& rng) {
    const auto d_k = pick<std::int32_t>(rng, {16, 64, 80, 96, 128, 256});
    const auto d_v = pick<std::int32_t>(rng, {d_k, d_k, 48, 64});
    shape = {.d_k = d_k, .d_v = d_v, .beta = 1.0f / std::sqrt(static_cast<float>(d_k))};
    const std::size_t count = 1 + rng.below(3);
    for (std::size_t s = 0; s < count; ++s) {
      const auto keys = static_cast<Keys>(rng.below(8) % 6);
      const auto length = pick<std::int32_t>(rng, {256, 256, 1024});
      heads.push_back(HeadFixture::make(cpu_kernels(), make_rows(rng, keys, length, d_k, d_v), d_k,
                                        d_v, s == 0 ? kSinkTokens : 0));
      const bool in_window = s + 1 == count && length > 256 && rng.below(2) == 0;
      table.push_back(in_window ? heads.back()->without_last_extent() : heads.back()->index);
      rows.push_back(heads.back()->stored_rows.data());
    }
    const auto queries = static_cast<std::int32_t>(1 + rng.below(19));
    q = random_queries(rng, heads[0]->rows, queries, d_k, d_v);
    const float factor = pick<float>(rng, {1.0f, 1.0f, 0.0f, 1e-25f, 8.0f});
    for (float& value : q) value *= factor;
    for (std::int32_t h = 0; h < queries; ++h) {
      exact_lse.push_back(rng.below(4) == 0 ? -HUGE_VALF : 3 * normal(rng));
    }
    const std::int32_t indexed = indexed_rows();
    rule.budget = pick<std::int32_t>(rng, {0, 1, 17, 64, 256, indexed});
    rule.budget = std::min(rule.budget, indexed);
    rule.breadth = pick<std::int32_t>(rng, {kAllClusters, 1, 2, 16});
  }
  std::int32_t indexed_rows() const {
    return table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows;
  }
  GroupFixture group(const Kernels& kernels) const {
    return GroupFixture(kernels, shape, table, rows, q, exact_lse);
  }
};

// Votes are sums of e^x, or x where there is one query row.
void expect_votes_close(const std::vector<float>& ours, const std::vector<float>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (std::isnan(theirs[i])) continue;  // not in C: undefined
    ASSERT_NEAR(ours[i], theirs[i], 2e-4f * std::abs(theirs[i]) + 1e-37f) << "at " << i;
  }
}

void expect_same_attention(const PartialBuffer& ours, const PartialBuffer& theirs) {
  for (std::size_t i = 0; i < ours.out.size(); ++i) {
    ASSERT_NEAR(ours.out[i], theirs.out[i], 2e-3f * (1 + std::abs(theirs.out[i]))) << "at " << i;
  }
  for (std::size_t h = 0; h < ours.lse.size(); ++h) {
    if (std::isinf(theirs.lse[h])) {
      EXPECT_EQ(ours.lse[h], theirs.lse[h]);
      continue;
    }
    EXPECT_NEAR(ours.lse[h], theirs.lse[h], 1e-4f * (1 + std::abs(theirs.lse[h])));
    EXPECT_NEAR(ours.tail[h], theirs.tail[h], 2e-3f);
    EXPECT_NEAR(ours.drift[h], theirs.drift[h], 2e-3f * (1 + std::abs(theirs.drift[h])));
  }
}

TEST(KernelsFuzz, SimdAgreesWithTheReferenceOnAnything) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    const World world(rng);
    GroupFixture simd = world.group(cpu_kernels());
    GroupFixture reference = world.group(reference_kernels());
    simd.score_lists();
    reference.score_lists();
    for (std::size_t h = 0; h < simd.reference_level.size(); ++h) {
      ASSERT_NEAR(simd.reference_level[h], reference.reference_level[h],
                  1e-5f * (1 + std::abs(reference.reference_level[h])));
    }
    reference.reference_level = simd.reference_level;
    simd.propose(world.rule);
    reference.propose(world.rule);
    expect_votes_close(simd.cluster_vote, reference.cluster_vote);
    reference.cluster_logit = simd.cluster_logit;
    reference.candidate = simd.candidate;
    simd.rank(world.rule);
    reference.rank(world.rule);
    expect_votes_close(simd.vote, reference.vote);
    ASSERT_EQ(simd.selected.size(), static_cast<std::size_t>(world.rule.budget));
    ASSERT_EQ(simd.selected.size(), reference.selected.size());
    reference.token_logit = simd.token_logit;
    reference.selected = simd.selected;
    expect_same_attention(simd.attend(), reference.attend());
    if (HasFatalFailure()) return;
  }
}

// Queries that are not numbers give outputs that are not; the selection is of the right size, and
// nothing outside the arrays is touched.
TEST(KernelsFuzz, QueriesThatAreNotFiniteAreDefined) {
  for (std::uint64_t seed = 100; seed < 110; ++seed) {
    SeededRng rng(seed);
    World world(rng);
    const float bad = seed % 2 == 0 ? NAN : HUGE_VALF;
    world.q[rng.below(world.q.size())] = bad;
    GroupFixture group = world.group(cpu_kernels());
    group.select(world.rule);
    EXPECT_LE(group.selected.size(), static_cast<std::size_t>(world.rule.budget));
    for (const TableRow& row : group.selected) {
      const HeadIndex& segment = world.table[static_cast<std::size_t>(row.segment)];
      EXPECT_GE(row.row, segment.first_row);
      EXPECT_LT(row.row, segment.end_row);
    }
    group.attend();
  }
}

}  // namespace
}  // namespace icefield
