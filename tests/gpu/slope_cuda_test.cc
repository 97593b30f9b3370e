// The second-order tail on the GPU (or its emulation) against the reference: alone, and after the
// attention and the merge of a step in a recorded graph.
#include "kernels/slope_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/gpu/gpu_groups.h"

namespace icefield {
namespace {

// A group's arrays on the host.
struct SlopeCase {
  HeadShape shape;
  std::int32_t row_count = 0;
  HeadSlope slope;  // empty: none
  std::vector<float> q, drift, out;

  SlopeCase(SeededRng& rng, const HeadShape& head, std::int32_t rows, bool slopes)
      : shape(head), row_count(rows) {
    const auto random = [&](std::int32_t count) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& value : values) value = normal(rng);
      return values;
    };
    q = random(rows * shape.d_k);
    drift = random(rows);
    out = random(rows * shape.d_v);
    if (!slopes) return;
    slope.gamma = random(shape.d_k);
    for (float& value : slope.gamma) value *= value;
    slope.scale = random(shape.d_k);
    for (std::int32_t i = 0; i < shape.d_k * shape.d_v; ++i) {
      slope.slope.push_back(static_cast<std::int8_t>(static_cast<int>(rng.below(255)) - 127));
    }
  }

  SlopeView put_slope(GpuArena& arena) const {
    if (slope.empty()) return {};
    return {arena.put(slope.gamma), arena.put(slope.slope), arena.put(slope.scale)};
  }
  GpuSlopeGroup put(GpuArena& arena) const {
    return {.slope = put_slope(arena),
            .row_count = row_count,
            .q = arena.put(q),
            .drift = arena.put(drift),
            .out = arena.put(out)};
  }
  std::vector<float> expected() const {
    std::vector<float> moved = out;
    if (slope.empty()) return moved;
    add_slope_reference({.shape = shape,
                         .slope = slope.view(),
                         .row_count = row_count,
                         .q = q.data(),
                         .drift = drift.data(),
                         .out = moved.data()});
    return moved;
  }
};

void expect_near(const std::vector<float>& gpu, const std::vector<float>& reference) {
  ASSERT_EQ(gpu.size(), reference.size());
  float largest = 1e-3f;
  for (const float x : reference) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < gpu.size(); ++i) {
    ASSERT_NEAR(gpu[i], reference[i], 1e-5f * largest) << "out " << i;
  }
}

GpuSlopeArgs args_of(const HeadShape& shape, std::int32_t max_rows, std::int32_t groups,
                     const GpuSlopeGroup* on_gpu) {
  return {.shape = shape, .max_row_count = max_rows, .group_count = groups, .groups = on_gpu};
}

void check(const HeadShape& shape, const std::vector<SlopeCase>& cases) {
  GpuArena arena;
  std::vector<GpuSlopeGroup> groups;
  std::int32_t most = 1;
  for (const SlopeCase& one : cases) {
    groups.push_back(one.put(arena));
    most = std::max(most, one.row_count);
  }
  const auto count = static_cast<std::int32_t>(groups.size());
  ASSERT_TRUE(
      add_slope_cuda(args_of(shape, most + 1, count, arena.put(groups)), arena.stream()).ok());
  arena.wait();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE("group " + std::to_string(i));
    const std::vector<float> out =
        arena.get(groups[i].out, static_cast<std::int64_t>(cases[i].out.size()));
    if (cases[i].slope.empty()) {
      EXPECT_EQ(out, cases[i].out);
    } else {
      expect_near(out, cases[i].expected());
    }
  }
}

TEST(SlopeCuda, AgreesWithTheReferenceForAllHeadDimensions) {
  SeededRng rng(3);
  for (const std::int32_t d : {16, 64, 80, 96, 128, 256}) {
    for (const std::int32_t d_v : {d, 48}) {
      SCOPED_TRACE(testing::Message() << d << " " << d_v);
      const HeadShape shape{.d_k = d, .d_v = d_v, .beta = 0.2f};
      check(shape, {SlopeCase(rng, shape, 8, true)});
    }
  }
}

TEST(SlopeCuda, RandomShapesOfSeveralGroupsSomeWithoutSlope) {
  SeededRng rng(4);
  for (int i = 0; i < 8; ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    const HeadShape shape{.d_k = static_cast<std::int32_t>(16 * (1 + rng.below(16))),
                          .d_v = static_cast<std::int32_t>(16 * (1 + rng.below(16))),
                          .beta = 0.01f + 0.1f * static_cast<float>(rng.below(10))};
    std::vector<SlopeCase> cases;
    for (std::uint64_t g = 1 + rng.below(4); g > 0; --g) {
      const auto rows = static_cast<std::int32_t>(1 + rng.below(20));
      cases.emplace_back(rng, shape, rows, rng.below(4) != 0);
    }
    check(shape, cases);
  }
}

