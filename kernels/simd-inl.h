// kernels/simd-inl.h — what the SIMD kernels share. Included once per instruction set, after
// HWY_TARGET_INCLUDE is set; everything is in the namespace of the target being compiled. There is
// none for HWY_SCALAR, the fallback that Highway always compiles: there the kernels forward to the
// reference.
#if defined(ICEFIELD_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_SIMD_INL_H_
#undef ICEFIELD_KERNELS_SIMD_INL_H_
#else
#define ICEFIELD_KERNELS_SIMD_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/float_bits.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/head_index.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using IntTag = hn::Rebind<std::int32_t, FloatTag>;
using UintTag = hn::Rebind<std::uint32_t, FloatTag>;
using FloatVec = hn::Vec<FloatTag>;

// Query rows that a kernel handles together: enough to reuse each loaded key, few enough that
// their sums stay in registers, of which AVX-512 and NEON have 32 and AVX2 16.
constexpr int kRowBlock = HWY_TARGET == HWY_AVX2 ? 4 : 8;

HWY_INLINE FloatVec load_bf16(FloatTag d, const Bf16* at) {
  const hn::Rebind<std::uint16_t, FloatTag> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(UintTag(), hn::LoadU(d16, at))));
}

HWY_INLINE FloatVec load_fp16(FloatTag d, const Fp16* at) {
  const hn::Rebind<hwy::float16_t, FloatTag> d16;
  const hn::Rebind<std::uint16_t, FloatTag> du16;
  return hn::PromoteTo(d, hn::BitCast(d16, hn::LoadU(du16, at)));
}

HWY_INLINE FloatVec load_int8(FloatTag d, const std::int8_t* at) {
  const hn::Rebind<std::int8_t, FloatTag> d8;
  return hn::ConvertTo(d, hn::PromoteTo(IntTag(), hn::LoadU(d8, at)));
}

// Stores the first `count` lanes, or all where count is larger.
HWY_INLINE void store_first(FloatTag d, FloatVec v, std::int64_t count, float* at) {
  if (count >= static_cast<std::int64_t>(hn::Lanes(d))) {
    hn::StoreU(v, d, at);
  } else if (count > 0) {
    hn::BlendedStore(v, hn::FirstN(d, static_cast<std::size_t>(count)), d, at);
  }
}

// The first `count` lanes from memory, `other` in the rest, which is not read.
HWY_INLINE FloatVec load_first(FloatTag d, const float* at, std::int64_t count, float other) {
  if (count >= static_cast<std::int64_t>(hn::Lanes(d))) return hn::LoadU(d, at);
  const auto mask = hn::FirstN(d, static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
  return hn::IfThenElse(mask, hn::MaskedLoad(mask, d, at), hn::Set(d, other));
}

HWY_INLINE float sum_lanes(FloatTag d, FloatVec v) { return hn::GetLane(hn::SumOfLanes(d, v)); }
HWY_INLINE float max_lanes(FloatTag d, FloatVec v) { return hn::GetLane(hn::MaxOfLanes(d, v)); }

// e^x, 0 for x = -inf. Callers keep x <= 80.
HWY_INLINE FloatVec exp_lanes(FloatTag d, FloatVec x) {
  return hn::Exp(d, hn::Max(x, hn::Set(d, -104.0f)));
}

// Σ e^(x_i - reference) and max x_i of x[count].
HWY_INLINE float sum_exp(FloatTag d, const float* x, std::int64_t count, float reference) {
  FloatVec sum = hn::Zero(d);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < count; i += lanes) {
    const FloatVec v = load_first(d, x + i, count - i, -HUGE_VALF);
    sum = hn::Add(sum, exp_lanes(d, hn::Sub(v, hn::Set(d, reference))));
  }
  return sum_lanes(d, sum);
}
HWY_INLINE float max_of(FloatTag d, const float* x, std::int64_t count) {
  FloatVec largest = hn::Set(d, -HUGE_VALF);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < count; i += lanes) {
    largest = hn::Max(largest, load_first(d, x + i, count - i, -HUGE_VALF));
  }
  return max_lanes(d, largest);
}

// w = (β²/2) Σ_j q_j² γ_j.
HWY_INLINE float variance_weight(FloatTag d, const float* q, const LevelView& level, float beta) {
  FloatVec sum = hn::Zero(d);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < level.d_k; j += lanes) {
    const FloatVec x = hn::LoadU(d, q + j);
    sum = hn::MulAdd(hn::Mul(x, x), hn::LoadU(d, level.gamma + j), sum);
  }
  return beta * beta * 0.5f * sum_lanes(d, sum);
}

// Calls f with the row count as a constant: f(std::integral_constant<int, 1, 2, 3, 4 or 8>, first
// row) for all rows, as many at a time as there are.
template <class F>
HWY_INLINE void for_row_blocks(std::int32_t row_count, F&& f) {
  std::int32_t row = 0;
  if constexpr (kRowBlock > 4) {
    for (; row + kRowBlock <= row_count; row += kRowBlock) {
      f(std::integral_constant<int, kRowBlock>(), row);
    }
  }
  for (; row + 4 <= row_count; row += 4) f(std::integral_constant<int, 4>(), row);
  switch (row_count - row) {
    case 1: f(std::integral_constant<int, 1>(), row); break;
    case 2: f(std::integral_constant<int, 2>(), row); break;
    case 3: f(std::integral_constant<int, 3>(), row); break;
    default: break;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
