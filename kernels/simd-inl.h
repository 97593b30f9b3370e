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
// their sums stay in registers.
constexpr int kRowBlock = 4;

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

// β q·μ of all clusters of a level for kRows query rows: out[r * out_stride + c].
template <int kRows>
HWY_NOINLINE void level_dots(const LevelView& level, const float* q, std::int64_t q_stride,
                             float beta, float* out, std::int64_t out_stride) {
  const FloatTag d;
  const IntTag di;
  const hn::Repartition<std::int8_t, IntTag> d8;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t first = 0; first < level.count; first += kClusterPanel) {
    const std::int32_t width = level.panel_width(first / kClusterPanel);
    const std::int8_t* panel = level.key_panel(first / kClusterPanel);
    const std::int32_t used = std::min(width, level.count - first);
    for (std::int32_t lane = 0; lane < used; lane += lanes) {
      FloatVec sum[kRows];
      for (FloatVec& s : sum) s = hn::Zero(d);
      for (std::int32_t j = 0; j < level.d_k; j += 4) {
        // Four dimensions of one cluster in each lane. Past the panel's width this reads what
        // follows it in the part, into lanes that are not stored.
        const std::int8_t* at = panel + static_cast<std::int64_t>(j) * width + lane * 4;
        const auto four = hn::BitCast(di, hn::LoadU(d8, at));
        const FloatVec x0 = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<24>(four)));
        const FloatVec x1 = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<16>(four)));
        const FloatVec x2 = hn::ConvertTo(d, hn::ShiftRight<24>(hn::ShiftLeft<8>(four)));
        const FloatVec x3 = hn::ConvertTo(d, hn::ShiftRight<24>(four));
        for (int r = 0; r < kRows; ++r) {
          const float* x = q + r * q_stride + j;
          sum[r] = hn::MulAdd(x0, hn::Set(d, x[0]), sum[r]);
          sum[r] = hn::MulAdd(x1, hn::Set(d, x[1]), sum[r]);
          sum[r] = hn::MulAdd(x2, hn::Set(d, x[2]), sum[r]);
          sum[r] = hn::MulAdd(x3, hn::Set(d, x[3]), sum[r]);
        }
      }
      const FloatVec scale =
          hn::Mul(hn::LoadU(d, level.key_scale + first + lane), hn::Set(d, beta));
      for (int r = 0; r < kRows; ++r) {
        store_first(d, hn::Mul(sum[r], scale), used - lane, out + r * out_stride + first + lane);
      }
    }
  }
}

// Calls f with the row count as a constant: f(std::integral_constant<int, 1 … kRowBlock>, first
// row) for all rows, kRowBlock at a time.
template <class F>
HWY_INLINE void for_row_blocks(std::int32_t row_count, F&& f) {
  std::int32_t row = 0;
  for (; row + kRowBlock <= row_count; row += kRowBlock) {
    f(std::integral_constant<int, kRowBlock>(), row);
  }
  switch (row_count - row) {
    case 1: f(std::integral_constant<int, 1>(), row); break;
    case 2: f(std::integral_constant<int, 2>(), row); break;
    case 3: f(std::integral_constant<int, 3>(), row); break;
    default: break;
  }
}

// β q·μ of all clusters for all rows of a group.
HWY_INLINE void all_level_dots(const LevelView& level, const float* q, std::int32_t row_count,
                               float beta, float* out, std::int64_t out_stride) {
  for_row_blocks(row_count, [&](auto rows, std::int32_t row) {
    level_dots<rows()>(level, q + static_cast<std::int64_t>(row) * level.d_k, level.d_k, beta,
                       out + row * out_stride, out_stride);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
