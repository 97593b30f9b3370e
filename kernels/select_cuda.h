// kernels/select_cuda.h — score lists, propose, rank on the GPU (kernels/select.h has what they
// compute). The families run one after the other in one stream and hand on their results in the
// memory of the GPU: from q to the selected rows and the list of misses without the host.
//
// Ownership  All memory is the caller's and the GPU's; nothing is allocated.
// Threads    One launch at a time per group: scratch is the group's.
// Graphs     Launches depend on GpuCapacity only; counts are read from the groups when the kernels
//            run. So a recorded graph follows changes of q, tables, budgets and counts.
// Errors     kInvalidArgument for what exceeds a limit, kUnimplemented for head dimensions;
//            kInternal from the runtime. What fails while running is found by the next wait.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "kernels/gpu.h"
#include "kernels/gpu_table.h"
#include "kernels/launch_math.h"
#include "kernels/select.h"

namespace icefield {

// A cluster on its way into C.
struct ClusterVote {
  float vote = 0;
  std::int32_t tokens = 0;
};

// One (context, KV head), as in kernels/select.h. In the memory of the GPU, as is all it points to.
struct GpuSelectGroup {
  std::int32_t row_count = 0;        // G
  const float* q = nullptr;          // [G, d_k]
  const float* exact_lse = nullptr;  // [G] LSE of the logits of E; -inf where E is empty
  std::int32_t segment_count = 0;
  const GpuSegment* segments = nullptr;  // [segment_count]
  TableSize size;                        // of the table
  SelectionRule rule;

  std::int32_t* rounded = nullptr;         // score_lists: [rounded_layout().ints()]
  float* list_logit = nullptr;             // [G, lists] λ
  float* reference_level = nullptr;        //   [G] R
  float* segment_mass = nullptr;           //   [segment_count] m_s
  float* cluster_logit = nullptr;          // propose: [G, clusters] β q·μ
  ClusterVote* cluster_vote = nullptr;     //   [clusters] P
  std::uint8_t* candidate = nullptr;       //   [clusters] 1: in C
  float* token_logit = nullptr;            // rank: [G, rows] x̂ of the rows of C
  RankedRow* ranking = nullptr;            //   [rows] rows of C, in no order
  TableRow* selected = nullptr;            //   [B] S, ascending
  std::int32_t* selected_count = nullptr;  //   [1]
  float* list_partial = nullptr;           // scratch [segment_count, G, 2]
  std::uint32_t* counters = nullptr;       // scratch gpu_select_counters(); 0 before the first call
};
constexpr std::int64_t gpu_select_counters(std::int32_t segment_count) {
  return 2 + static_cast<std::int64_t>(segment_count);
}

struct GpuSelectArgs {
  HeadShape shape;
  GpuCapacity capacity;
  bool segment_budgets = false;  // some group's rule has them
  std::int32_t group_count = 0;
  const GpuSelectGroup* groups = nullptr;  // [group_count] in the memory of the GPU
};

// Also rounds q for the means, rotates and rounds it for the codes.
Status score_lists_cuda(const GpuSelectArgs& args, Stream stream);
Status propose_cuda(const GpuSelectArgs& args, Stream stream);
Status rank_cuda(const GpuSelectArgs& args, Stream stream);  // once after every propose

// ---- from selected rows to rows in memory

// Finds the selected rows in the hot pool: what is there is ready for attend, what is not is a
// miss. With a policy of no waiting, attend at once: the misses are already in the tail. Otherwise
// the host fetches `missing`, puts the pages into the pool and runs this again.
struct FindRowsGroup {
  const std::int32_t* selected_count = nullptr;  // [1] from rank
  const TableRow* selected = nullptr;            // from rank
  std::int32_t segment_count = 0;
  const GpuSegment* segments = nullptr;
  std::int32_t cluster_count = 0;

  const Bf16** rows = nullptr;            // out [B] rows that are there, ascending
  TableRow* found = nullptr;              // out [B] their places: S without the misses
  std::int32_t* found_count = nullptr;    // out [1]
  TableRow* missing = nullptr;            // out [B] ascending
  std::int32_t* missing_count = nullptr;  // out [1]
  std::uint8_t* faulty = nullptr;         // out [clusters] 1: has a missing row
};
struct FindRowsArgs {
  HeadShape shape;
  std::int32_t page_rows = 1;       // 1, 2, 4, 8 or 16
  const std::byte* pool = nullptr;  // [slot_count, page_rows, d_k + d_v] bf16
  std::int32_t slot_count = 0;
  const std::byte* overflow = nullptr;  // pages of slots from slot_count on
  std::int32_t group_count = 0;
  const FindRowsGroup* groups = nullptr;  // in the memory of the GPU
};
Status find_rows_cuda(const FindRowsArgs& args, Stream stream);

}  // namespace icefield
