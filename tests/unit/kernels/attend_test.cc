// Attention: the SIMD kernel against the float64 reference, and the properties of
// docs/formats/attention.md step 10.
#include "kernels/attend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"
#include "kernels/simd_target.h"

namespace icefield {
namespace {

struct World {
  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::vector<HeadIndex> table;
  std::vector<const Bf16*> rows;
  std::vector<Bf16> window;  // exact rows after the segments
  HeadShape shape;
  std::vector<float> q;

  World(std::uint64_t seed, std::vector<std::int32_t> lengths, std::int32_t d,
        std::int32_t group_rows) {
    SeededRng rng(seed);
    shape = {.d_k = d, .d_v = d, .beta = 1.0f / std::sqrt(static_cast<float>(d))};
    for (const std::int32_t length : lengths) {
      heads.push_back(HeadFixture::make(cpu_kernels(), random_rows(rng, length, d, d), d, d, 0));
      table.push_back(heads.back()->index);
      rows.push_back(heads.back()->stored_rows.data());
    }
    window = random_rows(rng, 300, d, d);
    q = random_queries(rng, heads[0]->rows, group_rows, d, d);
  }
  std::int32_t group_rows() const { return static_cast<std::int32_t>(q.size()) / shape.d_k; }
  PartialBuffer attend_window(const Kernels& kernels) const {
    return attend_rows(kernels, shape, q, window.data(), 300);
  }
  GroupFixture group(const Kernels& kernels) const {
    return GroupFixture(kernels, shape, table, rows, q, attend_window(kernels).lse);
  }
  std::int32_t indexed() const {
    return table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows;
  }
  // Full attention over everything, float64.
  PartialBuffer full() const {
    std::vector<Bf16> all;
    for (const auto& head : heads) {
      all.insert(all.end(), head->rows.begin(), head->rows.end());
    }
    all.insert(all.end(), window.begin(), window.end());
    return attend_rows(reference_kernels(), shape, q, all.data(),
                       static_cast<std::int64_t>(all.size()) / (2 * shape.d_k));
  }
};

double relative_difference(const PartialBuffer& a, const PartialBuffer& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.out.size(); ++i) {
    difference += std::pow(static_cast<double>(a.out[i]) - static_cast<double>(b.out[i]), 2);
    norm += std::pow(static_cast<double>(b.out[i]), 2);
  }
  return std::sqrt(difference / norm);
}

void expect_equal(const PartialBuffer& a, const PartialBuffer& b, double tolerance) {
  EXPECT_LE(relative_difference(a, b), tolerance);
  for (std::size_t h = 0; h < a.lse.size(); ++h) {
    EXPECT_NEAR(a.lse[h], b.lse[h], tolerance * (1 + std::abs(static_cast<double>(b.lse[h]))));
    EXPECT_NEAR(a.tail[h], b.tail[h], tolerance * 10);
    EXPECT_NEAR(a.fault[h], b.fault[h], tolerance * 10);
    EXPECT_NEAR(a.drift[h], b.drift[h], tolerance * 10);
  }
}

// Of the same selection.
PartialBuffer attend_on_reference(const World& world, const GroupFixture& simd) {
  GroupFixture on_reference(reference_kernels(), world.shape, world.table, world.rows, world.q,
                            simd.exact_lse);
  on_reference.cluster_logit = simd.cluster_logit;
  on_reference.candidate = simd.candidate;
  on_reference.token_logit = simd.token_logit;
  on_reference.selected = simd.selected;
  return on_reference.attend();
}

struct AttendCase {
  std::uint64_t seed;
  std::vector<std::int32_t> lengths;
  std::int32_t d, group_rows, budget, breadth;
};
class Attend : public testing::TestWithParam<AttendCase> {};

TEST_P(Attend, SimdAgreesWithTheReferenceOnTheSameSelection) {
  const AttendCase& c = GetParam();
  const World world(c.seed, c.lengths, c.d, c.group_rows);
  GroupFixture simd = world.group(cpu_kernels());
  simd.select({.budget = std::min(c.budget, world.indexed()), .breadth = c.breadth});
  const PartialBuffer ours = simd.attend();
  expect_equal(ours, attend_on_reference(world, simd), 1e-5);
}

// Drift is a small difference of large sums, which must not grow with the context: among flat
// logits, where the sums are largest beside it.
TEST(AttendDrift, IsAsGoodInALongContext) {
  for (const std::int32_t group_rows : {2, 8}) {
    World world(77, std::vector<std::int32_t>(8, 4096), 64, group_rows);
    world.shape.beta /= 4;
    GroupFixture simd = world.group(cpu_kernels());
    simd.select({.budget = 64, .breadth = world.indexed()});
    const PartialBuffer ours = simd.attend();
    const PartialBuffer exact = attend_on_reference(world, simd);
    for (std::size_t h = 0; h < ours.drift.size(); ++h) {
      EXPECT_NEAR(ours.drift[h], exact.drift[h], 5e-7);
    }
  }
}

TEST_P(Attend, EverythingSelectedIsFullAttention) {
  const AttendCase& c = GetParam();
  const World world(c.seed, c.lengths, c.d, c.group_rows);
  GroupFixture group = world.group(cpu_kernels());
  group.select({.budget = world.indexed(), .breadth = c.breadth});
  PartialBuffer window = world.attend_window(cpu_kernels());
  PartialBuffer selected = group.attend();
  const PartialBuffer merged = merge(cpu_kernels(), c.d, {&window, &selected});
  const PartialBuffer full = world.full();
  for (std::size_t i = 0; i < full.out.size(); ++i) {
    ASSERT_NEAR(merged.out[i], full.out[i], 1e-4) << "fp32 outputs within 1e-4 of float64";
  }
  for (std::size_t h = 0; h < full.lse.size(); ++h) {
    EXPECT_NEAR(merged.lse[h], full.lse[h], 1e-4);
    EXPECT_EQ(merged.tail[h], 0.0f);
    EXPECT_EQ(merged.fault[h], 0.0f);
    EXPECT_EQ(merged.drift[h], 0.0f);
  }
}

// Groups of a call do not depend on each other, whatever their shapes.
TEST(AttendBatch, GroupsOfACallAreEachByItself) {
  for (const std::int32_t d : {64, 128}) {
    const World worlds[] = {World(51, {1024, 256}, d, 3), World(52, {256}, d, 1),
                            World(53, {1024}, d, 16)};
    const std::int32_t budgets[] = {64, 0, 200};
    // The first has a silent segment, the last a cluster whose rest took in a missing row.
    const std::vector<SegmentAccount> accounts[] = {
        {{}, {.by = Accounting::kClusters, .fault = true}}, {}, {}};
    std::vector<std::uint8_t> faulty[3];
    faulty[2].assign(static_cast<std::size_t>(worlds[2].table[0].clusters.count), 0);
    faulty[2][3] = 1;
    for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
      std::vector<GroupFixture> batch;
      std::vector<PartialBuffer> results;
      for (const World& world : worlds) {
        batch.push_back(world.group(*kernels));
        results.emplace_back(world.group_rows(), d);
      }
      const HeadShape& shape = worlds[0].shape;
      std::vector<ScoreListsGroup> lists;
      for (GroupFixture& group : batch) lists.push_back(group.score_lists_group());
      kernels->score_lists({.shape = shape, .group_count = 3, .groups = lists.data()});
      std::vector<ProposeGroup> clusters;
      std::vector<RankGroup> tokens;
      for (std::size_t i = 0; i < 3; ++i) {
        clusters.push_back(batch[i].propose_group({.budget = budgets[i], .breadth = 2}));
      }
      kernels->propose({.shape = shape, .group_count = 3, .groups = clusters.data()});
      for (std::size_t i = 0; i < 3; ++i) {
        tokens.push_back(batch[i].rank_group({.budget = budgets[i], .breadth = 2}));
      }
      kernels->rank({.shape = shape, .group_count = 3, .groups = tokens.data()});
      std::vector<AttendGroup> attends;
      for (std::size_t i = 0; i < 3; ++i) {
        batch[i].keep_selected();
        attends.push_back(batch[i].attend_group(results[i], accounts[i], faulty[i]));
      }
      kernels->attend({.shape = shape, .group_count = 3, .groups = attends.data()});
      for (std::size_t i = 0; i < 3; ++i) {
        GroupFixture alone = worlds[i].group(*kernels);
        alone.select({.budget = budgets[i], .breadth = 2});
        EXPECT_EQ(batch[i].selected, alone.selected);
        EXPECT_EQ(batch[i].candidate, alone.candidate);
        const PartialBuffer expected = alone.attend(accounts[i], faulty[i]);
        EXPECT_EQ(results[i].out, expected.out);
        EXPECT_EQ(results[i].lse, expected.lse);
        EXPECT_EQ(results[i].tail, expected.tail);
        EXPECT_EQ(results[i].fault, expected.fault);
        EXPECT_EQ(results[i].drift, expected.drift);
        EXPECT_GT(expected.drift[0], 0);
      }
    }
  }
}

