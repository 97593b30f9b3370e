// tests/support/strange_rows.h — K/V rows as models give them, and as they should not.
#pragma once

#include <cstdint>
#include <vector>

#include "common/float_bits.h"
#include "common/rng.h"

namespace icefield {

enum class StrangeKeys { kUsual, kAllEqual, kZero, kOneOutlier, kTiny, kLarge };
constexpr int kStrangeKeyKinds = 6;

// K/V rows [rows, d_k + d_v] in token order.
std::vector<Bf16> strange_rows(Rng& rng, StrangeKeys keys, std::int32_t rows, std::int32_t d_k,
                               std::int32_t d_v);

}  // namespace icefield
