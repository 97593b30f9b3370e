// kernels/rounded_query.h — query rows in integers, as the index sees them.
//
// Scores of clusters and codes are sums of products of integers, exact in 32 bits whatever the
// order, so every processor proposes and ranks from the same numbers (docs/formats/attention.md
// step 3). What the index adds to a logit by itself, the rounding of means and codes, is ten times
// larger and more. Exact rows and variances see the query as the engine gave it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "proto/layout.h"

namespace icefield::internal {

constexpr float kMeanQueryLimit = 32639;  // of int16 against means: 127 × 256 + 127, two int8
constexpr float kCodeQueryLimit = 127;    // of int8 against codes

// out[j] = x[j] × (limit / max |x|), rounded, halves to even; returns the step max |x| / limit. A
// row of zeros gives zeros and step 0; so do NaN and infinity.
template <class Int>
inline float round_query(const float* x, std::int32_t d, float limit, Int* out) {
  float largest = 0;
  bool finite = true;
  for (std::int32_t j = 0; j < d; ++j) {
    finite &= std::abs(x[j]) <= 3.4e38f;
    largest = std::max(largest, std::abs(x[j]));
  }
  if (!finite || largest < 1e-30f) {
    std::fill_n(out, d, Int{0});
    return 0;
  }
  // Adding and taking away 1.5 × 2^23 rounds to whole numbers without a call.
  constexpr float kRound = 12582912.0f;
  const float inverse = limit / largest;
  for (std::int32_t j = 0; j < d; ++j) {
    const float rounded = (x[j] * inverse + kRound) - kRound;
    out[j] = static_cast<Int>(std::clamp(rounded, -limit, limit));
  }
  return largest / limit;
}

}  // namespace icefield::internal
