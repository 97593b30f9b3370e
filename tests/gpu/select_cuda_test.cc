// Selection on the GPU (or its emulation) against the float64 reference, step by step over random
// shapes: what one step gives is handed to the reference of the next.
#include "kernels/select_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "tests/gpu/gpu_groups.h"
#include "tests/support/selection_checks.h"

namespace icefield {
namespace {

// Votes that differ from the cut by less than this may go either way (docs/formats/attention.md).
constexpr float kVoteTolerance = 1e-4f;

void expect_close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i], b[i], tolerance * (1 + std::abs(b[i]))) << "at " << i;
  }
}

std::int32_t candidate_tokens(const World& world, const std::vector<std::uint8_t>& candidate) {
  std::int32_t tokens = 0;
  std::size_t first = 0;
  for (const HeadIndex& segment : world.table) {
    for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
      if (candidate[first + static_cast<std::size_t>(c)] != 0) {
        tokens += segment.clusters.token_count[c];
      }
    }
    first += static_cast<std::size_t>(segment.clusters.count);
  }
  return tokens;
}

class Checked {
 public:
  Checked(GpuArena& arena, const GpuGroup& group)
      : arena_(arena),
        group_(group),
        world_(*group.world),
        size_(world_.size()),
        reference_(world_.reference()) {}

  void check() {
    check_lists();
    check_clusters();
    check_rows();
  }

 private:
  void check_lists() {
    const GpuSelectGroup& gpu = group_.select;
    reference_.score_lists();
    expect_close(arena_.get(gpu.list_logit, gpu.row_count * size_.lists), reference_.list_logit,
                 1e-5f);
    const std::vector<float> level = arena_.get(gpu.reference_level, gpu.row_count);
    expect_close(level, reference_.reference_level, 1e-5f);
    expect_close(arena_.get(gpu.segment_mass, gpu.segment_count), reference_.segment_mass, 1e-4f);
    reference_.reference_level = level;
  }

  void check_clusters() {
    const GpuSelectGroup& gpu = group_.select;
    reference_.propose(group_.options.rule);
    expect_close(arena_.get(gpu.cluster_logit, gpu.row_count * size_.clusters),
                 reference_.cluster_logit, 1e-5f);
    const std::vector<ClusterVote> votes = arena_.get(gpu.cluster_vote, size_.clusters);
    std::vector<float> vote;
    for (const ClusterVote& one : votes) vote.push_back(one.vote);
    expect_close(vote, reference_.cluster_vote, kVoteTolerance);
    const std::vector<std::uint8_t> candidate = arena_.get(gpu.candidate, size_.clusters);
    expect_same_candidates(selection_parts(world_.table, group_.options.rule), candidate,
                           reference_.candidate, reference_.cluster_vote, 2 * kVoteTolerance);
    reference_.candidate = candidate;
    reference_.cluster_logit = arena_.get(gpu.cluster_logit, gpu.row_count * size_.clusters);
  }

  void check_rows() {
    const GpuSelectGroup& gpu = group_.select;
    reference_.rank(group_.options.rule);
    const std::vector<float> logit = arena_.get(gpu.token_logit, gpu.row_count * size_.rows);
    for (std::size_t i = 0; i < logit.size(); ++i) {
      if (std::isnan(reference_.token_logit[i])) continue;  // not in C
      ASSERT_NEAR(logit[i], reference_.token_logit[i],
                  1e-5f * (1 + std::abs(reference_.token_logit[i])));
    }
    const std::int32_t count = arena_.get(gpu.selected_count, 1)[0];
    ASSERT_EQ(count, static_cast<std::int32_t>(reference_.selected.size()));
    expect_same_rows(world_.table, selection_parts(world_.table, group_.options.rule),
                     arena_.get(gpu.selected, count), reference_.selected, reference_.vote,
                     2 * kVoteTolerance);
  }

  GpuArena& arena_;
  const GpuGroup& group_;
  const World& world_;
  TableSize size_;
  GroupFixture reference_;
};

void check_layer(const std::vector<const World*>& worlds,
                 const std::vector<GroupOptions>& options) {
  GpuArena arena;
  GpuLayer layer(arena, worlds, options);
  // Twice: the second run finds the counters as the first left them.
  for (int run = 0; run < 2; ++run) {
    ASSERT_TRUE(layer.run(&GpuLayer::select).ok());
    for (std::size_t i = 0; i < worlds.size(); ++i) {
      SCOPED_TRACE("run " + std::to_string(run) + ", group " + std::to_string(i));
      Checked(arena, layer.group(i)).check();
    }
  }
}

TEST(SelectCuda, AgreesWithTheReferenceForAllHeadDimensions) {
  std::uint64_t seed = 1;
  for (const std::int32_t d : {64, 80, 96, 128, 256}) {
    SCOPED_TRACE(d);
    const World world(seed++, {1024}, d, 3);
    check_layer({&world}, {with_rule(64, 1)});
  }
}

TEST(SelectCuda, GroupsOfOneLaunchDoNotMix) {
  const World small(11, {256}, 64, 1);
  const World large(12, {1024, 256, 1024}, 64, 8);
  const World wide(13, {256, 1024}, 64, 13);
  check_layer({&small, &large, &wide}, {with_rule(17, 2), with_rule(100, 3), with_rule(300, 1)});
}

TEST(SelectCuda, BreadthAllRanksEveryToken) {
  const World world(14, {1024, 1024}, 64, 4);
  check_layer({&world}, {with_rule(256, kAllClusters)});
}

