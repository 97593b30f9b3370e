// Attention, merge and gather on the GPU (or its emulation) against the float64 reference, and
// recorded graphs.
#include "kernels/attend_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/gpu/gpu_groups.h"

namespace icefield {
namespace {

// What the issue asks for is 1e-2; queries and weights in two bf16 halves give far more.
constexpr float kTolerance = 1e-3f;

void expect_same(const PartialBuffer& gpu, const PartialBuffer& reference) {
  ASSERT_EQ(gpu.out.size(), reference.out.size());
  float largest = 1e-3f;
  for (const float x : reference.out) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < gpu.out.size(); ++i) {
    ASSERT_NEAR(gpu.out[i], reference.out[i], kTolerance * largest) << "out " << i;
  }
  for (std::size_t h = 0; h < gpu.lse.size(); ++h) {
    if (reference.lse[h] == -HUGE_VALF) {
      ASSERT_EQ(gpu.lse[h], -HUGE_VALF);
    } else {
      ASSERT_NEAR(gpu.lse[h], reference.lse[h], 1e-4f * (1 + std::abs(reference.lse[h])));
    }
    ASSERT_NEAR(gpu.tail[h], reference.tail[h], 1e-4f);
    ASSERT_NEAR(gpu.fault[h], reference.fault[h], 1e-4f);
    ASSERT_NEAR(gpu.drift[h], reference.drift[h], 1e-4f * (1 + std::abs(reference.drift[h])));
  }
}

// The reference for what a group was given on the GPU: its logits, candidates and found rows.
PartialBuffer reference_of(GpuArena& arena, const GpuGroup& group) {
  const World& world = *group.world;
  const TableSize size = world.size();
  const std::int64_t g = world.query_rows();
  const std::int32_t found = arena.get(group.find.found_count, 1)[0];
  const std::vector<TableRow> selected = arena.get(group.find.found, found);
  std::vector<RowRun> runs;
  for (const TableRow& at : selected) {
    const Bf16* row = world.rows[static_cast<std::size_t>(at.segment)] +
                      static_cast<std::int64_t>(at.row) * (world.shape.d_k + world.shape.d_v);
    runs.push_back({.rows = row, .mask = 1});
  }
  const std::vector<float> cluster_logit = arena.get(group.select.cluster_logit, g * size.clusters);
  const std::vector<std::uint8_t> candidate = arena.get(group.select.candidate, size.clusters);
  const std::vector<float> token_logit = arena.get(group.select.token_logit, g * size.rows);
  const std::vector<std::uint8_t> faulty = arena.get(group.find.faulty, size.clusters);
  PartialBuffer result(world.query_rows(), world.shape.d_v);
  const std::vector<SegmentAccount>& accounts = group.options.accounts;
  const AttendGroup reference{.row_count = world.query_rows(),
                              .q = world.q.data(),
                              .run_count = found,
                              .runs = runs.data(),
                              .segment_count = world.segments(),
                              .segments = world.table.data(),
                              .accounts = accounts.empty() ? nullptr : accounts.data(),
                              .cluster_logit = cluster_logit.data(),
                              .candidate = candidate.data(),
                              .token_logit = token_logit.data(),
                              .selected_count = found,
                              .selected = selected.data(),
                              .faulty = faulty.data(),
                              .result = result.view()};
  attend_reference({.shape = world.shape, .group_count = 1, .groups = &reference});
  return result;
}

void check_step(const std::vector<const World*>& worlds, const std::vector<GroupOptions>& options) {
  GpuArena arena;
  GpuLayer layer(arena, worlds, options);
  ASSERT_TRUE(layer.run(&GpuLayer::step).ok());
  for (std::size_t i = 0; i < worlds.size(); ++i) {
    SCOPED_TRACE("group " + std::to_string(i));
    expect_same(layer.result(i), reference_of(arena, layer.group(i)));
  }
}

TEST(AttendCuda, SelectedRowsAndTailAgreeWithTheReferenceForAllHeadDimensions) {
  std::uint64_t seed = 1;
  for (const std::int32_t d : {64, 80, 96, 128, 256}) {
    SCOPED_TRACE(d);
    const World world(seed++, {256, 1024}, d, 3);
    check_step({&world}, {with_rule(70, 1)});
  }
}

TEST(AttendCuda, GroupsOfOneLaunchDoNotMix) {
  const World small(11, {256}, 64, 1);
  const World large(12, {1024, 256}, 64, 8);
  const World wide(13, {256, 1024}, 64, 21);  // more query rows than a block handles
  check_step({&small, &large, &wide}, {with_rule(5, 2), with_rule(100, 3), with_rule(33, 1)});
}

TEST(AttendCuda, RandomShapes) {
  constexpr std::int32_t kHeadDims[] = {64, 80, 96, 128, 256};
  SeededRng rng(60);
  for (std::size_t i = 0; i < std::size(kHeadDims); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    LayerCase layer = random_layer(rng, kHeadDims[i]);
    const std::int32_t page_rows = 1 << rng.below(5);
    for (GroupOptions& option : layer.options) {
      option.page_rows = page_rows;
      for (std::int32_t page = 0; page < 40; ++page) {
        if (rng.below(4) == 0) option.missing_pages.push_back(page);
      }
    }
    check_step(layer.pointers(), layer.options);
  }
}

TEST(AttendCuda, ClustersOfOneTokenEqualKeysAndOutliers) {
  const LayerCase layer = strange_layer();
  check_step(layer.pointers(), layer.options);
}

TEST(AttendCuda, NothingSelectedIsAllTailAndDrifts) {
  const World world(14, {256, 256}, 64, 2);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {with_rule(0, 1)});
  ASSERT_TRUE(layer.run(&GpuLayer::step).ok());
  expect_same(layer.result(0), reference_of(arena, layer.group(0)));
  for (const float drift : layer.result(0).drift) EXPECT_GT(drift, 0);
}

