// kernels/attend_parts.h — the three launches of attend_cuda() and what they hand on.
#pragma once

#include "kernels/attend_cuda.h"
#include "kernels/device.h"

namespace icefield::gpu {

// First, where groups have a tail: fills term_logit, weights and shares.
Status tail_terms(const GpuAttendArgs& args, Stream stream);
// Last: merges the splits' partial results.
Status merge_splits(const GpuAttendArgs& args, Stream stream);

// Largest logit, Σ e^(t - largest), and what of that sum is tail and fault.
struct Stat {
  float largest;
  float total;
  float tail;
  float fault;
};

// e^(x - largest), 0 for x = -inf whatever the largest.
ICE_DEVICE float weight_of(float x, float largest) {
  return x == kMinusInfinity ? 0.0f : exponential(x - largest);
}

// Where a split's partial results stand: [splits, G] Stat, then [splits, G, d] sums.
struct PartialPlace {
  Stat* stats;
  float* out;
};
ICE_DEVICE PartialPlace partial_place(const GpuAttendGroup& group, int splits, int split, int dim) {
  Stat* stats = reinterpret_cast<Stat*>(group.partial);
  float* out =
      reinterpret_cast<float*>(stats + static_cast<std::int64_t>(splits) * group.row_count);
  const std::int64_t first = static_cast<std::int64_t>(split) * group.row_count;
  return {stats + first, out + first * dim};
}

}  // namespace icefield::gpu
