// The methods that benchmarks compare do what they claim, each against brute force.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "bench/baselines/exact_scan.h"
#include "bench/baselines/flat_clusters.h"
#include "bench/baselines/k_means.h"
#include "bench/baselines/pages.h"
#include "bench/support/full_attention.h"
#include "bench/support/index_trial.h"
#include "bench/support/synthetic_keys.h"

namespace icefield {
namespace {

constexpr std::int32_t kDim = 64;

KeySet keys(std::int32_t group, SyntheticKind kind = SyntheticKind::kPeaked) {
  return synthetic_keys(
      {.kind = kind, .tokens = 1024, .head_dim = kDim, .group = group, .steps = 3});
}

// With sink and window.
KeySet with_exact_rows(KeySet set) {
  set.first_indexed = kSinkTokens;
  set.end_indexed = 768;
  return set;
}

std::vector<float> no_exact_rows(const KeySet& set) {
  return std::vector<float>(static_cast<std::size_t>(set.group), -HUGE_VALF);
}

float logit(const KeySet& set, const float* q, std::int32_t token) {
  double sum = 0;
  for (std::int32_t j = 0; j < set.d_k; ++j) {
    sum += static_cast<double>(q[j]) * static_cast<double>(bf16_to_float(set.row(token)[j]));
  }
  return static_cast<float>(sum) * set.beta;
}

std::vector<std::int32_t> sorted(std::vector<std::int32_t> values) {
  std::sort(values.begin(), values.end());
  return values;
}

// The best `count` indices by score.
std::vector<std::int32_t> best_of(const std::vector<float>& scores, std::int32_t count) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count));
  return sorted(order);
}

TEST(ExactScan, TakesTheTokensWithTheLargestLogits) {
  const KeySet set = with_exact_rows(keys(1));
  ClusteredMethod ours(cpu_kernels(), set, kAllClusters);
  ours.build();
  ExactScan scan(cpu_kernels(), set, ours.index(), {.tail = false});
  scan.build();
  const std::vector<float> lse = no_exact_rows(set);
  for (std::int32_t step = 0; step < set.steps(); ++step) {
    scan.select({.q = set.query(step), .exact_lse = lse.data(), .budget = 40});
    std::vector<float> logits;
    for (std::int32_t t = set.first_indexed; t < set.end_indexed; ++t) {
      logits.push_back(logit(set, set.query(step), t));
    }
    std::vector<std::int32_t> wanted = best_of(logits, 40);
    for (std::int32_t& token : wanted) token += set.first_indexed;
    EXPECT_EQ(sorted(scan.selected()), wanted);
  }
}

TEST(ExactScan, OfAGroupIsTheTopOfFullAttention) {
  const KeySet set = with_exact_rows(keys(8));
  ClusteredMethod ours(cpu_kernels(), set, kAllClusters);
  ours.build();
  ExactScan scan(cpu_kernels(), set, ours.index(), {});
  scan.build();
  FullAttention truth(cpu_kernels(), set);
  for (std::int32_t step = 0; step < set.steps(); ++step) {
    truth.step(step);
    scan.select({.q = set.query(step),
                 .exact_lse = truth.exact().lse.data(),
                 .budget = static_cast<std::int32_t>(kTopTokens)});
    EXPECT_EQ(sorted(scan.selected()), sorted(truth.top()));
  }
}

// What every method gives when its budget is everything.
double error_with_everything(const TrialMethod& method, const KeySet& set) {
  TrialTable table;
  run_trial(cpu_kernels(), set, {method},
            {.budgets = {set.indexed()}, .build_rounds = 1, .repeats = 1}, table);
  EXPECT_EQ(table[0][0].recall(), 1) << method.name;
  EXPECT_EQ(table[0][0].strong_missed, 0) << method.name;
  EXPECT_NEAR(table[0][0].mass / static_cast<double>(table[0][0].steps), 1, 1e-5) << method.name;
  return *std::max_element(table[0][0].output_error.begin(), table[0][0].output_error.end());
}

