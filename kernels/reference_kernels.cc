#include "kernels/kernels.h"

namespace icefield {

const Kernels& reference_kernels() {
  static constexpr Kernels kTable{
      .partition = partition_reference,
      .describe = describe_reference,
      .score_lists = score_lists_reference,
      .propose = propose_reference,
      .rank = rank_reference,
      .attend = attend_reference,
      .merge = merge_reference,
      .add_slope = add_slope_reference,
      .page_gather = page_gather_reference,
  };
  return kTable;
}

}  // namespace icefield