// Contract §10: each token is accounted for by exactly one term. With q = 0 every logit is 0
// (w = 0 too), so e^lse counts the tokens.
TEST_P(Attend, EveryTokenIsAccountedForOnce) {
  const AttendCase& c = GetParam();
  World world(c.seed, c.lengths, c.d, c.group_rows);
  std::fill(world.q.begin(), world.q.end(), 0.0f);
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group = world.group(*kernels);
    group.select({.budget = std::min(c.budget, world.indexed()), .breadth = c.breadth});
    PartialBuffer window = world.attend_window(*kernels);
    PartialBuffer selected = group.attend();
    const PartialBuffer merged = merge(*kernels, c.d, {&window, &selected});
    const double tokens = world.indexed() + 300;
    for (const float lse : merged.lse) {
      EXPECT_NEAR(std::exp(static_cast<double>(lse)), tokens, 1e-4 * tokens);
    }
    for (std::size_t h = 0; h < selected.tail.size(); ++h) {
      const double unselected = world.indexed() - static_cast<double>(group.selected.size());
      EXPECT_NEAR(merged.tail[h], unselected / tokens, 1e-4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Attend,
    testing::Values(AttendCase{1, {256}, 64, 1, 64, kAllClusters},
                    AttendCase{2, {1024, 256}, 64, 3, 64, 16},
                    AttendCase{3, {256, 1024}, 128, 4, 65, 16},
                    AttendCase{4, {1024, 256}, 64, 48, 256, kAllClusters},
                    AttendCase{5, {4096}, 64, 3, 64, 4}, AttendCase{6, {256}, 128, 7, 0, 16},
                    AttendCase{7, {256, 256}, 64, 5, 511, 16}, AttendCase{8, {1024}, 80, 3, 64, 16},
                    AttendCase{9, {256, 256}, 96, 8, 64, 2},
                    AttendCase{10, {1024}, 256, 11, 64, 16},
                    AttendCase{11, {1024}, 80, 8, 200, 16},  // from here on by tiles
                    AttendCase{12, {1024, 512}, 128, 8, 200, kAllClusters},
                    AttendCase{13, {512}, 256, 9, 200, 16}),
    [](const auto& param) { return "seed" + std::to_string(param.param.seed); });

TEST(AttendRows, SimdAgreesWithTheReferenceForEveryRowCount) {
  SeededRng rng(21);
  for (const std::int32_t d : {48, 64, 80, 96, 128, 256}) {
    const std::vector<Bf16> rows = random_rows(rng, 300, d, d);
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 0.125f};
    for (const std::int32_t group_rows : {1, 2, 3, 4, 5, 8, 9, 16}) {
      const std::vector<float> q = random_queries(rng, rows, group_rows, d, d);
      for (const std::int64_t count : {1, 15, 63, 64, 65, 127, 128, 161, 300}) {
        expect_equal(attend_rows(cpu_kernels(), shape, q, rows.data(), count),
                     attend_rows(reference_kernels(), shape, q, rows.data(), count), 2e-6);
      }
    }
  }
}

TEST(AttendRows, HiddenRowsAreNotSeen) {
  SeededRng rng(22);
  const std::vector<Bf16> rows = random_rows(rng, 170, 64, 64);
  const HeadShape shape{.d_k = 64, .d_v = 64, .beta = 0.125f};
  const std::vector<float> one = random_queries(rng, rows, 1, 64, 64);
  std::vector<float> q;
  std::vector<std::int32_t> hidden;
  for (std::int32_t h = 0; h < 14; ++h) {  // tokens of a call: token h hides the 13 - h after it
    q.insert(q.end(), one.begin(), one.end());
    hidden.push_back(13 - h);
  }
  const PartialBuffer causal = attend_rows(cpu_kernels(), shape, q, rows.data(), 170, hidden);
  for (std::int32_t h = 0; h < 14; ++h) {
    const PartialBuffer alone = attend_rows(cpu_kernels(), shape, one, rows.data(), 157 + h);
    EXPECT_FLOAT_EQ(causal.lse[static_cast<std::size_t>(h)], alone.lse[0]);
    for (std::size_t j = 0; j < 64; ++j) {
      EXPECT_NEAR(causal.out[static_cast<std::size_t>(h) * 64 + j], alone.out[j], 1e-6);
    }
  }
}

// Rows of a run that are masked out are not seen, whatever they hold.
TEST(AttendRows, OnlyRowsOfTheMaskAreSeen) {
  SeededRng rng(24);
  for (const std::int32_t d : {64, 128}) {
    std::vector<Bf16> rows = random_rows(rng, 512, d, d);
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 0.125f};
    const std::vector<float> q = random_queries(rng, rows, 8, d, d);
    std::vector<RowRun> runs;
    std::vector<Bf16> seen;
    for (std::int64_t first = 0; first < 512; first += 64) {
      runs.push_back({.rows = rows.data() + first * 2 * d, .mask = rng.next()});
      for (std::int64_t i = first; i < first + 64; ++i) {
        const auto row = rows.begin() + i * 2 * d;
        if ((runs.back().mask >> (i - first) & 1) != 0) {
          seen.insert(seen.end(), row, row + 2 * d);
        } else {
          std::fill(row, row + 2 * d, float_to_bf16(NAN));
        }
      }
    }
    PartialBuffer masked(8, d);
    const AttendGroup group{.row_count = 8,
                            .q = q.data(),
                            .run_count = static_cast<std::int32_t>(runs.size()),
                            .runs = runs.data(),
                            .result = masked.view()};
    attend_cpu({.shape = shape, .group_count = 1, .groups = &group});
    const auto count = static_cast<std::int64_t>(seen.size()) / (2 * d);
    expect_equal(masked, attend_rows(reference_kernels(), shape, q, seen.data(), count), 2e-6);
  }
}