TEST(Methods, AreFullAttentionWhenTheBudgetIsEverything) {
  for (const KeySet& set : {keys(8), with_exact_rows(keys(3))}) {
    for (const TrialMethod& method : all_trial_methods(cpu_kernels(), {kAllClusters, 16})) {
      // IceCache's rule visits some of the lists only.
      if (method.name == "pages_icecache") continue;
      EXPECT_LT(error_with_everything(method, set), 1e-5) << method.name;
    }
  }
}

TEST(Methods, OursCountsTheTokensThatCodesRank) {
  const KeySet set = keys(2);
  const std::vector<float> lse(2, 80.0f);  // what no cluster reaches
  for (const std::int32_t breadth : {16, kAllClusters}) {
    ClusteredMethod ours(cpu_kernels(), set, breadth);
    ours.build();
    ours.select({.q = set.query(0), .exact_lse = lse.data(), .budget = 40});
    const std::int64_t ranked = ours.cost().rows_ranked;
    const std::int64_t wanted = breadth == kAllClusters ? set.indexed() : 640;
    EXPECT_GE(ranked, wanted);
    EXPECT_LT(ranked, wanted + kMaxClusterTokens);
  }
}

TEST(Methods, GiveTheSameWhenBuiltAgain) {
  const KeySet set = keys(2);
  const std::vector<float> lse = no_exact_rows(set);
  const MethodQuery query{.q = set.query(0), .exact_lse = lse.data(), .budget = 64};
  ClusteredMethod ours(cpu_kernels(), set, 16);
  ours.build();
  for (const TrialMethod& method : all_trial_methods(cpu_kernels(), {16})) {
    const std::unique_ptr<Method> made = method.make(set, ours.index());
    made->build();
    made->select(query);
    const std::vector<std::int32_t> once = made->selected();
    made->build();
    made->select(query);
    EXPECT_EQ(made->selected(), once) << method.name;
    EXPECT_EQ(std::set<std::int32_t>(once.begin(), once.end()).size(), once.size());
    EXPECT_GT(made->cost().pages, 0) << method.name;
    EXPECT_GT(made->cost().index_bytes_read, 0) << method.name;
    EXPECT_GT(made->index_bytes(), 0) << method.name;
  }
}

// A page's place in `pages` among the best by a score of its tokens' keys, in float.
TEST(PositionalPages, RankByTheirRule) {
  const KeySet set = with_exact_rows(keys(1));
  const std::vector<float> lse = no_exact_rows(set);
  for (const auto rule : {PositionalPages::Rule::kMean, PositionalPages::Rule::kBound}) {
    PositionalPages method(cpu_kernels(), set, rule);
    method.build();
    method.select({.q = set.query(0), .exact_lse = lse.data(), .budget = 16});
    std::vector<float> scores;
    for (std::int32_t first = set.first_indexed; first < set.end_indexed; first += kPageTokens) {
      float score = 0;
      for (std::int32_t j = 0; j < set.d_k; ++j) {
        float sum = 0, largest = -HUGE_VALF;
        for (std::int32_t i = first; i < first + kPageTokens; ++i) {
          const float product = set.query(0)[j] * bf16_to_float(set.row(i)[j]);
          sum += product / kPageTokens;
          largest = std::max(largest, product);
        }
        score += set.beta * (rule == PositionalPages::Rule::kMean ? sum : largest);
      }
      scores.push_back(score);
    }
    const std::vector<std::int32_t> selected = sorted(method.selected());
    ASSERT_EQ(selected.size(), static_cast<std::size_t>(kPageTokens));
    const std::int32_t page = (selected[0] - set.first_indexed) / kPageTokens;
    EXPECT_EQ(selected[0], set.first_indexed + page * kPageTokens);
    // int8 may exchange pages that are nearly alike.
    const float best = *std::max_element(scores.begin(), scores.end());
    EXPECT_GT(scores[static_cast<std::size_t>(page)], best - 0.2f);
  }
}

TEST(PrincipalPages, HoldEveryTokenOnceInPagesThatAreFilledEvenly) {
  const KeySet set = with_exact_rows(keys(1));
  PrincipalPages method(cpu_kernels(), set);
  method.build();
  std::int32_t next = 0;
  for (const Page& page : method.pages()) {
    EXPECT_EQ(page.first, next);
    EXPECT_GE(page.count, 1);
    EXPECT_LE(page.count, kPageTokens);
    next += page.count;
  }
  EXPECT_EQ(next, set.indexed());
}

