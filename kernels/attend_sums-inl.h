// kernels/attend_sums-inl.h — the two products of attention, q·k and Σ w v, over rows of bf16 that
// lie anywhere. Included once per instruction set.
//
// A vector of 32-bit words holds two bf16 values each: a shift gives those of even dimensions, a
// mask those of odd ones, for half the instructions of a conversion in order. So queries and sums
// are kept split: unit u of a row is [even, odd][kLanes] of dimensions 2 kLanes u on.
#if defined(ICEFIELD_KERNELS_ATTEND_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_SUMS_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_SUMS_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_SUMS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

constexpr int kUnit = 2 * kLanes;        // dimensions of a unit
constexpr bool kPartUnits = kUnit > 16;  // head dimensions are multiples of 16

// Units whose sums for kRows queries stay in registers.
template <int kRows>
constexpr int kUnitsPerPass = kRows == 1   ? 4
                              : kRows == 2 ? (kLanes == 16 ? 4 : 2)
                              : kRows <= 4 ? (kLanes == 16 ? 2 : 1)
                                           : 1;

constexpr int units_of(std::int32_t d) { return (d + kUnit - 1) / kUnit; }

// The constructors are written out because implicit ones would not be compiled for the target.
struct Halves {
  HWY_INLINE Halves() {}
  HWY_INLINE Halves(FloatVec e, FloatVec o) : even(e), odd(o) {}

  FloatVec even;
  FloatVec odd;
};

// Unit `unit` of a row of d values, two to a word; what lies beyond d is zero and not read.
HWY_INLINE hn::Vec<UintTag> load_words(const Bf16* row, int unit, std::int32_t d) {
  const hn::Repartition<std::uint16_t, FloatTag> d16;
  const Bf16* at = row + unit * kUnit;
  if (kPartUnits && (unit + 1) * kUnit > d) {
    const auto within = hn::FirstN(d16, static_cast<std::size_t>(d - unit * kUnit));
    return hn::BitCast(UintTag(), hn::MaskedLoad(within, d16, at));
  }
  return hn::BitCast(UintTag(), hn::LoadU(d16, at));
}

// The same as floats.
HWY_INLINE Halves load_unit(const Bf16* row, int unit, std::int32_t d) {
  const FloatTag df;
  const UintTag du;
  const auto words = load_words(row, unit, d);
  return {hn::BitCast(df, hn::ShiftLeft<16>(words)),
          hn::BitCast(df, hn::And(words, hn::Set(du, 0xffff0000u)))};
}

// Fetches a unit of a row that is needed a block of rows later: rows may lie anywhere, and lines
// asked for one at a time between products do not wait for each other.
HWY_INLINE void prefetch_unit(const Bf16* row, int unit) {
  __builtin_prefetch(row + unit * kUnit, 0, 3);
}

// Where dimension `dim` stands in a split row.
constexpr std::int32_t split_at(std::int32_t dim) {
  return dim / kUnit * kUnit + dim % 2 * kLanes + dim % kUnit / 2;
}

