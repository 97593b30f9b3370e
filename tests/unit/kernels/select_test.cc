// Selection: the SIMD kernels against the float64 reference over random shapes, and the contract's
// rules at their edges.
#include "kernels/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"
#include "tests/support/selection_checks.h"

namespace icefield {
namespace {

// A context of a few segments, the first of which starts at position 0.
struct World {
  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::vector<HeadIndex> table;
  std::vector<const Bf16*> rows;
  HeadShape shape;
  std::vector<float> q;
  std::vector<float> exact_lse;

  World(std::uint64_t seed, std::vector<std::int32_t> lengths, std::int32_t d,
        std::int32_t group_rows) {
    SeededRng rng(seed);
    shape = {.d_k = d, .d_v = d, .beta = 1.0f / std::sqrt(static_cast<float>(d))};
    for (const std::int32_t length : lengths) {
      heads.push_back(HeadFixture::make(cpu_kernels(), random_rows(rng, length, d, d), d, d,
                                        heads.empty() ? kSinkTokens : 0));
      table.push_back(heads.back()->index);
      rows.push_back(heads.back()->stored_rows.data());
    }
    q = random_queries(rng, heads[rng.below(heads.size())]->rows, group_rows, d, d);
    for (std::int32_t h = 0; h < group_rows; ++h) exact_lse.push_back(3 + normal(rng));
  }
  GroupFixture group(const Kernels& kernels) const {
    return GroupFixture(kernels, shape, table, rows, q, exact_lse);
  }
  std::int32_t indexed() const {
    return table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows;
  }
};

// Votes that differ from the cut by less than this may go either way.
constexpr float kVoteTolerance = 1e-4f;

void expect_close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    ASSERT_NEAR(a[i], b[i], tolerance * (1 + std::abs(b[i]))) << "at " << i;
  }
}

struct SelectCase {
  std::uint64_t seed;
  std::vector<std::int32_t> lengths;
  std::int32_t d, group_rows, budget, breadth;
};

class Select : public testing::TestWithParam<SelectCase> {};

TEST_P(Select, SimdAgreesWithTheReferenceStepByStep) {
  const SelectCase& c = GetParam();
  const World world(c.seed, c.lengths, c.d, c.group_rows);
  GroupFixture simd = world.group(cpu_kernels());
  GroupFixture reference = world.group(reference_kernels());
  simd.score_lists();
  reference.score_lists();
  expect_close(simd.list_logit, reference.list_logit, 1e-5f);
  expect_close(simd.reference_level, reference.reference_level, 1e-5f);
  expect_close(simd.segment_mass, reference.segment_mass, 1e-4f);

  const SelectionRule rule{.budget = std::min(c.budget, world.indexed()), .breadth = c.breadth};
  reference.reference_level = simd.reference_level;
  simd.propose(rule);
  reference.propose(rule);
  expect_close(simd.cluster_logit, reference.cluster_logit, 1e-5f);
  expect_close(simd.cluster_vote, reference.cluster_vote, kVoteTolerance);
  const std::vector<SelectionPart> parts = selection_parts(world.table, rule);
  expect_same_candidates(parts, simd.candidate, reference.candidate, reference.cluster_vote,
                         kVoteTolerance);

  reference.cluster_logit = simd.cluster_logit;
  reference.candidate = simd.candidate;
  simd.rank(rule);
  reference.rank(rule);
  for (std::size_t i = 0; i < simd.vote.size(); ++i) {
    if (std::isnan(reference.vote[i])) simd.vote[i] = NAN;  // not in C: undefined
  }
  expect_close(simd.vote, reference.vote, kVoteTolerance);
  ASSERT_EQ(simd.selected.size(), static_cast<std::size_t>(rule.budget));
  ASSERT_EQ(reference.selected.size(), simd.selected.size());
  expect_same_rows(world.table, parts, simd.selected, reference.selected, reference.vote,
                   kVoteTolerance);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Select,
    testing::Values(SelectCase{1, {256}, 64, 1, 64, kAllClusters},
                    SelectCase{2, {1024, 256}, 64, 3, 64, 16},
                    SelectCase{3, {1024, 1024, 256}, 128, 4, 17, 16},
                    SelectCase{4, {4096}, 64, 3, 64, kAllClusters},
                    SelectCase{5, {4096, 1024}, 128, 8, 256, 4},
                    SelectCase{6, {1024}, 64, 48, 64, 16}, SelectCase{7, {256, 256}, 64, 5, 1, 16},
                    SelectCase{8, {1024}, 128, 7, 0, 16}, SelectCase{9, {4096, 256}, 64, 2, 64, 1},
                    SelectCase{10, {1024}, 80, 3, 64, 16}, SelectCase{11, {4096}, 96, 9, 64, 4},
                    SelectCase{12, {1024, 256}, 256, 8, 64, kAllClusters},
                    SelectCase{13, {4096, 1024}, 80, 6, 64, 27}),
    [](const auto& param) { return "seed" + std::to_string(param.param.seed); });