#if defined(__x86_64__)
// AMX's tiles are part of a thread's state: in use, they make it 8 KB larger.
TEST(AttendRows, TilesAreGivenBack) {
  const HeadShape shape{.d_k = 128, .d_v = 128, .beta = 0.125f};
  if (!tiles_usable()) GTEST_SKIP() << "no tiles with this instruction set";
  ASSERT_TRUE(attends_by_tiles(shape, 8, 200));
  const auto tiles_in_use = [] {
    constexpr std::uint32_t kInUse = 1;
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(kInUse));
    return (low >> 18 & 1) != 0;
  };
  SeededRng rng(25);
  const std::vector<Bf16> rows = random_rows(rng, 200, 128, 128);
  const std::vector<float> q = random_queries(rng, rows, 8, 128, 128);
  (void)attend_rows(cpu_kernels(), shape, q, rows.data(), 200);
  EXPECT_FALSE(tiles_in_use());
}
#endif

// Contract §10: shards that are attended by tiles and by vectors merge as if all were one pass, so
// weights keep the bits of fp32. Here two rows decide and the values of one are 0, so that the
// error of the other's weight is not averaged away.
TEST(AttendRows, WeightsKeepTheirBits) {
  for (const std::int32_t d : {64, 128}) {
    const auto dims = static_cast<std::size_t>(d);
    std::vector<Bf16> rows(200 * 2 * dims, float_to_bf16(0.0f));
    for (std::size_t i = 2; i < 200; ++i) rows[i * 2 * dims] = float_to_bf16(-60.0f);
    rows[2 * dims] = float_to_bf16(-0.25f);
    std::fill_n(rows.begin() + 3 * d, d, float_to_bf16(1.0f));
    std::vector<float> q(8 * dims, 0.0f);
    for (std::size_t r = 0; r < 8; ++r) q[r * dims] = 1.0f + 0.137f * static_cast<float>(r);
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 1.0f};
    expect_equal(attend_rows(cpu_kernels(), shape, q, rows.data(), 200),
                 attend_rows(reference_kernels(), shape, q, rows.data(), 200), 3e-7);
  }
}

