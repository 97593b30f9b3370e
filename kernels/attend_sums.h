// kernels/attend_sums.h — device code: the running sums of a warp's 16 query rows, and products of
// weights with values on tensor cores.
#pragma once

#include "kernels/attend_parts.h"

namespace icefield::gpu {

constexpr int kAttendThreads = 32 * kAttendWarps;
constexpr int kPad = 16;  // bytes after each row in shared memory: no bank conflicts of ldmatrix

template <int kDim>
struct Shape {
  static constexpr int kRowBytes = 4 * kDim;  // K and V
  static constexpr int kRowChunks = kRowBytes / 16;
  static constexpr int kRowPitch = kRowBytes + kPad;
  static constexpr int kStageBytes = kTileRows * kRowPitch;
  static constexpr int kStages = kDim >= 256 ? 2 : kDim >= 80 ? 3 : 4;
  static constexpr int kQueryPitch = 2 * kDim + kPad;
  static constexpr int kQueryBytes = kQueryTile * kQueryPitch;  // high or low halves
  static constexpr int kWarpRingBytes = kStages * kStageBytes;
  static constexpr int kRingBytes = kAttendWarps * kWarpRingBytes;
  // Floats of a row of a warp's sums, which end up in its ring; 8 of them so that two floats of
  // eight rows at a time fall into different banks.
  static constexpr int kOutPitch = kDim + 8;
  static_assert(kQueryTile * kOutPitch * 4 <= kWarpRingBytes);
};

// Sums of 16 query rows in a warp. A lane has rows lane / 4 and lane / 4 + 8, of each the columns
// 8 n + 2 (lane % 4) + 0, 1; its totals are a part of the row's, which four lanes share.
template <int kDim>
struct Sums {
  float out[kDim / 8][4];
  Stat stat[2];
};

template <int kDim>
ICE_DEVICE void clear(Sums<kDim>& sums) {
  ICE_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    ICE_UNROLL
    for (int e = 0; e < 4; ++e) sums.out[n][e] = 0;
  }
  sums.stat[0] = sums.stat[1] = {kMinusInfinity, 0, 0, 0, 0};
}

ICE_DEVICE float quad_max(float value) {
  value = max_of(value, shuffle_xor(value, 1));
  return max_of(value, shuffle_xor(value, 2));
}
ICE_DEVICE float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// Moves row half `i` of the sums to a new largest logit.
template <int kDim>
ICE_DEVICE void raise_largest(Sums<kDim>& sums, int i, float logit) {
  Stat& stat = sums.stat[i];
  const float largest = max_of(stat.largest, quad_max(logit));
  if (largest == stat.largest) return;  // the same for the four lanes of a row
  const float factor = weight_of(stat.largest, largest);
  stat.largest = largest;
  stat.total *= factor;
  stat.tail *= factor;
  stat.fault *= factor;
  stat.drift *= factor;
  ICE_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    sums.out[n][2 * i] *= factor;
    sums.out[n][2 * i + 1] *= factor;
  }
}

// Packs weights, laid out as accumulators of two blocks of 8 columns, as the left operand of a
// product with 16 rows of values.
struct Weights {
  unsigned high[4];
  unsigned low[4];
};
ICE_DEVICE Weights pack_weights(const float weight[2][4]) {
  Weights packed;
  ICE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float a = weight[i / 2][i % 2 * 2];
    const float b = weight[i / 2][i % 2 * 2 + 1];
    const unsigned high = pack_bf16(a, b);
    packed.high[i] = high;
    packed.low[i] = pack_bf16(a - bf16_value(static_cast<Bf16>(high & 0xffffu)),
                              b - bf16_value(static_cast<Bf16>(high >> 16)));
  }
  return packed;
}

// out += weights · values; `values` are 16 rows in shared memory, `pitch` bytes apart.
template <int kDim>
ICE_DEVICE void add_values(const Weights& weights, const std::byte* values, int pitch,
                           Sums<kDim>& sums) {
  const int lane = lane_index();
  const std::byte* at = values + (lane % 16) * pitch + lane / 16 * 16;
  ICE_UNROLL
  for (int n = 0; n < kDim / 16; ++n) {
    unsigned b[4];
    load_matrices_transposed(b, at + n * 32);
    multiply_add(sums.out[2 * n], weights.high, b[0], b[1]);
    multiply_add(sums.out[2 * n], weights.low, b[0], b[1]);
    multiply_add(sums.out[2 * n + 1], weights.high, b[2], b[3]);
    multiply_add(sums.out[2 * n + 1], weights.low, b[2], b[3]);
  }
}

}  // namespace icefield::gpu