TEST(SelectRule, BudgetOfAllSelectsEveryIndexedRow) {
  const World world(11, {1024, 256}, 64, 3);
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group = world.group(*kernels);
    group.select({.budget = world.indexed()});
    EXPECT_EQ(group.selected.size(), static_cast<std::size_t>(world.indexed()));
  }
}

// More than there is counts as all there is, of the table and of each segment.
TEST(SelectRule, BudgetsFromNothingToFarBeyondAreDefined) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const std::int32_t query_rows : {1, 3}) {
    const World world(16, {1024, 256}, 64, query_rows);
    const std::int32_t n = world.indexed();
    for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
      GroupFixture all = world.group(*kernels);
      all.select({.budget = n});
      for (const std::int32_t breadth : {kAllClusters, 1, 16}) {
        for (const std::int32_t budget : {0, 1, n - 1, n, n + 1, 2 * n + 77, kMost}) {
          SCOPED_TRACE(testing::Message() << "budget " << budget << " breadth " << breadth);
          GroupFixture group = world.group(*kernels);
          group.select({.budget = budget, .breadth = breadth});
          EXPECT_EQ(group.selected.size(), static_cast<std::size_t>(std::min(budget, n)));
          if (budget >= n) {
            EXPECT_EQ(group.selected, all.selected);
          }
        }
      }
      const std::int32_t budgets[] = {1, kMost};
      GroupFixture group = world.group(*kernels);
      group.select({.segment_budgets = budgets, .breadth = 1});
      EXPECT_EQ(group.selected.size(), 1u + 256);
    }
  }
}

TEST(SelectRule, EqualVotesTakeTheLowerRows) {
  // All keys equal: every token has the same code, so the same vote.
  const std::vector<Bf16> rows(256 * 128, float_to_bf16(0.25f));
  const auto head = HeadFixture::make(cpu_kernels(), rows, 64, 64, kSinkTokens);
  const HeadShape shape{.d_k = 64, .d_v = 64, .beta = 0.125f};
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group(*kernels, shape, {head->index}, {head->stored_rows.data()},
                       std::vector<float>(64, 0.0f), {0.0f});
    group.select({.budget = 20});
    ASSERT_EQ(group.selected.size(), 20u);
    for (std::int32_t i = 0; i < 20; ++i) {
      EXPECT_EQ(group.selected[static_cast<std::size_t>(i)], (TableRow{0, kSinkTokens + i}));
    }
  }
}

