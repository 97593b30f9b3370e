#include <algorithm>
#include <cmath>

#include "kernels/attend.h"

namespace icefield {

void merge_cpu(const MergeArgs& args) {
  const Partial& result = args.result;
  for (std::int32_t h = 0; h < args.row_count; ++h) {
    float* out = result.out + static_cast<std::int64_t>(h) * args.d_v;
    std::fill_n(out, args.d_v, 0.0f);
    result.lse[h] = -HUGE_VALF;
    result.tail[h] = result.fault[h] = result.drift[h] = 0;
    float largest = -HUGE_VALF;
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      largest = std::max(largest, args.parts[p].lse[h]);
    }
    if (largest == -HUGE_VALF) continue;
    float total = 0;
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      total += std::exp(args.parts[p].lse[h] - largest);
    }
    result.lse[h] = largest + std::log(total);
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      const Partial& part = args.parts[p];
      const float weight = std::exp(part.lse[h] - largest) / total;
      const float* in = part.out + static_cast<std::int64_t>(h) * args.d_v;
      for (std::int32_t j = 0; j < args.d_v; ++j) out[j] += weight * in[j];
      result.tail[h] += weight * part.tail[h];
      result.fault[h] += weight * part.fault[h];
      result.drift[h] += weight * part.drift[h];
    }
  }
}

}  // namespace icefield
