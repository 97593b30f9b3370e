// kernels/simd_dot-inl.h — dot products of small integers, which Highway 1.0.3 lacks on x86.
// Included once per instruction set, after simd-inl.h; in the namespace of the target.
//
// pair_dot: int16 × int16 by neighbouring pairs; means against a query of 16 bits.
// CodeSum:  sums of uint8 (at most 12) × int8 by neighbouring fours; codes against a query of 8
//           bits. AVX-512 with VNNI adds fours into 32 bits, which hold codes times 64 as well;
//           others add pairs into 16 bits, which hold what kCodeSumSteps steps give and are
//           widened by close_codes().
#if defined(ICEFIELD_KERNELS_SIMD_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_SIMD_DOT_INL_H_
#undef ICEFIELD_KERNELS_SIMD_DOT_INL_H_
#else
#define ICEFIELD_KERNELS_SIMD_DOT_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

using ShortTag = hn::Repartition<std::int16_t, IntTag>;
using ByteTag = hn::Repartition<std::int8_t, IntTag>;
using UByteTag = hn::Repartition<std::uint8_t, IntTag>;
using IntVec = hn::Vec<IntTag>;
using ShortVec = hn::Vec<ShortTag>;
using ByteVec = hn::Vec<ByteTag>;
using UByteVec = hn::Vec<UByteTag>;

// sum[i] + a[2i] b[2i] + a[2i+1] b[2i+1]
HWY_INLINE IntVec pair_dot(IntVec sum, ShortVec a, ShortVec b) {
#if HWY_TARGET == HWY_AVX3_DL
  // The compiler does not know that this target has VNNI.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#elif HWY_TARGET == HWY_AVX3
  return hn::Add(sum, IntVec{_mm512_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sum, IntVec{_mm256_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_NEON
  const int32x4_t low = vmull_s16(vget_low_s16(a.raw), vget_low_s16(b.raw));
  const int32x4_t high = vmull_s16(vget_high_s16(a.raw), vget_high_s16(b.raw));
  return hn::Add(sum, IntVec(vpaddq_s32(low, high)));
#else
#error "no pair_dot for this target"
#endif
}

#if HWY_TARGET == HWY_AVX3_DL
constexpr bool kWideCodeSums = true;
template <int kSums>
constexpr int kCodeSumSteps = 16;  // all there are
using CodeSum = IntVec;
HWY_INLINE CodeSum zero_codes() { return hn::Zero(IntTag()); }

HWY_INLINE CodeSum add_codes(CodeSum sum, UByteVec codes, ByteVec q) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "v"(q.raw));
  return sum;
}
// total + Σ_k sum[k] / 4^k, k < kSums.
template <int kSums>
HWY_INLINE IntVec close_codes(IntVec total, const CodeSum* sum) {
  total = hn::Add(total, sum[0]);
  if constexpr (kSums == 4) {
    const IntVec last = hn::Add(hn::ShiftRight<4>(sum[2]), hn::ShiftRight<6>(sum[3]));
    total = hn::Add(total, hn::Add(hn::ShiftRight<2>(sum[1]), last));
  }
  return total;
}
#else
constexpr bool kWideCodeSums = false;
// Steps of 16 dimensions before sums must be closed: 16 bits hold four products of 2 × 3 × 127 ten
// times, or two of 2 × 12 × 127 four times where sums are two.
template <int kSums>
constexpr int kCodeSumSteps = kSums == 1 ? 10 : 4;
using CodeSum = ShortVec;
HWY_INLINE CodeSum zero_codes() { return hn::Zero(ShortTag()); }

HWY_INLINE CodeSum add_codes(CodeSum sum, UByteVec codes, ByteVec q) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(sum, ShortVec{_mm512_maddubs_epi16(codes.raw, q.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sum, ShortVec{_mm256_maddubs_epi16(codes.raw, q.raw)});
#else
  const int8x16_t a = vreinterpretq_s8_u8(codes.raw);
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(q.raw));
  const int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(q.raw));
  return hn::Add(sum, ShortVec(vpaddq_s16(low, high)));
#endif
}
template <int kSums>
HWY_INLINE IntVec close_codes(IntVec total, const CodeSum* sum) {
  ShortVec whole = sum[0];
  if constexpr (kSums == 2) whole = hn::Add(whole, hn::ShiftRight<2>(sum[1]));
  return pair_dot(total, whole, hn::Set(ShortTag(), 1));
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