TEST(PrincipalPages, FetchThePageOfTheBestToken) {
  const KeySet set = keys(1);
  const std::vector<float> lse = no_exact_rows(set);
  PrincipalPages method(cpu_kernels(), set);
  method.build();
  for (std::int32_t step = 0; step < set.steps(); ++step) {
    method.select({.q = set.query(step), .exact_lse = lse.data(), .budget = 16});
    std::vector<float> logits;
    for (std::int32_t t = 0; t < set.tokens(); ++t) {
      logits.push_back(logit(set, set.query(step), t));
    }
    const std::vector<std::int32_t> selected = method.selected();
    EXPECT_EQ(std::count(selected.begin(), selected.end(), best_of(logits, 1)[0]), 1);
    EXPECT_EQ(method.cost().pages, 1);
  }
}

TEST(FlatClusters, AreExactWhereEveryTokenOfAClusterIsAlike) {
  KeySet set = keys(4);
  // Eight different rows, 128 tokens each: clusters hold tokens of one kind.
  for (std::int32_t t = 0; t < set.tokens(); ++t) {
    std::copy_n(set.row(t / 128 * 128), set.width(), set.rows.begin() + t * set.width());
  }
  TrialTable table;
  const std::vector<TrialMethod> methods = all_trial_methods(cpu_kernels(), {16});
  run_trial(cpu_kernels(), set, {methods.back()},
            {.budgets = {128}, .build_rounds = 1, .repeats = 1}, table);
  ASSERT_EQ(methods.back().name, "flat_retroinfer");
  for (const double error : table[0][0].output_error) EXPECT_LT(error, 0.03);  // int8 means
}

TEST(FlatClusters, HoldEveryTokenOnceAndTakeWholeClusters) {
  const KeySet set = with_exact_rows(keys(2));
  const std::vector<float> lse = no_exact_rows(set);
  FlatClusters method(cpu_kernels(), set);
  method.build();
  EXPECT_EQ(std::set<std::int32_t>(method.order().begin(), method.order().end()).size(),
            static_cast<std::size_t>(set.indexed()));
  method.select({.q = set.query(0), .exact_lse = lse.data(), .budget = 64});
  const std::vector<std::int32_t> selected = method.selected();
  const std::set<std::int32_t> chosen(selected.begin(), selected.end());
  EXPECT_GE(chosen.size(), 64u);
  for (const Page& cluster : method.clusters()) {
    std::int32_t inside = 0;
    for (std::int32_t r = cluster.first; r < cluster.first + cluster.count; ++r) {
      inside += chosen.contains(method.order()[static_cast<std::size_t>(r)]);
    }
    EXPECT_TRUE(inside == 0 || inside == cluster.count);
  }
}

TEST(KMeans, FindsWhatIsApart) {
  constexpr std::int32_t kGroups = 6, kCount = 300, kDims = 32;
  SeededRng rng(9);
  std::vector<float> centres;
  for (std::int32_t i = 0; i < kGroups * kDims; ++i) centres.push_back(10 * normal(rng));
  std::vector<float> points;
  std::vector<std::int32_t> group;
  for (std::int32_t i = 0; i < kCount; ++i) {
    group.push_back(i * kGroups / kCount);
    for (std::int32_t j = 0; j < kDims; ++j) {
      const auto from = static_cast<std::size_t>(group.back() * kDims + j);
      points.push_back(centres[from] + normal(rng));
    }
  }
  for (const bool spherical : {false, true}) {
    EXPECT_EQ(k_means(points.data(), kCount, kDims, {.clusters = kGroups, .spherical = spherical}),
              group);
  }
  // More clusters than there are kinds of points: the others are empty.
  const std::vector<float> alike(64 * kDims, 1.0f);
  EXPECT_EQ(members_of(k_means(alike.data(), 64, kDims, {.clusters = 4}), 4).size(), 1u);
}

}  // namespace
}  // namespace icefield
