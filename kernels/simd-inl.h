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
#include <cstring>
#include <type_traits>

#include "common/float_bits.h"
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

constexpr int kLanes = HWY_LANES(float);

// Query rows whose products with means are made together: enough to reuse each loaded mean, few
// enough that their sums stay in registers. At most kLanes.
constexpr int kRowBlock = kLanes == 16 ? 8 : 4;

// Query rows that ranking and attention handle together, so that codes, rows and clusters are
// visited once for all of them.
constexpr int kMostRows = kLanes >= 8 ? 8 : 4;

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
#if HWY_MEM_OPS_MIGHT_FAULT  // what is masked off is read and written there
    HWY_ALIGN float lanes[kLanes];
    hn::Store(v, d, lanes);
    std::copy_n(lanes, count, at);
#else
    hn::BlendedStore(v, hn::FirstN(d, static_cast<std::size_t>(count)), d, at);
#endif
  }
}

// The first `count` lanes from memory, `other` in the rest, which is not read.
HWY_INLINE FloatVec load_first(FloatTag d, const float* at, std::int64_t count, float other) {
  if (count >= static_cast<std::int64_t>(hn::Lanes(d))) return hn::LoadU(d, at);
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float lanes[kLanes];
  hn::Store(hn::Set(d, other), d, lanes);
  if (count > 0) std::copy_n(at, count, lanes);
  return hn::Load(d, lanes);
#else
  const auto mask = hn::FirstN(d, static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
  return hn::IfThenElse(mask, hn::MaskedLoad(mask, d, at), hn::Set(d, other));
#endif
}

// Keeps the compiler from reading v from memory for every product that needs it.
HWY_INLINE FloatVec in_register(FloatVec v) {
#if HWY_TARGET == HWY_AVX2
  asm("" : "+x"(v.raw));
#endif
  return v;
}

HWY_INLINE float sum_lanes(FloatTag d, FloatVec v) { return hn::GetLane(hn::SumOfLanes(d, v)); }
HWY_INLINE float max_lanes(FloatTag d, FloatVec v) { return hn::GetLane(hn::MaxOfLanes(d, v)); }

// e^x for x <= 88, with a relative error below 1e-7 (|x| + 2); 0 below kLeastExponent and for -inf.
// Range reduction to 2^n 2^f, |f| <= 1/2, and the polynomial of degree 5 with the least relative
// error (9e-8) of those that are 1 for f = 0; one of degree 4 has 3e-6. There are no denormal
// results: they cost a hundred cycles each.
HWY_INLINE FloatVec exp_lanes(FloatTag d, FloatVec x) {
  const auto counts = hn::Ge(x, hn::Set(d, kLeastExponent));
  const FloatVec to_binary = hn::Set(d, 1.44269504f);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const FloatVec exponent = hn::Mul(x, to_binary);
  const FloatVec whole = hn::Round(exponent);
  const FloatVec f = hn::Sub(exponent, whole);
#else
  // The lowest bits of n + large are those of n. Conversions to integers care for what is too large
  // for them, which takes five instructions.
  const FloatVec large = hn::Set(d, 12582912.0f);  // 3 × 2^22
  const FloatVec whole = hn::MulAdd(x, to_binary, large);
  const FloatVec f = hn::MulSub(x, to_binary, hn::Sub(whole, large));
#endif
  FloatVec y = hn::Set(d, 1.32647273e-3f);
  y = hn::MulAdd(y, f, hn::Set(d, 9.67151299e-3f));
  y = hn::MulAdd(y, f, hn::Set(d, 5.55073359e-2f));
  y = hn::MulAdd(y, f, hn::Set(d, 2.40222424e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 6.93147004e-1f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0f));
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return FloatVec{_mm512_maskz_scalef_ps(counts.raw, y.raw, whole.raw)};
#else
  const IntTag di;
  const auto power = hn::ShiftLeft<23>(hn::BitCast(di, whole));  // is added to the exponent of y
  return hn::IfThenElseZero(counts, hn::BitCast(d, hn::Add(hn::BitCast(di, y), power)));
#endif
}

// The vote of a logit (step 5).
HWY_INLINE FloatVec vote_lanes(FloatTag d, FloatVec logit, FloatVec reference) {
  return exp_lanes(d, hn::Min(hn::Sub(logit, reference), hn::Set(d, kVoteExponentCap)));
}

// The sums over lanes of kLanes vectors, in order; `v` is consumed. Each round adds the halves of
// two vectors and leaves both in one.
HWY_INLINE FloatVec sum_each(FloatTag d, FloatVec* v) {
  if constexpr (kLanes >= 8) {
    constexpr int kHalf = kLanes / 2;
    for (int i = 0; i < kHalf; ++i) {
      v[i] = hn::Add(hn::ConcatUpperLower(d, v[i + kHalf], v[i]),
                     hn::ConcatLowerUpper(d, v[i + kHalf], v[i]));
    }
  }
  if constexpr (kLanes == 16) {
    for (int i = 0; i < 4; ++i) {
      v[i] = hn::Add(hn::OddEvenBlocks(v[i + 4], v[i]),
                     hn::SwapAdjacentBlocks(hn::OddEvenBlocks(v[i], v[i + 4])));
    }
  }
  const hn::Repartition<std::uint64_t, FloatTag> d64;
  for (int i = 0; i < 4; i += 2) {
    v[i] = hn::Add(hn::InterleaveLower(d, v[i], v[i + 1]), hn::InterleaveUpper(d, v[i], v[i + 1]));
  }
  const auto a = hn::BitCast(d64, v[0]);
  const auto b = hn::BitCast(d64, v[2]);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, a, b)),
                 hn::BitCast(d, hn::InterleaveUpper(d64, a, b)));
}

