// Random shapes, keys and queries through select, attend, merge and gather: the SIMD kernels
// against the float64 reference, and a defined result for what no model should produce.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"
#include "tests/support/selection_checks.h"
#include "tests/support/strange_rows.h"

namespace icefield {
namespace {

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
  std::vector<std::int32_t> segment_budgets;  // of the rule, or empty

  // `query_rows` 0: some.
  explicit World(Rng& rng, std::int32_t query_rows = 0) {
    const auto d_k = pick<std::int32_t>(rng, {16, 64, 80, 96, 128, 256});
    const auto d_v = pick<std::int32_t>(rng, {d_k, d_k, 48, 64});
    shape = {.d_k = d_k, .d_v = d_v, .beta = 1.0f / std::sqrt(static_cast<float>(d_k))};
    const std::size_t count = 1 + rng.below(3);
    for (std::size_t s = 0; s < count; ++s) {
      const auto keys = static_cast<StrangeKeys>(rng.below(8) % kStrangeKeyKinds);
      const auto length = pick<std::int32_t>(rng, {256, 256, 1024});
      heads.push_back(HeadFixture::make(cpu_kernels(), strange_rows(rng, keys, length, d_k, d_v),
                                        d_k, d_v, s == 0 ? kSinkTokens : 0));
      const bool in_window = s + 1 == count && length > 256 && rng.below(2) == 0;
      table.push_back(in_window ? without_last_extent(heads.back()->index) : heads.back()->index);
      rows.push_back(heads.back()->stored_rows.data());
    }
    const auto any = static_cast<std::int32_t>(1 + rng.below(19));
    const std::int32_t queries = query_rows == 0 ? any : query_rows;
    q = random_queries(rng, heads[0]->rows, queries, d_k, d_v);
    const float factor = pick<float>(rng, {1.0f, 1.0f, 0.0f, 1e-25f, 8.0f});
    for (float& value : q) value *= factor;
    for (std::int32_t h = 0; h < queries; ++h) {
      exact_lse.push_back(rng.below(4) == 0 ? -HUGE_VALF : 3 * normal(rng));
    }
    const std::int32_t indexed = indexed_rows();
    rule.budget = pick<std::int32_t>(rng, {0, 1, 17, 64, 256, indexed, indexed + 1, 1 << 30});
    rule.breadth = pick<std::int32_t>(rng, {kAllClusters, 1, 2, 16});
    if (rng.below(4) != 0) return;
    for (const HeadIndex& segment : table) {
      const std::int32_t all = segment.indexed_rows();
      segment_budgets.push_back(pick<std::int32_t>(rng, {0, 1, 40, all, all + 1}));
    }
    rule.segment_budgets = segment_budgets.data();
  }
  World(const World&) = delete;  // the rule refers to the budgets
  World& operator=(const World&) = delete;

