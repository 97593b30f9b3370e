#include "kernels/kernels.h"

#include "kernels/simd_target.h"

namespace icefield {

const Kernels& cpu_kernels() {
  static constexpr Kernels kTable{
      .partition = partition_cpu,
      .describe = describe_cpu,
      .score_lists = score_lists_cpu,
      .propose = propose_cpu,
      .rank = rank_cpu,
      .attend = attend_cpu,
      .merge = merge_cpu,
      .add_slope = add_slope_cpu,
      .page_gather = page_gather_cpu,
  };
  (void)tiles_usable();  // asks for them before a step does
  return kTable;
}

}  // namespace icefield
