// kernels/slope_cuda.h — the second-order tail on the GPU (kernels/slope.h has what it computes).
// Ownership, graphs and errors as in kernels/select_cuda.h.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "kernels/gpu.h"
#include "kernels/slope.h"

namespace icefield {

// One (context, KV head). In the memory of the GPU, as is all it points to.
struct GpuSlopeGroup {
  SlopeView slope;  // of mean_slope(), 4-byte aligned; slope.slope null: nothing is moved
  std::int32_t row_count = 0;    // G
  const float* q = nullptr;      // [G, d_k]
  const float* drift = nullptr;  // [G] of the merged result
  float* out = nullptr;          // [G, d_v] in and out
};

struct GpuSlopeArgs {
  HeadShape shape;                 // d_k and d_v multiples of 16 up to kMaxHeadDim
  std::int32_t max_row_count = 0;  // the largest G that a group has, now or later
  std::int32_t group_count = 0;
  const GpuSlopeGroup* groups = nullptr;  // [group_count] in the memory of the GPU
};

// One launch for the groups of a layer, after their merge.
Status add_slope_cuda(const GpuSlopeArgs& args, Stream stream);

}  // namespace icefield