TEST(AttendCuda, EverythingSelectedHasNoTail) {
  const World world(15, {256, 256}, 64, 2);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {with_rule(world.size().indexed_rows, kAllClusters)});
  ASSERT_TRUE(layer.run(&GpuLayer::step).ok());
  expect_same(layer.result(0), reference_of(arena, layer.group(0)));
  for (const float tail : layer.result(0).tail) EXPECT_EQ(tail, 0);
  for (const float drift : layer.result(0).drift) EXPECT_EQ(drift, 0);
}

TEST(AttendCuda, NoTermsAtAllGiveNothing) {
  const World none(16, {}, 64, 2);
  const World some(17, {256}, 64, 2);
  GpuArena arena;
  GpuLayer layer(arena, {&none, &some}, {with_rule(0, 1), with_rule(8, 1)});
  ASSERT_TRUE(layer.run(&GpuLayer::step).ok());
  const PartialBuffer result = layer.result(0);
  for (const float x : result.out) EXPECT_EQ(x, 0);
  for (const float lse : result.lse) EXPECT_EQ(lse, -HUGE_VALF);
  for (const float tail : result.tail) EXPECT_EQ(tail, 0);
  for (const float drift : result.drift) EXPECT_EQ(drift, 0);
  expect_same(layer.result(1), reference_of(arena, layer.group(1)));
}

TEST(AttendCuda, RowsThatAreNotInThePoolJoinTheTailAsFaults) {
  const World world(18, {256, 1024}, 64, 3);
  GroupOptions options = with_rule(128, 2);
  options.page_rows = 4;
  for (std::int32_t page = 0; page < 320; page += 3) options.missing_pages.push_back(page);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {options});
  ASSERT_TRUE(layer.run(&GpuLayer::step).ok());
  const FindRowsGroup& find = layer.group(0).find;
  const std::int32_t found = arena.get(find.found_count, 1)[0];
  const std::int32_t missing = arena.get(find.missing_count, 1)[0];
  EXPECT_GT(missing, 0);
  EXPECT_EQ(found + missing, 128);
  for (const TableRow& at : arena.get(find.missing, missing)) {
    EXPECT_EQ((at.segment * 256 + at.row) / 4 % 3, 0);
  }
  expect_same(layer.result(0), reference_of(arena, layer.group(0)));
  EXPECT_GT(layer.result(0).fault[0], 0);
}

