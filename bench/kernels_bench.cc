// Micro-benchmarks of the kernel families, beside what the machine can do at best. Fixtures make a
// kernel's arguments once: they poison its outputs, which a loop must not repeat.
#include <benchmark/benchmark.h>

#include <cstring>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"
#include "kernels/page_gather.h"

namespace icefield {
namespace {

// One context of `rows` tokens in segments of 4 096 (or one smaller), with `queries` query rows.
struct Context {
  Context(std::int32_t rows, std::int32_t d, std::int32_t queries) {
    SeededRng rng(1);
    const std::int32_t segment_rows = std::min(rows, kMaxSegmentTokens);
    std::vector<HeadIndex> segments;
    std::vector<const Bf16*> stored;
    for (std::int32_t at = 0; at < rows; at += segment_rows) {
      heads.push_back(
          HeadFixture::make(cpu_kernels(), random_rows(rng, segment_rows, d, d), d, d, 0));
      segments.push_back(heads.back()->index);
      stored.push_back(heads.back()->stored_rows.data());
    }
    std::vector<float> q = random_queries(rng, heads.front()->rows, queries, d, d);
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 1 / std::sqrt(static_cast<float>(d))};
    group = std::make_unique<GroupFixture>(
        cpu_kernels(), shape, std::move(segments), std::move(stored), std::move(q),
        std::vector<float>(static_cast<std::size_t>(queries), 0.0f));
  }

  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::unique_ptr<GroupFixture> group;
};

void set_rows(benchmark::State& state, std::int64_t rows) {
  state.SetItemsProcessed(state.iterations() * rows);
}
void set_bytes(benchmark::State& state, std::int64_t bytes) {
  state.SetBytesProcessed(state.iterations() * bytes);
}

// ---- scale: what this machine does at best

void BM_Memcpy(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  std::vector<char> from(bytes, 1), to(bytes);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::ClobberMemory();
  }
  set_bytes(state, state.range(0));
}
BENCHMARK(BM_Memcpy)->Arg(1 << 20)->Arg(64 << 20);

void BM_ReadBandwidth(benchmark::State& state) {
  const std::vector<std::uint64_t> words(static_cast<std::size_t>(state.range(0)) / 8, 1);
  for (auto _ : state) {
    std::uint64_t sum[8] = {};
    for (std::size_t i = 0; i + 8 <= words.size(); i += 8) {
      for (std::size_t j = 0; j < 8; ++j) sum[j] += words[i + j];
    }
    for (std::uint64_t part : sum) benchmark::DoNotOptimize(part);
  }
  set_bytes(state, state.range(0));
}
BENCHMARK(BM_ReadBandwidth)->Arg(64 << 20);

// ---- families; arguments are rows and head dimension

void BM_Build(benchmark::State& state) {
  const auto rows = static_cast<std::int32_t>(state.range(0));
  const auto d = static_cast<std::int32_t>(state.range(1));
  SeededRng rng(1);
  const std::vector<Bf16> kv = random_rows(rng, rows, d, d);
  for (auto _ : state) benchmark::DoNotOptimize(HeadFixture::make(cpu_kernels(), kv, d, d, 0));
  set_rows(state, rows);
}
BENCHMARK(BM_Build)->Args({256, 64})->Args({1024, 64})->Args({4096, 64})->Args({4096, 128});

// A third argument: query rows.
void BM_ScoreLists(benchmark::State& state) {
  Context context(static_cast<std::int32_t>(state.range(0)),
                  static_cast<std::int32_t>(state.range(1)),
                  static_cast<std::int32_t>(state.range(2)));
  const ScoreListsGroup group = context.group->score_lists_group();
  for (auto _ : state) {
    cpu_kernels().score_lists({.shape = context.group->shape, .group_count = 1, .groups = &group});
  }
  set_rows(state, state.range(0));
}
BENCHMARK(BM_ScoreLists)->Args({8192, 64, 3})->Args({8192, 128, 1})->Args({8192, 128, 8});

void BM_Propose(benchmark::State& state) {
  Context context(static_cast<std::int32_t>(state.range(0)),
                  static_cast<std::int32_t>(state.range(1)),
                  static_cast<std::int32_t>(state.range(2)));
  const SelectionRule rule{.budget = 64, .breadth = 16};
  context.group->score_lists();
  const ProposeGroup group = context.group->propose_group(rule);
  for (auto _ : state) {
    cpu_kernels().propose({.shape = context.group->shape, .group_count = 1, .groups = &group});
  }
  set_rows(state, state.range(0));
}
BENCHMARK(BM_Propose)->Args({8192, 64, 3})->Args({8192, 128, 1})->Args({8192, 128, 8});

void BM_RankAll(benchmark::State& state) {
  Context context(static_cast<std::int32_t>(state.range(0)),
                  static_cast<std::int32_t>(state.range(1)),
                  static_cast<std::int32_t>(state.range(2)));
  const SelectionRule rule{.budget = 64};
  context.group->score_lists();
  context.group->propose(rule);
  const RankGroup group = context.group->rank_group(rule);
  for (auto _ : state) {
    cpu_kernels().rank({.shape = context.group->shape, .group_count = 1, .groups = &group});
  }
  set_rows(state, state.range(0));
}
BENCHMARK(BM_RankAll)->Args({8192, 64, 3})->Args({8192, 128, 1})->Args({8192, 128, 8});

