// kernels/attend_parts.h — the three launches of attend_cuda() and what they hand on.
#pragma once

#include "kernels/attend_cuda.h"
#include "kernels/device.h"

namespace icefield::gpu {

// First, where groups have a tail: fills terms, weights and shares.
Status tail_terms(const GpuAttendArgs& args, Stream stream);
// Last: merges the splits' partial results.
Status merge_splits(const GpuAttendArgs& args, Stream stream);

// Largest logit, Σ e^(t - largest), what of that sum is tail and fault, and Σ e^(t - largest) Δ.
struct Stat {
  float largest;
  float total;
  float tail;
  float fault;
  float drift;
};

// e^(x - largest), 0 for x = -inf whatever the largest.
ICE_DEVICE float weight_of(float x, float largest) {
  return x == kMinusInfinity ? 0.0f : exponential(x - largest);
}

// Where a split's partial results stand: [splits, G, d] sums, then [splits, G] Stat.
struct PartialPlace {
  float* out;
  Stat* stats;
};
ICE_DEVICE PartialPlace partial_place(const GpuAttendGroup& group, int splits, int split, int dim) {
  const std::int64_t rows = static_cast<std::int64_t>(splits) * group.row_count;
  const std::int64_t first = static_cast<std::int64_t>(split) * group.row_count;
  Stat* stats = reinterpret_cast<Stat*>(group.partial + rows * dim);
  return {group.partial + first * dim, stats + first};
}

}  // namespace icefield::gpu