TEST(AttendCuda, SilentSegmentsAreAccountedForByMeans) {
  const World world(19, {1024, 256, 256}, 64, 3);
  const std::int32_t budgets[] = {60, 0, 0};
  GroupOptions options{.rule = {.segment_budgets = budgets, .breadth = 1}};
  options.accounts = {{.by = Accounting::kTokens, .fault = false},
                      {.by = Accounting::kClusters, .fault = true},
                      {.by = Accounting::kLists, .fault = true}};
  check_step({&world}, {options});
}

// ---- exact rows alone

struct ExactCase {
  std::int32_t d, query_rows, rows;
  bool hides;
};

void check_exact(const ExactCase& c) {
  SeededRng rng(static_cast<std::uint64_t>(c.rows + c.d));
  const std::vector<Bf16> rows = random_rows(rng, std::max(c.rows, 1), c.d, c.d);
  const std::vector<float> q = random_queries(rng, rows, c.query_rows, c.d, c.d);
  const HeadShape shape{.d_k = c.d, .d_v = c.d, .beta = 0.1f};
  std::vector<std::int32_t> hidden;
  for (std::int32_t h = 0; c.hides && h < c.query_rows; ++h) {
    hidden.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(c.rows) + 1)));
  }
  GpuArena arena;
  const Bf16* on_gpu = arena.put(rows);
  std::vector<const Bf16*> pointers;
  for (std::int32_t i = 0; i < c.rows; ++i) {
    pointers.push_back(on_gpu + static_cast<std::int64_t>(i) * 2 * c.d);
  }
  GpuAttendArgs args{
      .shape = shape,
      .capacity = {.row_count = c.query_rows, .exact_rows = c.rows + 100},  // more than there are
      .processors = 4,
      .group_count = 1};
  const GpuAttendGroup group{.row_count = c.query_rows,
                             .q = arena.put(q),
                             .exact_count = arena.put(std::vector<std::int32_t>{c.rows}),
                             .rows = arena.put(pointers),
                             .hidden = hidden.empty() ? nullptr : arena.put(hidden),
                             .partial = arena.make<float>(gpu_partial_floats(args)),
                             .result = make_partial(arena, c.query_rows, c.d)};
  args.groups = arena.put(std::vector<GpuAttendGroup>{group});
  ASSERT_TRUE(attend_cuda(args, arena.stream()).ok());
  const PartialBuffer result = read_partial(arena, group.result, c.query_rows, c.d);
  expect_same(result, attend_rows(reference_kernels(), shape, q, rows.data(), c.rows, hidden));
}

TEST(AttendCuda, ExactRowsAgreeWithTheReferenceOverRandomShapes) {
  for (const ExactCase& c : {ExactCase{64, 1, 1, false},
                             {64, 8, 15, false},
                             {64, 16, 16, true},
                             {64, 17, 17, true},
                             {128, 4, 333, false},
                             {80, 5, 100, true},
                             {96, 3, 129, false},
                             {256, 2, 70, true},
                             {128, 1, 0, false}}) {
    SCOPED_TRACE(testing::Message() << c.d << " " << c.query_rows << " " << c.rows);
    check_exact(c);
  }
}

TEST(AttendCuda, HeadDimensionsWithoutAKernelAreRefused) {
  const GpuAttendArgs args{.shape = {.d_k = 48, .d_v = 48}, .capacity = {.exact_rows = 1}};
  EXPECT_EQ(attend_cuda(args, nullptr).code(), Code::kUnimplemented);
  const GpuAttendArgs mixed{.shape = {.d_k = 128, .d_v = 64}, .capacity = {.exact_rows = 1}};
  EXPECT_EQ(attend_cuda(mixed, nullptr).code(), Code::kUnimplemented);
}

// ---- merge, gather