void BM_AttendSelected(benchmark::State& state) {
  Context context(8192, static_cast<std::int32_t>(state.range(0)),
                  static_cast<std::int32_t>(state.range(1)));
  context.group->select({.budget = static_cast<std::int32_t>(state.range(2)), .breadth = 16});
  PartialBuffer result(context.group->rows(), context.group->shape.d_v);
  const AttendGroup group = context.group->attend_group(result, {}, {});
  for (auto _ : state) {
    cpu_kernels().attend({.shape = context.group->shape, .group_count = 1, .groups = &group});
  }
  set_rows(state, state.range(2));
}
BENCHMARK(BM_AttendSelected)->Args({64, 3, 64})->Args({128, 8, 256})->Args({128, 8, 4096});

void BM_AttendExact(benchmark::State& state) {
  const auto rows = static_cast<std::int32_t>(state.range(0));
  const auto d = static_cast<std::int32_t>(state.range(1));
  SeededRng rng(1);
  const std::vector<Bf16> kv = random_rows(rng, rows, d, d);
  const auto queries = static_cast<std::int32_t>(state.range(2));
  const std::vector<float> q = random_queries(rng, kv, queries, d, d);
  const HeadShape shape{.d_k = d, .d_v = d, .beta = 0.1f};
  const std::vector<RowRun> runs = runs_of(kv.data(), rows, 2 * d);
  PartialBuffer result(queries, d);
  const AttendGroup group{.row_count = queries,
                          .q = q.data(),
                          .run_count = static_cast<std::int32_t>(runs.size()),
                          .runs = runs.data(),
                          .result = result.view()};
  for (auto _ : state) {
    cpu_kernels().attend({.shape = shape, .group_count = 1, .groups = &group});
  }
  set_bytes(state, static_cast<std::int64_t>(kv.size() * sizeof(Bf16)));
}
BENCHMARK(BM_AttendExact)->Args({32768, 128, 1})->Args({4096, 128, 8})->Args({8192, 64, 3});

void BM_Merge(benchmark::State& state) {
  constexpr std::int32_t kQueries = 8, kDim = 128;
  std::vector<PartialBuffer> buffers;
  std::vector<Partial> parts;
  for (std::int64_t i = 0; i < state.range(0); ++i) {
    buffers.emplace_back(kQueries, kDim);
    std::fill(buffers.back().out.begin(), buffers.back().out.end(), 1.0f);
    std::fill(buffers.back().lse.begin(), buffers.back().lse.end(), 0.5f);
    std::fill(buffers.back().tail.begin(), buffers.back().tail.end(), 0.1f);
    std::fill(buffers.back().fault.begin(), buffers.back().fault.end(), 0.0f);
    std::fill(buffers.back().drift.begin(), buffers.back().drift.end(), 0.01f);
  }
  for (PartialBuffer& buffer : buffers) parts.push_back(buffer.view());
  PartialBuffer result(kQueries, kDim);
  for (auto _ : state) {
    cpu_kernels().merge({.d_v = kDim,
                         .row_count = kQueries,
                         .part_count = static_cast<std::int32_t>(parts.size()),
                         .parts = parts.data(),
                         .result = result.view()});
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Merge)->Arg(2)->Arg(8);

// Arguments: head dimension, query rows. Bound: the bytes of the slope, d² of them.
void BM_AddSlope(benchmark::State& state) {
  const auto d = static_cast<std::int32_t>(state.range(0));
  const auto queries = static_cast<std::int32_t>(state.range(1));
  Context context(kSlopeTokens, d, queries);
  const HeadSlope slope = mean_slope(context.group->segments);
  const std::vector<float> drift(static_cast<std::size_t>(queries), 0.01f);
  std::vector<float> out(static_cast<std::size_t>(queries * d), 0.0f);
  for (auto _ : state) {
    cpu_kernels().add_slope({.shape = context.group->shape,
                             .slope = slope.view(),
                             .row_count = queries,
                             .q = context.group->q.data(),
                             .drift = drift.data(),
                             .out = out.data()});
    benchmark::ClobberMemory();
  }
  set_bytes(state, slope.bytes());
}
BENCHMARK(BM_AddSlope)->Args({64, 3})->Args({128, 1})->Args({128, 8});

// Arguments: pages, bytes of a page.
void BM_PageGather(benchmark::State& state) {
  const auto count = static_cast<std::int32_t>(state.range(0));
  SeededRng rng(1);
  const std::vector<std::byte> slab(64 << 20);
  const auto slots = slab.size() / static_cast<std::size_t>(state.range(1));
  std::vector<const std::byte*> pages;
  for (std::int32_t i = 0; i < count; ++i) {
    pages.push_back(slab.data() + rng.below(slots) * static_cast<std::size_t>(state.range(1)));
  }
  std::vector<std::byte> out(static_cast<std::size_t>(count * state.range(1)));
  for (auto _ : state) {
    cpu_kernels().page_gather({.pages = pages.data(),
                               .out = out.data(),
                               .page_bytes = state.range(1),
                               .page_count = count});
  }
  set_bytes(state, state.range(1) * count);
}
BENCHMARK(BM_PageGather)->Args({1024, 256})->Args({1024, 512})->Args({256, 4096});

}  // namespace
}  // namespace icefield