// Lane j of vector i becomes lane i of vector j inside of each block of four lanes.
HWY_INLINE void transpose_blocks(FloatTag d, FloatVec* v) {
  const hn::Repartition<std::uint64_t, FloatTag> d64;
  const auto lower = [&](FloatVec a, FloatVec b) HWY_ATTR {
    return hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  const auto upper = [&](FloatVec a, FloatVec b) HWY_ATTR {
    return hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  const FloatVec low_01 = hn::InterleaveLower(d, v[0], v[1]);
  const FloatVec high_01 = hn::InterleaveUpper(d, v[0], v[1]);
  const FloatVec low_23 = hn::InterleaveLower(d, v[2], v[3]);
  const FloatVec high_23 = hn::InterleaveUpper(d, v[2], v[3]);
  v[0] = lower(low_01, low_23);
  v[1] = upper(low_01, low_23);
  v[2] = lower(high_01, high_23);
  v[3] = upper(high_01, high_23);
}

// Lane j of vector i becomes lane i of vector j, for kLanes vectors.
HWY_INLINE void transpose(FloatTag d, FloatVec* v) {
  for (int i = 0; i < kLanes; i += 4) transpose_blocks(d, v + i);
  if constexpr (kLanes >= 8) {  // halves
    for (int i = 0; i < kLanes / 2; ++i) {
      const FloatVec low = v[i];
      const FloatVec high = v[i + kLanes / 2];
      v[i] = hn::ConcatLowerLower(d, high, low);
      v[i + kLanes / 2] = hn::ConcatUpperUpper(d, high, low);
    }
  }
  if constexpr (kLanes == 16) {  // blocks inside of halves
    for (int i = 0; i < 16; i += i % 8 == 3 ? 5 : 1) {
      const FloatVec even = v[i];
      const FloatVec odd = v[i + 4];
      v[i] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(odd), even);
      v[i + 4] = hn::OddEvenBlocks(odd, hn::SwapAdjacentBlocks(even));
    }
  }
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
  FloatVec a = hn::Set(d, -HUGE_VALF);
  FloatVec b = a;
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    a = hn::Max(a, hn::LoadU(d, x + i));
    b = hn::Max(b, hn::LoadU(d, x + i + kLanes));
  }
  for (; i < count; i += kLanes) b = hn::Max(b, load_first(d, x + i, count - i, -HUGE_VALF));
  return max_lanes(d, hn::Max(a, b));
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

// Calls f with the row count as a constant: f(std::integral_constant<int, 1, 2, 3, 4 or kMost>,
// first row) for all rows, as many at a time as there are.
template <int kMost = kRowBlock, class F>
HWY_INLINE void for_row_blocks(std::int32_t row_count, F&& f) {
  std::int32_t row = 0;
  if constexpr (kMost > 4) {
    for (; row + kMost <= row_count; row += kMost) f(std::integral_constant<int, kMost>(), row);
  }
  for (; row + 4 <= row_count; row += 4) f(std::integral_constant<int, 4>(), row);
  switch (row_count - row) {
    case 1: f(std::integral_constant<int, 1>(), row); break;
    case 2: f(std::integral_constant<int, 2>(), row); break;
    case 3: f(std::integral_constant<int, 3>(), row); break;
    default: break;
  }
}

// Stored rows [first, end).
struct RowRange {
  std::int32_t first;
  std::int32_t end;
};
// The rows of clusters [first, end) of a level; first < end.
inline RowRange rows_of(const LevelView& clusters, std::int32_t first, std::int32_t end) {
  return {clusters.first_row[first], clusters.first_row[end - 1] + clusters.token_count[end - 1]};
}

// Calls f(first cluster, end) for each run of candidates among `count` clusters.
template <class F>
HWY_INLINE void for_candidate_runs(const std::uint8_t* candidate, std::int32_t count, F&& f) {
  const std::uint8_t* const end = candidate + count;
  for (const std::uint8_t* at = candidate; at != end;) {
    const auto* first =
        static_cast<const std::uint8_t*>(std::memchr(at, 1, static_cast<std::size_t>(end - at)));
    if (first == nullptr) return;
    const auto* after = static_cast<const std::uint8_t*>(
        std::memchr(first, 0, static_cast<std::size_t>(end - first)));
    at = after == nullptr ? end : after;
    f(static_cast<std::int32_t>(first - candidate), static_cast<std::int32_t>(at - candidate));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