TEST(MergeCuda, AgreesWithTheReferenceAlsoForEmptyParts) {
  constexpr std::int32_t kRows = 5, kDim = 80, kParts = 3;
  SeededRng rng(3);
  std::vector<PartialBuffer> parts(kParts, PartialBuffer(kRows, kDim));
  GpuArena arena;
  std::vector<Partial> on_gpu;
  for (PartialBuffer& part : parts) {
    for (float& x : part.out) x = normal(rng);
    for (std::int32_t h = 0; h < kRows; ++h) {
      const auto at = static_cast<std::size_t>(h);
      part.lse[at] = rng.below(3) == 0 || h == 0 ? -HUGE_VALF : 5 * normal(rng);
      part.tail[at] = part.lse[at] == -HUGE_VALF ? 0 : 0.3f;
      part.fault[at] = part.lse[at] == -HUGE_VALF ? 0 : 0.1f;
      part.drift[at] = part.lse[at] == -HUGE_VALF ? 0 : normal(rng);
    }
    on_gpu.push_back({arena.put(part.out), arena.put(part.lse), arena.put(part.tail),
                      arena.put(part.fault), arena.put(part.drift)});
  }
  const GpuMergeGroup group{.row_count = kRows,
                            .part_count = kParts,
                            .parts = arena.put(on_gpu),
                            .result = make_partial(arena, kRows, kDim)};
  ASSERT_TRUE(merge_cuda({.d_v = kDim,
                          .max_row_count = kRows + 1,
                          .group_count = 1,
                          .groups = arena.put(std::vector<GpuMergeGroup>{group})},
                         arena.stream())
                  .ok());
  const PartialBuffer result = read_partial(arena, group.result, kRows, kDim);
  expect_same(result, merge(reference_kernels(), kDim, {&parts[0], &parts[1], &parts[2]}));
}

TEST(PageGatherCuda, CopiesScatteredPages) {
  for (const std::int32_t page_bytes : {16, 256, 320, 512, 4096}) {
    constexpr std::int32_t kPages = 37;
    SeededRng rng(4);
    std::vector<std::byte> pool(static_cast<std::size_t>(kPages * page_bytes));
    for (std::byte& b : pool) b = static_cast<std::byte>(rng.next());
    GpuArena arena;
    const std::byte* on_gpu = arena.put(pool);
    std::vector<const std::byte*> pages;
    std::vector<std::byte> expected;
    for (std::int32_t i = 0; i < 50; ++i) {
      const auto at = static_cast<std::int64_t>(rng.below(kPages)) * page_bytes;
      pages.push_back(on_gpu + at);
      expected.insert(expected.end(), pool.begin() + at, pool.begin() + at + page_bytes);
    }
    std::byte* out = arena.make<std::byte>(50 * page_bytes);
    ASSERT_TRUE(
        page_gather_cuda(
            {.pages = arena.put(pages), .out = out, .page_bytes = page_bytes, .page_count = 50},
            arena.stream())
            .ok());
    EXPECT_TRUE(arena.get(out, 50 * page_bytes) == expected) << page_bytes;
  }
}

// ---- graphs

TEST(GpuGraphs, ARecordedStepOverSeveralLayersFollowsQueriesAndBudgets) {
  const World first(31, {256, 1024}, 64, 2);
  const World second(32, {256, 1024}, 64, 2);
  World asked_later(33, {256, 1024}, 64, 2);
  GpuArena arena;
  GpuLayer layer_a(arena, {&first, &second}, {with_rule(64, 1), with_rule(64, 2)});
  GpuLayer layer_b(arena, {&second, &first}, {with_rule(64, 2), with_rule(64, 1)});
  arena.wait();
  Result<GpuGraph> graph = GpuGraph::record(arena.stream(), [&] {
    ICE_TRY(layer_a.step());
    return layer_b.step();
  });
  ASSERT_TRUE(graph.has_value());
  for (int run = 0; run < 2; ++run) {
    ASSERT_TRUE(graph.value().launch(arena.stream()).ok());
    arena.wait();
    expect_same(layer_a.result(0), reference_of(arena, layer_a.group(0)));
    expect_same(layer_a.result(1), reference_of(arena, layer_a.group(1)));
    expect_same(layer_b.result(0), reference_of(arena, layer_b.group(0)));
  }
  // Another step: new queries, a smaller budget, the same graph.
  World moved(31, {256, 1024}, 64, 2);
  moved.q = asked_later.q;
  layer_a.set_queries(0, asked_later.q);
  layer_a.set_budget(0, 30);
  ASSERT_TRUE(graph.value().launch(arena.stream()).ok());
  arena.wait();
  EXPECT_EQ(arena.get(layer_a.group(0).find.found_count, 1)[0], 30);
  GpuGroup asked = layer_a.group(0);
  asked.world = &moved;
  expect_same(layer_a.result(0), reference_of(arena, asked));
}

}  // namespace
}  // namespace icefield