// A row whose logits are all -inf counts nowhere.
TEST(AttendRows, RowWithAnInfiniteKeyThatIsFarFromAllQueriesIsNotSeen) {
  SeededRng rng(26);
  for (const std::int32_t d : {64, 128}) {
    std::vector<Bf16> rows = random_rows(rng, 200, d, d);
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 0.125f};
    std::vector<float> q = random_queries(rng, rows, 8, d, d);
    for (std::size_t r = 0; r < 8; ++r) q[r * static_cast<std::size_t>(d) + 5] = 1.0f;  // bf16
    rows[199 * 2 * static_cast<std::size_t>(d) + 5] = float_to_bf16(-HUGE_VALF);
    expect_equal(attend_rows(cpu_kernels(), shape, q, rows.data(), 200),
                 attend_rows(reference_kernels(), shape, q, rows.data(), 199), 2e-6);
  }
}

TEST(AttendRows, NothingToAttendIsDefined) {
  const HeadShape shape{.d_k = 64, .d_v = 64, .beta = 0.125f};
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    const PartialBuffer empty =
        attend_rows(*kernels, shape, std::vector<float>(128, 1.0f), nullptr, 0);
    EXPECT_EQ(empty.lse[1], -std::numeric_limits<float>::infinity());
    EXPECT_EQ(empty.tail[1], 0.0f);
    for (const float value : empty.out) EXPECT_EQ(value, 0.0f);
  }
}

