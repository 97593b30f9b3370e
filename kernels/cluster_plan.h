// kernels/cluster_plan.h — the numbers of the clustering that reference and CPU versions share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/segment_build.h"

namespace icefield::internal {

// Keys and values are smaller than this: sums of squared differences over a whole segment stay
// finite in fp32.
constexpr float kMagnitudeLimit = 0x1p48f;
// Its bits: all that are not smaller have as large an exponent, or a larger one.
constexpr Bf16 kMagnitudeLimitBits = (127 + 48) << 7;
constexpr Bf16 kExponentBits = 0x7f80;

inline Status bad_value(std::int64_t token) {
  return Status(Code::kInvalidArgument, "key or value of token " + std::to_string(token) +
                                            " of the segment is not finite, or 2^48 or more");
}

// kInvalidArgument or kUnimplemented for what no segment can hold.
inline Status validate(const PartitionArgs& args) {
  if (args.row_count < kExtentRows || args.row_count > kMaxSegmentTokens ||
      args.row_count % kExtentRows != 0) {
    return Status(Code::kInvalidArgument, "segment of " + std::to_string(args.row_count) +
                                              " tokens, expected a multiple of " +
                                              std::to_string(kExtentRows) + " up to " +
                                              std::to_string(kMaxSegmentTokens));
  }
  if (args.first_indexed_row != 0 && args.first_indexed_row != kSinkTokens) {
    return Status(Code::kInvalidArgument,
                  "segment indexed from token " + std::to_string(args.first_indexed_row));
  }
  return icefield::validate(
      KvShape{.layer_count = 1, .kv_head_count = 1, .d_k = args.d_k, .d_v = args.d_v});
}

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

// The slope is measured on the stored rows whose number is a multiple of this: a quarter of them
// leaves 5 % more error than all (docs/decisions/0003-index-of-version-1.md).
constexpr std::int32_t kSlopeStride = 4;

// What a covariance of `count` rows with squared norms that add up to `keys` and `values` should be
// scaled by, when the squares of its entries' sums add up to `sums`: the share of it that chance
// does not explain. Where values do not follow keys nothing is left.
inline double slope_share(double keys, double values, double sums, std::int32_t count) {
  const double share = 1 - keys * values / count / sums;
  return share > 0 ? share : 0;  // also when it is not a number
}

// Quantises values × factor, `count` numbers, to int8 with one scale, which it returns. What is not
// finite makes all of them 0.
template <class T>
float quantise_slope(const T* values, std::int32_t count, double factor, std::int8_t* out) {
  T largest = 0;
  for (std::int32_t j = 0; j < count; ++j) {
    const T size = std::abs(values[j]);
    largest = size <= largest ? largest : size;  // also when it is not a number
  }
  auto scale = static_cast<float>(static_cast<double>(largest) * factor / 127);
  if (!std::isfinite(scale)) scale = 0;
  const T inverse = scale == 0 ? T{0} : static_cast<T>(127 / static_cast<double>(largest));
  for (std::int32_t j = 0; j < count; ++j) {
    const T level = scale == 0 ? T{0} : values[j] * inverse;
    out[j] = static_cast<std::int8_t>(std::clamp(std::nearbyint(level), T{-127}, T{127}));
  }
  return scale;
}

}  // namespace icefield::internal