// From a level that every cluster's vote reaches to one that none does: C holds as many tokens as
// reach it, up to 8 192, at least M·B, and no cluster more than that takes.
TEST(SelectRule, CandidatesAreTheShortestPrefixThatHoldsWhatReaches) {
  const World world(12, {4096, 4096, 1024}, 64, 3);
  std::vector<std::int32_t> rows;
  for (const HeadIndex& segment : world.table) {
    rows.insert(rows.end(), segment.clusters.token_count,
                segment.clusters.token_count + segment.clusters.count);
  }
  const std::int32_t least = 600;
  bool none = false;
  bool some = false;
  bool most = false;
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    GroupFixture group = world.group(*kernels);
    group.score_lists();
    for (float level = -60; level < 60; level += 2) {
      std::fill(group.reference_level.begin(), group.reference_level.end(), level);
      group.propose({.budget = 100, .breadth = least / 100});
      std::int32_t reaching = 0;
      std::int32_t taken = 0;
      float last = std::numeric_limits<float>::infinity();
      std::int32_t last_rows = 0;
      for (std::size_t c = 0; c < rows.size(); ++c) {
        if (group.cluster_vote[c] >= kReachingVote) reaching += rows[c];
        if (group.candidate[c] == 0) continue;
        taken += rows[c];
        if (group.cluster_vote[c] <= last) last_rows = rows[c];
        last = std::min(last, group.cluster_vote[c]);
      }
      const std::int32_t wanted = std::clamp(reaching, least, kMostReachingRows);
      EXPECT_GE(taken, wanted) << "level " << level;
      EXPECT_LT(taken - last_rows, wanted) << "level " << level;
      none |= reaching < least;
      some |= reaching > least && reaching < kMostReachingRows;
      most |= reaching > kMostReachingRows;
    }
  }
  EXPECT_TRUE(none && some && most) << "the levels do not cover what they should";
}

TEST(SelectRule, RuleRanksEveryCodeOfAShortContextAndThenWhatTheBudgetIsWorth) {
  EXPECT_EQ(breadth_of(kRuleBreadth, 64), 128);
  EXPECT_EQ(breadth_of(kRuleBreadth, 100), 82) << "rounded up";
  EXPECT_EQ(breadth_of(kRuleBreadth, 1), 8192);
  EXPECT_EQ(breadth_of(kRuleBreadth, 256), 32);
  EXPECT_EQ(breadth_of(kRuleBreadth, 5000), 32);
  EXPECT_EQ(breadth_of(kRuleBreadth, 0), 32);
  EXPECT_EQ(breadth_of(16, 64), 16);
  EXPECT_EQ(breadth_of(kAllClusters, 64), kAllClusters);
  EXPECT_EQ(candidate_rows(breadth_of(kRuleBreadth, 64), 64, 8192, 0), 8192);
  EXPECT_EQ(candidate_rows(breadth_of(kRuleBreadth, 64), 64, 131072, 0), 8192);
  EXPECT_EQ(candidate_rows(breadth_of(kRuleBreadth, 2000), 2000, 131072, 0), 64000);
}

TEST(SelectRule, CandidatesAreWhatReachesWithinWhatTheBreadthAllows) {
  EXPECT_EQ(candidate_rows(kAllClusters, 1, 500000, 0), 500000);
  EXPECT_EQ(candidate_rows(16, 100, 6896, 0), 1600);
  EXPECT_EQ(candidate_rows(16, 100, 6896, 1600), 1600);
  EXPECT_EQ(candidate_rows(16, 100, 6896, 3000), 3000);
  EXPECT_EQ(candidate_rows(16, 100, 20000, 15000), 8192);
  EXPECT_EQ(candidate_rows(160, 100, 20000, 15000), 16000);
  EXPECT_EQ(candidate_rows(1, 1, 20000, 0), 512);
  EXPECT_EQ(candidate_rows(1, 1, 20000, 20000), 8192);
  EXPECT_EQ(candidate_rows(1, 1, 500, 0), 500);
  EXPECT_EQ(candidate_rows(1 << 30, 1 << 20, 6896, 0), 6896);
}

TEST(SelectRule, SmallBudgetsStillRankAtLeast512Rows) {
  World world(13, {4096}, 64, 3);
  std::fill(world.exact_lse.begin(), world.exact_lse.end(), 80.0f);  // no cluster reaches
  GroupFixture group = world.group(cpu_kernels());
  group.score_lists();
  group.propose({.budget = 8, .breadth = 16});
  std::int32_t rows = 0;
  for (std::int32_t c = 0; c < world.table[0].clusters.count; ++c) {
    rows += group.candidate[static_cast<std::size_t>(c)] * world.table[0].clusters.token_count[c];
  }
  EXPECT_GE(rows, kMinCandidateRows);
  EXPECT_LT(rows, kMinCandidateRows + kMaxClusterTokens);
}