TEST(AttendRows, LargeLogitsDoNotOverflow) {
  SeededRng rng(23);
  const std::vector<Bf16> rows = random_rows(rng, 130, 64, 64);
  const HeadShape shape{.d_k = 64, .d_v = 64, .beta = 40.0f};
  const std::vector<float> q = random_queries(rng, rows, 3, 64, 64);
  const PartialBuffer ours = attend_rows(cpu_kernels(), shape, q, rows.data(), 130);
  for (const float value : ours.out) EXPECT_TRUE(std::isfinite(value));
  expect_equal(ours, attend_rows(reference_kernels(), shape, q, rows.data(), 130), 1e-4);
}

// A selected row has no term in the tail, so the logit that its code estimates scales nothing,
// however far above those of all terms it is.
TEST(AttendTail, IsNotScaledByEstimatesOfSelectedRows) {
  for (const std::int32_t group_rows : {1, 3, 8}) {
    const World world(34, {1024, 256}, 128, group_rows);
    for (const float above : {60.0f, 80.0f, 100.0f, 1e4f}) {
      GroupFixture simd = world.group(cpu_kernels());
      simd.select({.budget = 200, .breadth = kAllClusters});
      for (const TableRow& at : simd.selected) {  // for the first query row
        const std::int32_t row = at.row + (at.segment == 0 ? 0 : world.table[0].codes.row_count);
        simd.token_logit[static_cast<std::size_t>(row)] += above;
      }
      PartialBuffer ours = simd.attend();
      PartialBuffer exact = attend_on_reference(world, simd);
      EXPECT_NEAR(ours.drift[0], exact.drift[0], 1e-5f * std::abs(exact.drift[0]));
      ours.drift[0] = exact.drift[0] = 0;  // what the estimates are off by is in it
      expect_equal(ours, exact, 1e-5);
    }
  }
}