TEST(SlopeCuda, WithoutVarianceOrDriftNothingMoves) {
  SeededRng rng(5);
  const HeadShape shape{.d_k = 64, .d_v = 64, .beta = 1};
  SlopeCase flat(rng, shape, 2, true);
  std::fill(flat.slope.gamma.begin(), flat.slope.gamma.end(), 0.0f);
  SlopeCase some(rng, shape, 3, true);
  std::fill_n(some.q.begin(), 64, 0.0f);  // its first row has no variance, its second no drift
  some.drift[1] = 0;
  GpuArena arena;
  const std::vector<GpuSlopeGroup> groups = {flat.put(arena), some.put(arena)};
  ASSERT_TRUE(add_slope_cuda(args_of(shape, 3, 2, arena.put(groups)), arena.stream()).ok());
  arena.wait();
  EXPECT_EQ(arena.get(groups[0].out, 2 * 64), flat.out);
  const std::vector<float> moved = arena.get(groups[1].out, 3 * 64);
  EXPECT_TRUE(std::equal(moved.begin(), moved.begin() + 2 * 64, some.out.begin()));
  EXPECT_FALSE(std::equal(moved.begin() + 2 * 64, moved.end(), some.out.begin() + 2 * 64));
}

TEST(SlopeCuda, HeadDimensionsBeyondTheFormatAreRefused) {
  for (const HeadShape& shape : {HeadShape{.d_k = 272, .d_v = 64}, HeadShape{.d_k = 64, .d_v = 24},
                                 HeadShape{.d_k = 0, .d_v = 64}}) {
    EXPECT_EQ(add_slope_cuda(args_of(shape, 1, 1, nullptr), nullptr).code(), Code::kUnimplemented);
  }
}

// A step, its merge and its second order in one graph: what runs is what the groups say then.
TEST(SlopeCuda, ARecordedStepFollowsSlopesAndRows) {
  const World world(31, {256, 1024}, 64, 5);
  SeededRng rng(6);
  const SlopeCase numbers(rng, world.shape, 5, true);
  GpuArena arena;
  GpuLayer layer(arena, {&world}, {{.rule = {.budget = 40, .breadth = 1}}});
  const Partial part = layer.group(0).attend.result;
  const Partial merged = make_partial(arena, 5, 64);
  const std::vector<GpuMergeGroup> merge = {{.row_count = 5,
                                             .part_count = 1,
                                             .parts = arena.put(std::vector<Partial>{part}),
                                             .result = merged}};
  std::vector<GpuSlopeGroup> slope = {
      {.row_count = 5, .q = layer.group(0).select.q, .drift = merged.drift, .out = merged.out}};
  const GpuMergeArgs merge_args{
      .d_v = 64, .max_row_count = 5, .group_count = 1, .groups = arena.put(merge)};
  GpuSlopeGroup* const on_gpu = arena.put(slope);
  const GpuSlopeArgs slope_args = args_of(world.shape, 5, 1, on_gpu);
  Result<GpuGraph> graph = GpuGraph::record(arena.stream(), [&] {
    ICE_TRY(layer.step());
    ICE_TRY(merge_cuda(merge_args, arena.stream()));
    return add_slope_cuda(slope_args, arena.stream());
  });
  ASSERT_TRUE(graph.has_value());
  const auto run = [&](std::int32_t rows, const SlopeView& view) {
    slope[0].slope = view;
    slope[0].row_count = rows;
    arena.write(on_gpu, slope);
    EXPECT_TRUE(graph.value().launch(arena.stream()).ok());
    arena.wait();
    return arena.get(merged.out, 5 * 64);
  };
  const std::vector<float> first_order = run(5, {});
  expect_near(first_order, arena.get(part.out, 5 * 64));
  for (const std::int32_t rows : {5, 2}) {
    SlopeCase expected = numbers;
    expected.row_count = rows;
    expected.q = world.q;
    expected.drift = arena.get(part.drift, 5);
    expected.out = first_order;
    const std::vector<float> moved = run(rows, numbers.put_slope(arena));
    EXPECT_NE(moved, first_order);
    expect_near(moved, expected.expected());
  }
}

}  // namespace
}  // namespace icefield