// From a level that most clusters' votes reach to one that none does.
TEST(SelectCuda, ClustersThatMayHoldStrongTokensAreCandidates) {
  World world(23, {1024, 1024}, 64, 3);
  std::set<std::int32_t> ranked;
  for (const float level : {-100.0f, 4.0f, 8.0f, 12.0f, 60.0f}) {
    SCOPED_TRACE(level);
    std::fill(world.exact_lse.begin(), world.exact_lse.end(), level);
    check_layer({&world}, {with_rule(64, 1)});
    GroupFixture group = world.reference();
    group.score_lists();
    group.propose({.budget = 64, .breadth = 1});
    ranked.insert(candidate_tokens(world, group.candidate));
  }
  EXPECT_GE(ranked.size(), 3u) << "the levels do not differ";
}

TEST(SelectCuda, NoMoreThan8192TokensAreCandidatesBecauseTheyReach) {
  const World world(24, {4096, 4096, 1024}, 64, 2);
  check_layer({&world}, {with_rule(64, 1)});
}

TEST(SelectCuda, SegmentsWithBudgetsOfTheirOwnSelectAlone) {
  const World world(15, {1024, 256, 1024}, 64, 2);
  const std::int32_t budgets[] = {64, 0, 200};
  check_layer({&world}, {{.rule = {.segment_budgets = budgets, .breadth = 1}}});
  check_layer({&world}, {{.rule = {.segment_budgets = budgets, .breadth = kAllClusters}}});
}

TEST(SelectCuda, BudgetsAtTheEdges) {
  const World world(16, {256, 256}, 64, 2);
  const std::int32_t indexed = world.size().indexed_rows;
  for (const std::int32_t budget : {0, 1, indexed - 1, indexed, indexed + 1}) {
    SCOPED_TRACE(budget);
    check_layer({&world}, {with_rule(budget, 1)});
  }
}

TEST(SelectCuda, AContextWithoutSegmentsHasTheLevelOfItsExactRows) {
  const World none(17, {}, 64, 2);
  const World some(18, {256}, 64, 2);
  check_layer({&none, &some}, {with_rule(0, 1), with_rule(8, 1)});
}

TEST(SelectCuda, AWindowThatCoversTheLastExtentHidesItsClusters) {
  World world(19, {256, 1024}, 64, 4);
  world.table[1] = without_last_extent(world.heads[1]->index);
  check_layer({&world}, {with_rule(64, 1)});
}

TEST(SelectCuda, RandomShapes) {
  SeededRng rng(50);
  for (const std::int32_t d : {64, 64, 80, 96, 112, 128, 128, 256}) {
    SCOPED_TRACE("head dimension " + std::to_string(d));
    const LayerCase layer = random_layer(rng, d);
    check_layer(layer.pointers(), layer.options);
  }
}

TEST(SelectCuda, ClustersOfOneTokenEqualKeysAndOutliers) {
  const LayerCase layer = strange_layer();
  check_layer(layer.pointers(), layer.options);
}

TEST(SelectCuda, EqualVotesGoToTheLowerRows) {
  // Queries of zeros: all rows have the same vote, whatever their codes.
  World world(20, {1024}, 64, 2);
  std::fill(world.q.begin(), world.q.end(), 0.0f);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {with_rule(100, kAllClusters)});
  ASSERT_TRUE(layer.run(&GpuLayer::select).ok());
  const std::vector<TableRow> selected = arena.get(layer.group(0).select.selected, 100);
  for (std::int32_t i = 0; i < 100; ++i) {
    EXPECT_EQ(selected[static_cast<std::size_t>(i)], (TableRow{0, kSinkTokens + i}));
  }
}

// Also where a query row is alone, whose votes are not e^x.
TEST(SelectCuda, QueriesThatAreNotFiniteSelectAsManyRows) {
  for (const std::int32_t query_rows : {1, 3}) {
    for (const float bad : {NAN, HUGE_VALF, -HUGE_VALF}) {
      SCOPED_TRACE(testing::Message() << query_rows << " query rows, " << bad);
      World world(21, {256}, 64, query_rows);
      world.q[5] = bad;
      GpuArena arena;
      GpuLayer layer(arena, {&world}, {with_rule(16, 1)});
      const GpuSelectGroup& gpu = layer.group(0).select;
      arena.write(gpu.selected_count, std::vector<std::int32_t>{1000});  // -1 is less than 16
      ASSERT_TRUE(layer.run(&GpuLayer::select).ok());
      ASSERT_EQ(arena.get(gpu.selected_count, 1)[0], 16);
      std::int32_t before = kSinkTokens - 1;
      for (const TableRow& at : arena.get(gpu.selected, 16)) {
        EXPECT_EQ(at.segment, 0);
        EXPECT_GT(at.row, before) << "ascending, none of the sink";
        EXPECT_LT(at.row, 256);
        before = at.row;
      }
    }
  }
}

TEST(SelectCuda, LimitsAreRefusedWithWords) {
  const World world(22, {256}, 64, 1);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {with_rule(8, 1)});
  GpuSelectArgs args = layer.select_args();
  args.capacity.row_count = kGpuMaxQueryRows + 1;
  EXPECT_EQ(propose_cuda(args, arena.stream()).code(), Code::kInvalidArgument);
  args = layer.select_args();
  args.capacity.rows = kGpuMaxTableRows + 1;
  EXPECT_EQ(rank_cuda(args, arena.stream()).code(), Code::kInvalidArgument);
  args = layer.select_args();
  args.shape.d_k = 72;
  EXPECT_EQ(score_lists_cuda(args, arena.stream()).code(), Code::kUnimplemented);
}

}  // namespace
}  // namespace icefield