// Contract §10: a selection of nothing is defined, all clusters' means stand in.
TEST(AttendTail, EmptySelectionIsAllTail) {
  const World world(31, {1024}, 64, 3);
  GroupFixture group = world.group(cpu_kernels());
  group.select({.budget = 0});
  EXPECT_TRUE(group.selected.empty());
  const PartialBuffer result = group.attend();
  for (const float tail : result.tail) EXPECT_NEAR(tail, 1.0f, 1e-5f);
}

void expect_merge_is_one_pass(const World& world, const std::vector<std::int32_t>& budgets) {
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture whole = world.group(*kernels);
    whole.select({.segment_budgets = budgets.data(), .breadth = 16});
    const PartialBuffer one_pass = whole.attend();
    std::vector<PartialBuffer> shards;
    for (std::size_t s = 0; s < budgets.size(); ++s) {
      GroupFixture part(*kernels, world.shape, {world.table[s]}, {world.rows[s]}, world.q,
                        whole.exact_lse);
      part.reference_level = whole.reference_level;
      part.propose({.segment_budgets = &budgets[s], .breadth = 16});
      part.rank({.segment_budgets = &budgets[s], .breadth = 16});
      shards.push_back(part.attend());
    }
    expect_equal(merge(*kernels, world.shape.d_v, {&shards[0], &shards[1], &shards[2]}), one_pass,
                 1e-6);
    // Contract §10: permuting the shards changes nothing beyond rounding.
    expect_equal(merge(*kernels, world.shape.d_v, {&shards[2], &shards[0], &shards[1]}), one_pass,
                 1e-6);
    // Merging in two steps is merging once.
    PartialBuffer left = merge(*kernels, world.shape.d_v, {&shards[0], &shards[1]});
    expect_equal(merge(*kernels, world.shape.d_v, {&left, &shards[2]}), one_pass, 1e-6);
  }
}

// Contract §10: merging any split of the shards is one pass over all.
TEST(AttendTail, MergeOfAnySplitIsOnePass) {
  expect_merge_is_one_pass(World(32, {1024, 256, 1024}, 64, 3), {30, 0, 34});
  // One shard by tiles, another by vectors, both together by tiles.
  expect_merge_is_one_pass(World(33, {1024, 256, 1024}, 128, 8), {200, 0, 34});
}

TEST(Merge, ShardsWithoutTermsAreIgnored) {
  PartialBuffer empty(1, 64);
  std::fill(empty.out.begin(), empty.out.end(), 0.0f);
  empty.lse = {-std::numeric_limits<float>::infinity()};
  empty.tail = empty.fault = empty.drift = {0.0f};
  PartialBuffer full(1, 64);
  std::fill(full.out.begin(), full.out.end(), 2.0f);
  full.lse = {3.0f};
  full.tail = {0.25f};
  full.fault = {0.125f};
  full.drift = {0.75f};
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    const PartialBuffer merged = merge(*kernels, 64, {&empty, &full, &empty});
    EXPECT_FLOAT_EQ(merged.out[5], 2.0f);
    EXPECT_FLOAT_EQ(merged.lse[0], 3.0f);
    EXPECT_FLOAT_EQ(merged.tail[0], 0.25f);
    EXPECT_FLOAT_EQ(merged.fault[0], 0.125f);
    EXPECT_FLOAT_EQ(merged.drift[0], 0.75f);
    const PartialBuffer nothing = merge(*kernels, 64, {&empty, &empty});
    EXPECT_EQ(nothing.lse[0], -std::numeric_limits<float>::infinity());
    EXPECT_EQ(nothing.out[0], 0.0f);
    EXPECT_EQ(nothing.fault[0], 0.0f);
    EXPECT_EQ(nothing.drift[0], 0.0f);
  }
}