// A window that covers the last extent: its rows are in E and must not be selected.
TEST(SelectRule, RowsInEAreNeverSelected) {
  const World world(14, {1024}, 64, 3);
  HeadIndex shorter = without_last_extent(world.heads[0]->index);
  EXPECT_EQ(shorter.indexed_rows(), 1024 - kSinkTokens - kExtentRows);
  GroupFixture group(cpu_kernels(), world.shape, {shorter}, world.rows, world.q, world.exact_lse);
  group.select({.budget = shorter.indexed_rows()});
  ASSERT_EQ(group.selected.size(), static_cast<std::size_t>(shorter.indexed_rows()));
  for (const TableRow& row : group.selected) {
    EXPECT_GE(row.row, kSinkTokens);
    EXPECT_LT(row.row, 1024 - kExtentRows);
  }
}

// A node selects for one segment what a worker selects for it with the same B_s (contract §4, §10).
TEST(SelectRule, SegmentsSelectAloneAsTheyDoTogether) {
  const World world(15, {1024, 1024, 256}, 64, 3);
  const std::vector<std::int32_t> budgets = {40, 7, 17};
  GroupFixture together = world.group(cpu_kernels());
  together.select({.segment_budgets = budgets.data(), .breadth = 16});
  std::vector<TableRow> separate;
  for (std::size_t s = 0; s < budgets.size(); ++s) {
    GroupFixture alone(cpu_kernels(), world.shape, {world.table[s]}, {world.rows[s]}, world.q,
                       world.exact_lse);
    alone.reference_level = together.reference_level;  // it travels with the request
    alone.propose({.segment_budgets = &budgets[s], .breadth = 16});
    alone.rank({.segment_budgets = &budgets[s], .breadth = 16});
    for (const TableRow& row : alone.selected) {
      separate.push_back({static_cast<std::int32_t>(s), row.row});
    }
  }
  EXPECT_EQ(together.selected, separate);
}

TEST(SplitBudget, FollowsMassAndNeverExceedsASegment) {
  const std::vector<float> mass = {3, 1, 0, 4};
  const std::vector<std::int32_t> rows = {100, 100, 100, 5};
  std::vector<std::int32_t> budgets(4, -1);
  split_budget(16, 4, mass.data(), rows.data(), budgets.data());
  EXPECT_EQ(budgets, (std::vector<std::int32_t>{8, 3, 0, 5}));
  EXPECT_EQ(std::accumulate(budgets.begin(), budgets.end(), 0), 16);
}

TEST(SplitBudget, WithoutMassFollowsRowsAndTiesGoToTheOlder) {
  const std::vector<float> mass(3, 0.0f);
  const std::vector<std::int32_t> rows = {256, 256, 256};
  std::vector<std::int32_t> budgets(3, -1);
  split_budget(64, 3, mass.data(), rows.data(), budgets.data());
  EXPECT_EQ(budgets, (std::vector<std::int32_t>{22, 21, 21}));
}

TEST(SplitBudget, AskingForMoreThanThereIsGivesEverything) {
  const std::vector<float> mass = {1, 0};
  const std::vector<std::int32_t> rows = {10, 20};
  std::vector<std::int32_t> budgets(2, -1);
  split_budget(1000, 2, mass.data(), rows.data(), budgets.data());
  EXPECT_EQ(budgets, rows);
}

TEST(CallBudget, SharingTokensRaisesItAtMostFourfold) {
  EXPECT_EQ(call_budget(64, 1, 7000), 64);
  EXPECT_EQ(call_budget(64, 3, 7000), 192);
  EXPECT_EQ(call_budget(64, 16, 7000), 256);
  EXPECT_EQ(call_budget(64, 16, 100), 100);
}

}  // namespace
}  // namespace icefield
