// kernels/cluster_plan.h — the numbers of the clustering that reference and CPU versions share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "proto/layout.h"

namespace icefield::internal {

constexpr int kListIterations = 4;   // Lloyd iterations on the sample
constexpr int kSplitIterations = 4;  // of the two halves of a group
constexpr std::int32_t kSamplePerList = 32;

// Lists for `rows` tokens (one extent, or all before the last) of a segment of `segment_rows`.
inline std::int32_t planned_lists(std::int32_t rows, std::int32_t segment_rows) {
  if (segment_rows < kOneListBelowTokens) return 1;
  return std::max(1, (rows + kListTokens / 2) / kListTokens);
}

inline std::int32_t planned_clusters(std::int32_t rows) {
  return std::max(1, (rows + kClusterTokens / 2) / kClusterTokens);
}

// The position of item i of `count` spread evenly over `total` >= count places, in the middle of
// its share.
inline std::int32_t strided(std::int32_t i, std::int32_t count, std::int32_t total) {
  return static_cast<std::int32_t>((2 * static_cast<std::int64_t>(i) + 1) * total / (2 * count));
}

}  // namespace icefield::internal