// Contract §8: missing rows join the rest of their clusters; those rests are tail and fault.
TEST(AttendFault, MissingRowsJoinTheirClustersRest) {
  const World world(41, {1024}, 64, 3);
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group = world.group(*kernels);
    group.select({.budget = 64});
    const PartialBuffer before = group.attend();
    for (const float fault : before.fault) EXPECT_EQ(fault, 0.0f);
    std::vector<std::uint8_t> faulty(static_cast<std::size_t>(group.size.clusters), 0);
    const std::vector<TableRow> all = group.selected;
    group.selected.clear();
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % 4 != 0) {
        group.selected.push_back(all[i]);
        continue;
      }
      const LevelView& clusters = world.table[0].clusters;
      for (std::int32_t c = 0; c < clusters.count; ++c) {
        if (all[i].row >= clusters.first_row[c] &&
            all[i].row < clusters.first_row[c] + clusters.token_count[c]) {
          faulty[static_cast<std::size_t>(c)] = 1;
        }
      }
    }
    const PartialBuffer after = group.attend({}, faulty);
    for (std::size_t h = 0; h < after.fault.size(); ++h) {
      EXPECT_GT(after.fault[h], 0.0f);
      EXPECT_LE(after.fault[h], after.tail[h]);
      EXPECT_NEAR(after.lse[h], before.lse[h], 0.5f) << "codes estimate the missing rows";
    }
  }
}

// Contract §8 and §10: removing a segment's data changes only fault terms.
TEST(AttendFault, SilentSegmentIsReplacedByItsClustersOrLists) {
  const World world(42, {1024, 1024}, 64, 3);
  const std::vector<std::int32_t> budgets = {32, 0};
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group = world.group(*kernels);
    group.select({.segment_budgets = budgets.data(), .breadth = 16});
    const PartialBuffer asked = group.attend();
    for (const Accounting by : {Accounting::kClusters, Accounting::kLists}) {
      const PartialBuffer silent = group.attend({{}, {.by = by, .fault = true}});
      GroupFixture first(*kernels, world.shape, {world.table[0]}, {world.rows[0]}, world.q,
                         group.exact_lse);
      first.reference_level = group.reference_level;
      first.propose({.segment_budgets = budgets.data(), .breadth = 16});
      first.rank({.segment_budgets = budgets.data(), .breadth = 16});
      const PartialBuffer only_first = first.attend();
      for (std::size_t h = 0; h < silent.fault.size(); ++h) {
        // What is not fault is the first segment alone.
        const double mass = std::exp(static_cast<double>(only_first.lse[h])) /
                            std::exp(static_cast<double>(silent.lse[h]));
        EXPECT_NEAR(1 - mass, silent.fault[h], 1e-4);
        // A segment with B_s = 0 has no candidates: clusters' means stand for it either way.
        if (by == Accounting::kClusters) {
          EXPECT_NEAR(silent.lse[h], asked.lse[h], 1e-5);
        }
      }
    }
  }
}

// The reference and the SIMD kernel agree on every accounting and on faults.
TEST(AttendFault, SimdAgreesWithTheReference) {
  const World world(43, {1024, 256, 1024}, 128, 5);
  GroupFixture simd = world.group(cpu_kernels());
  simd.select({.budget = 64, .breadth = 16});
  std::erase_if(simd.selected, [](const TableRow& row) { return row.segment != 0; });
  std::vector<std::uint8_t> faulty(static_cast<std::size_t>(simd.size.clusters), 0);
  for (std::int32_t c = 0; c < world.table[0].clusters.count; c += 3) {
    faulty[static_cast<std::size_t>(c)] = simd.candidate[static_cast<std::size_t>(c)];
  }
  const std::vector<SegmentAccount> accounts = {
      {}, {.by = Accounting::kLists, .fault = true}, {.by = Accounting::kClusters, .fault = false}};
  const PartialBuffer ours = simd.attend(accounts, faulty);
  GroupFixture reference(reference_kernels(), world.shape, world.table, world.rows, world.q,
                         simd.exact_lse);
  reference.cluster_logit = simd.cluster_logit;
  reference.candidate = simd.candidate;
  reference.token_logit = simd.token_logit;
  reference.selected = simd.selected;
  expect_equal(ours, reference.attend(accounts, faulty), 1e-5);
}

}  // namespace
}  // namespace icefield
