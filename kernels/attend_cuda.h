// kernels/attend_cuda.h — attention over exact rows and the tail, merge and gather on the GPU
// (kernels/attend.h and kernels/page_gather.h have what they compute).
//
// Exact rows are named by pointers, one each: rows of the hot pool, of the window, of anything that
// the GPU can read. Ownership, graphs and errors as in kernels/select_cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "kernels/attend.h"
#include "kernels/gpu.h"
#include "kernels/gpu_table.h"
#include "kernels/launch_math.h"
#include "kernels/page_gather.h"

namespace icefield {

// The term of a cluster (or list) for one query row (step 6).
struct alignas(8) TailTerm {
  float logit = 0;
  float drift = 0;  // Δ
};
// What it has for all query rows.
struct TermWeight {
  float scale = 0;  // of its int8 values, with the factor of the rest
  std::uint32_t fault = 0;
};
// What a selected row takes out of the rest of its cluster (step 6).
struct SelectedShare {
  std::int32_t cluster = 0;  // in the group's arrays
  float share = 0;           // 1 / rows of the rest; 0: there is none
};

// One group as in kernels/attend.h. In the memory of the GPU, as is all it points to.
struct GpuAttendGroup {
  std::int32_t row_count = 0;  // G
  const float* q = nullptr;    // [G, d_k]

  const std::int32_t* exact_count = nullptr;  // [1]
  const Bf16* const* rows = nullptr;          // [exact_count] rows [d_k + d_v], 16-byte aligned
  const std::int32_t* hidden = nullptr;       // [G] last rows that row h must not see; null: none

  // Tail; segment_count 0: none.
  std::int32_t segment_count = 0;
  const GpuSegment* segments = nullptr;
  TableSize size;
  const SegmentAccount* accounts = nullptr;  // [segment_count]; null: all by tokens, no fault
  const float* list_logit = nullptr;         // [G, lists] from score_lists
  const float* cluster_logit = nullptr;      // [G, clusters] from propose
  const std::uint8_t* candidate = nullptr;   // [clusters] from propose
  const float* token_logit = nullptr;        // [G, rows] from rank
  const TableRow* selected = nullptr;        // [exact_count] S: what `rows` are. Ascending
  const std::uint8_t* faulty = nullptr;      // [clusters] from find_rows; null: none

  TailTerm* terms = nullptr;        // scratch [G, clusters + lists]
  TermWeight* weights = nullptr;    // scratch [clusters + lists]
  SelectedShare* shares = nullptr;  // scratch [exact rows of the capacity]
  float* partial = nullptr;         // scratch gpu_partial_floats()
  Partial result;                   // out
};

struct GpuAttendArgs {
  HeadShape shape;              // d_k = d_v = 64, 80, 96, 128 or 256
  GpuCapacity capacity;         // segments 0: no group has a tail
  std::int32_t processors = 1;  // gpu_processors()
  std::int32_t group_count = 0;
  const GpuAttendGroup* groups = nullptr;  // [group_count] in the memory of the GPU
};

// Partial results of one group: a split of the exact rows or a segment's tail each.
constexpr std::int32_t gpu_attend_splits(const GpuAttendArgs& args) {
  return gpu::row_splits(args.capacity.exact_rows, args.group_count,
                         gpu::div_up(args.capacity.row_count, gpu::kQueryTile), args.processors) +
         args.capacity.segments;
}
constexpr std::int64_t gpu_partial_floats(const GpuAttendArgs& args) {
  return static_cast<std::int64_t>(gpu_attend_splits(args)) * args.capacity.row_count *
         (args.shape.d_v + 5);
}
Status attend_cuda(const GpuAttendArgs& args, Stream stream);

struct GpuMergeGroup {
  std::int32_t row_count = 0;
  std::int32_t part_count = 0;
  const Partial* parts = nullptr;  // [part_count], in order
  Partial result;                  // out; none of the parts
};
struct GpuMergeArgs {
  std::int32_t d_v = 0;
  std::int32_t max_row_count = 0;
  std::int32_t group_count = 0;
  const GpuMergeGroup* groups = nullptr;  // in the memory of the GPU
};
Status merge_cuda(const GpuMergeArgs& args, Stream stream);

// As page_gather(): `pages` is an array in the memory of the GPU; the pages may be in pinned memory
// of the host. page_bytes and all addresses are multiples of 16.
Status page_gather_cuda(const PageGatherArgs& args, Stream stream);

}  // namespace icefield