  std::int32_t indexed_rows() const {
    return table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows;
  }
  // What the rule selects, whatever the votes are.
  std::size_t wanted_rows() const {
    if (segment_budgets.empty()) {
      return static_cast<std::size_t>(std::min(rule.budget, indexed_rows()));
    }
    std::int32_t wanted = 0;
    for (std::size_t s = 0; s < table.size(); ++s) {
      wanted += std::min(segment_budgets[s], table[s].indexed_rows());
    }
    return static_cast<std::size_t>(wanted);
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

void expect_logits_close(const std::vector<float>& ours, const std::vector<float>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (std::isnan(theirs[i])) continue;  // not in C: undefined
    ASSERT_NEAR(ours[i], theirs[i], 1e-5f * (1 + std::abs(theirs[i]))) << "at " << i;
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

// Makes one query row's results those of no terms.
void forget_row(PartialBuffer& result, std::size_t row) {
  const std::size_t d_v = result.out.size() / result.lse.size();
  std::fill_n(result.out.begin() + static_cast<std::ptrdiff_t>(row * d_v), d_v, 0.0f);
  result.lse[row] = -HUGE_VALF;
  result.tail[row] = result.fault[row] = result.drift[row] = 0;
}

// One step of both after the other; what the reference of the next step is given has been compared.
void expect_same_steps(const World& world, GroupFixture& simd, GroupFixture& reference) {
  // Twice what contract and its rounding of e^x allow: both the cut and the vote may be off.
  constexpr float kTolerance = 2e-4f;
  const std::vector<SelectionPart> parts = selection_parts(world.table, world.rule);
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
  expect_logits_close(simd.cluster_logit, reference.cluster_logit);
  expect_same_candidates(parts, simd.candidate, reference.candidate, reference.cluster_vote,
                         kTolerance);
  reference.cluster_logit = simd.cluster_logit;
  reference.candidate = simd.candidate;
  simd.rank(world.rule);
  reference.rank(world.rule);
  expect_votes_close(simd.vote, reference.vote);
  expect_logits_close(simd.token_logit, reference.token_logit);
  ASSERT_EQ(simd.selected.size(), world.wanted_rows());
  expect_same_rows(world.table, parts, simd.selected, reference.selected, reference.vote,
                   kTolerance);
  reference.token_logit = simd.token_logit;
  reference.selected = simd.selected;
  expect_same_attention(simd.attend(), reference.attend());
}

TEST(KernelsFuzz, SimdSelectsAndAttendsAsTheReferenceDoes) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    const World world(rng);
    GroupFixture simd = world.group(cpu_kernels());
    GroupFixture reference = world.group(reference_kernels());
    expect_same_steps(world, simd, reference);
    if (HasFatalFailure()) return;
  }
}

// Partial results of `rows` query rows, about a third of them of no terms.
PartialBuffer random_partial(Rng& rng, std::int32_t rows, std::int32_t d_v) {
  PartialBuffer part(rows, d_v);
  for (float& x : part.out) x = normal(rng);
  for (std::size_t h = 0; h < part.lse.size(); ++h) {
    const bool empty = rng.below(3) == 0;
    part.lse[h] = empty ? -HUGE_VALF : 20 * normal(rng);
    part.tail[h] = empty ? 0 : static_cast<float>(rng.unit());
    part.fault[h] = empty ? 0 : part.tail[h] * static_cast<float>(rng.unit());
    part.drift[h] = empty ? 0 : normal(rng);
    if (empty) std::fill_n(part.out.begin() + static_cast<std::ptrdiff_t>(h) * d_v, d_v, 0.0f);
  }
  return part;
}

TEST(KernelsFuzz, SimdMergesAsTheReferenceDoes) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    const auto d_v = 16 * static_cast<std::int32_t>(1 + rng.below(16));
    const auto rows = static_cast<std::int32_t>(1 + rng.below(20));
    std::vector<PartialBuffer> parts;
    for (std::uint64_t p = 1 + rng.below(5); p > 0; --p) {
      parts.push_back(random_partial(rng, rows, d_v));
    }
    std::vector<PartialBuffer*> pointers;
    for (PartialBuffer& part : parts) pointers.push_back(&part);
    const PartialBuffer ours = merge(cpu_kernels(), d_v, pointers);
    const PartialBuffer theirs = merge(reference_kernels(), d_v, pointers);
    for (std::size_t i = 0; i < ours.out.size(); ++i) {
      ASSERT_NEAR(ours.out[i], theirs.out[i], 1e-6f * (1 + std::abs(theirs.out[i])));
    }
    for (std::size_t h = 0; h < ours.lse.size(); ++h) {
      if (std::isinf(theirs.lse[h])) {
        ASSERT_EQ(ours.lse[h], theirs.lse[h]);
      } else {
        ASSERT_NEAR(ours.lse[h], theirs.lse[h], 1e-6f * (1 + std::abs(theirs.lse[h])));
      }
      ASSERT_NEAR(ours.tail[h], theirs.tail[h], 1e-6f);
      ASSERT_NEAR(ours.fault[h], theirs.fault[h], 1e-6f);
      ASSERT_NEAR(ours.drift[h], theirs.drift[h], 1e-6f * (1 + std::abs(theirs.drift[h])));
    }
  }
}

// Pages of any length from any address, none at all too; nothing beside `out` is written.
TEST(KernelsFuzz, PagesAreGatheredAsTheyAre) {
  constexpr std::byte kUntouched{0x5a};
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    const auto bytes = static_cast<std::int64_t>(1 + rng.below(700));
    const auto count = static_cast<std::int32_t>(rng.below(40));
    std::vector<std::byte> slab(20000);
    for (std::byte& b : slab) b = static_cast<std::byte>(rng.next());
    std::vector<const std::byte*> pages;
    std::vector<std::byte> expected(1, kUntouched);
    for (std::int32_t i = 0; i < count; ++i) {
      pages.push_back(slab.data() + rng.below(slab.size() - static_cast<std::size_t>(bytes)));
      expected.insert(expected.end(), pages.back(), pages.back() + bytes);
    }
    expected.push_back(kUntouched);
    for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
      std::vector<std::byte> out(expected.size(), kUntouched);
      kernels->page_gather(
          {.pages = pages.data(), .out = out.data() + 1, .page_bytes = bytes, .page_count = count});
      ASSERT_EQ(out, expected);
    }
  }
}

// A query row that is not finite votes for all: the selection is of the right size, and every other
// row of its group is attended as the reference attends it. Its own output is not specified.
TEST(KernelsFuzz, QueriesThatAreNotFiniteSelectAsManyAndLeaveOthersAlone) {
  for (std::uint64_t seed = 100; seed < 130; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRng rng(seed);
    World world(rng, seed % 2 == 0 ? 1 : 0);  // one row alone votes in another way
    const float bad[] = {NAN, HUGE_VALF, -HUGE_VALF};
    const std::size_t at = rng.below(world.q.size());
    world.q[at] = bad[seed % 3];
    const std::size_t bad_row = at / static_cast<std::size_t>(world.shape.d_k);
    if (seed % 4 < 2) world.exact_lse[bad_row] = NAN;  // as attention to E gives it
    for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
      GroupFixture group = world.group(*kernels);
      group.select(world.rule);
      ASSERT_EQ(group.selected.size(), world.wanted_rows());
      expect_same_rows(world.table, {}, group.selected, group.selected, {}, 0);
      GroupFixture reference = world.group(reference_kernels());
      reference.cluster_logit = group.cluster_logit;
      reference.candidate = group.candidate;
      reference.token_logit = group.token_logit;
      reference.selected = group.selected;
      PartialBuffer ours = group.attend();
      PartialBuffer theirs = reference.attend();
      forget_row(ours, bad_row);
      forget_row(theirs, bad_row);
      expect_same_attention(ours, theirs);
    }
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace icefield