// sums[r] += Σ_i weight[r * stride + i] v_i of units [unit, unit + kCount); rows start at v. `next`
// rows are fetched, if kFetch.
template <int kRows, int kCount, bool kFetch>
HWY_INLINE void add_units(const Bf16* const* rows, const Bf16* const* next, std::int64_t count,
                          const float* weight, std::int64_t stride, std::int32_t d_k,
                          std::int32_t d_v, int unit, float (*sums)[kMaxHeadDim]) {
  const FloatTag d;
  FloatVec sum[kRows][2 * kCount];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2 * kCount; ++v) {
      sum[r][v] = hn::Load(d, sums[r] + unit * kUnit + v * kLanes);
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    Halves x[kCount];
    for (int u = 0; u < kCount; ++u) {
      x[u] = load_unit(rows[i] + d_k, unit + u, d_v);
      if constexpr (kFetch) prefetch_unit(next[i] + d_k, unit + u);
    }
    for (int r = 0; r < kRows; ++r) {
      const FloatVec w = hn::Set(d, weight[r * stride + i]);
      for (int u = 0; u < kCount; ++u) {
        sum[r][2 * u] = hn::MulAdd(w, x[u].even, sum[r][2 * u]);
        sum[r][2 * u + 1] = hn::MulAdd(w, x[u].odd, sum[r][2 * u + 1]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2 * kCount; ++v) {
      hn::Store(sum[r][v], d, sums[r] + unit * kUnit + v * kLanes);
    }
  }
}

template <int kRows, bool kFetch>
HWY_INLINE void add_all_units(const Bf16* const* rows, const Bf16* const* next, std::int64_t count,
                              const float* weight, std::int64_t stride, std::int32_t d_k,
                              std::int32_t d_v, float (*sums)[kMaxHeadDim]) {
  constexpr int kPass = kUnitsPerPass<kRows>;
  int unit = 0;
  for (; unit + kPass <= units_of(d_v); unit += kPass) {
    add_units<kRows, kPass, kFetch>(rows, next, count, weight, stride, d_k, d_v, unit, sums);
  }
  if (kPass == 4 && unit + 2 <= units_of(d_v)) {
    add_units<kRows, 2, kFetch>(rows, next, count, weight, stride, d_k, d_v, unit, sums);
    unit += 2;
  }
  for (; unit < units_of(d_v); ++unit) {
    add_units<kRows, 1, kFetch>(rows, next, count, weight, stride, d_k, d_v, unit, sums);
  }
}

// sums[r] += Σ_i weight[r * stride + i] v_i for `count` rows; sums are split. `next` rows are
// fetched.
template <int kRows>
HWY_INLINE void add_values(const Bf16* const* rows, const Bf16* const* next, std::int64_t count,
                           const float* weight, std::int64_t stride, std::int32_t d_k,
                           std::int32_t d_v, float (*sums)[kMaxHeadDim]) {
  constexpr int kFirst = std::min(kRows, kRowBlock);
  add_all_units<kFirst, true>(rows, next, count, weight, stride, d_k, d_v, sums);
  if constexpr (kRows > kFirst) {
    add_all_units<kRows - kFirst, false>(rows, next, count, weight + kFirst * stride, stride, d_k,
                                         d_v, sums + kFirst);
  }
}

// sums[r] += Σ_c weight[r * stride + c] m_c for int8 rows m [count, d_v]; sums are in order. The
// first is for kVecs vectors of them, the second for up to kRowBlock rows.
template <int kRows, int kVecs>
HWY_INLINE void add_mean_vecs(const std::int8_t* means, std::int64_t count, const float* weight,
                              std::int64_t stride, std::int32_t d_v, std::int32_t begin,
                              float (*sums)[kMaxHeadDim]) {
  const FloatTag d;
  FloatVec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Load(d, sums[r] + begin + v * kLanes);
  }
  for (std::int64_t c = 0; c < count; ++c) {
    FloatVec x[kVecs];
    for (int v = 0; v < kVecs; ++v) x[v] = load_int8(d, means + c * d_v + begin + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec w = hn::Set(d, weight[r * stride + c]);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(w, x[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[r][v], d, sums[r] + begin + v * kLanes);
  }
}

template <int kRows>
HWY_INLINE void add_all_means(const std::int8_t* means, std::int64_t count, const float* weight,
                              std::int64_t stride, std::int32_t d_v, float (*sums)[kMaxHeadDim]) {
  constexpr int kVecs = 2 * kUnitsPerPass<kRows>;
  std::int32_t j = 0;
  for (; j + kVecs * kLanes <= d_v; j += kVecs * kLanes) {
    add_mean_vecs<kRows, kVecs>(means, count, weight, stride, d_v, j, sums);
  }
  for (; j < d_v; j += kLanes) {
    add_mean_vecs<kRows, 1>(means, count, weight, stride, d_v, j, sums);
  }
}

template <int kRows>
HWY_INLINE void add_means(const std::int8_t* means, std::int64_t count, const float* weight,
                          std::int64_t stride, std::int32_t d_v, float (*sums)[kMaxHeadDim]) {
  constexpr int kFirst = std::min(kRows, kRowBlock);
  add_all_means<kFirst>(means, count, weight, stride, d_v, sums);
  if constexpr (kRows > kFirst) {
    add_all_means<kRows - kFirst>(means, count, weight + kFirst * stride, stride, d_v,
                                  sums + kFirst);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
