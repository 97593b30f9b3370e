// bench/support/gpu_layer_fixture.h — one layer of a long context on the GPU, with an index of the
// right shape and plausible numbers that no clustering had to make.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/support/gpu_arena.h"
#include "kernels/attend_cuda.h"
#include "kernels/select_cuda.h"
#include "kernels/slope_cuda.h"

namespace icefield {

struct GpuLayerShape {
  std::int32_t tokens = 131072;  // a multiple of 256
  std::int32_t kv_heads = 8;
  std::int32_t query_rows = 8;  // per KV head
  std::int32_t head_dim = 128;
  std::int32_t budget = 256;
  std::int32_t breadth = kRuleBreadth;
  std::int32_t window = 512;  // exact rows beside the index
  std::uint64_t seed = 1;

  std::int64_t row_bytes() const { return 4 * static_cast<std::int64_t>(head_dim); }
  std::int64_t rows_bytes() const { return tokens * row_bytes() * kv_heads; }
};

// Memory for a partial result of `rows` query rows.
Partial make_partial(GpuArena& arena, std::int32_t rows, std::int32_t d_v);

// Rows of all heads of a layer, head after head: [kv_heads, tokens, 2 head_dim] bf16. Shared by
// layers: only the index must be each layer's own, so that no cache holds it from step to step.
std::byte* make_rows(GpuArena& arena, const GpuLayerShape& shape);

// One group per KV head over the same pool of rows, in which every page is resident.
class GpuLayerFixture {
 public:
  GpuLayerFixture(GpuArena& arena, const GpuLayerShape& shape, const std::byte* rows);

  // Each submits the kernels of one stage to the arena's stream.
  Status attend_window();
  Status score();  // rounds queries, scores lists
  Status propose();
  Status rank();
  Status find();
  Status attend_selected();
  Status merge();
  Status add_slope();
  Status select_and_attend();  // score to attend_selected
  Status step();               // all of them

  // Bytes that a step must read at least: means, candidates' codes, rows.
  std::int64_t index_bytes() const { return index_bytes_; }
  // What rows were selected and what came out: different numbers for different results.
  std::uint64_t result_hash() const;

 private:
  void add_head(std::int32_t head, const std::byte* rows);
  void add_groups(std::int32_t head, const std::byte* rows, GpuSelectGroup select);
  GpuSelectGroup make_selection(const std::vector<GpuSegment>& segments, const TableSize& size);

  GpuArena& arena_;
  GpuLayerShape shape_;
  TableSize size_;
  std::int64_t index_bytes_ = 0;
  const std::byte* pool_ = nullptr;
  std::vector<GpuSelectGroup> select_;
  std::vector<FindRowsGroup> find_;
  std::vector<GpuAttendGroup> window_;
  std::vector<GpuAttendGroup> attend_;
  std::vector<GpuMergeGroup> merge_;
  std::vector<GpuSlopeGroup> slope_;
  GpuSelectArgs select_args_;
  FindRowsArgs find_args_;
  GpuAttendArgs window_args_;
  GpuAttendArgs attend_args_;
  GpuMergeArgs merge_args_;
  GpuSlopeArgs slope_args_;
};

// Attention over `count` exact rows of every head and nothing else: all of them, or scattered ones.
class GpuExactFixture {
 public:
  GpuExactFixture(GpuArena& arena, const GpuLayerShape& shape, const std::byte* rows,
                  std::int32_t count);
  Status attend() { return attend_cuda(args_, arena_.stream()); }
  std::int64_t bytes() const { return bytes_; }

 private:
  GpuArena& arena_;
  GpuAttendArgs args_;
  std::int64_t bytes_ = 0;
};

}  // namespace icefield
