// Bound: the bytes of the vectors that are scanned; k-means: multiply-adds.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/baselines/scan_kernels.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <algorithm>
#include <cmath>

#include "bench/baselines/scan_kernels.h"
#include "hwy/highway.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void scan_int8(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor,
               float* out, std::int64_t stride) {
  plain::scan(vectors, q, rows, factor, out, stride);
}
void scan_bf16(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor,
               float* out, std::int64_t stride) {
  plain::scan(vectors, q, rows, factor, out, stride);
}
void votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
           const float* exact_lse, float* scratch, float* vote) {
  plain::softmax_votes(logits, rows, count, stride, exact_lse, scratch, vote);
}
void top(const float* score, std::int32_t count, std::int32_t wanted, Scored* best) {
  plain::top_scores(score, count, wanted, best);
}
void dots(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d, const float* q,
          float factor, float* out) {
  plain::dot_rows(rows, stride, count, d, q, factor, out);
}
void nearest(const float* points, std::int32_t count, const Centroids& centroids,
             std::int32_t* out) {
  plain::nearest_centroids(points, count, centroids, out);
}
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

constexpr bool kWide = HWY_MAX_BYTES >= 64;  // 32 registers

using IntVec = hn::Vec<IntTag>;

// ------------------------------------------------------------------------------------- int8 scan

// sum += Σ_b (vector byte b - 128 or not) × query byte b in every 32-bit lane. With VNNI the +128
// of the stored bytes stays in, else it is taken out here: kKeepsOffset.
#if HWY_TARGET == HWY_AVX3_DL
constexpr bool kKeepsOffset = true;
HWY_INLINE IntVec dot4(IntVec sum, IntVec bytes, IntVec query) {
  // The compiler does not know that this target has VNNI.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(bytes.raw), "v"(query.raw));
  return sum;
}
#elif HWY_TARGET == HWY_AVX2
// |q| × ±k in 16 bits: two products of at most 127 × 127 fit. The caller's bytes are signed here.
constexpr bool kKeepsOffset = false;
HWY_INLINE IntVec dot4(IntVec sum, IntVec bytes, IntVec query) {
  const __m256i flipped = _mm256_xor_si256(bytes.raw, _mm256_set1_epi8(-128));
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8(query.raw), _mm256_sign_epi8(flipped, query.raw));
  return IntVec{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
#elif HWY_TARGET == HWY_AVX3
// No sign instruction here: even and odd bytes as 16-bit words.
constexpr bool kKeepsOffset = true;
HWY_INLINE IntVec dot4(IntVec sum, IntVec bytes, IntVec query) {
  const __m512i even = _mm512_and_si512(bytes.raw, _mm512_set1_epi16(255));
  const __m512i odd = _mm512_srli_epi16(bytes.raw, 8);
  const __m512i q_even = _mm512_srai_epi16(_mm512_slli_epi16(query.raw, 8), 8);
  const __m512i q_odd = _mm512_srai_epi16(query.raw, 8);
  const __m512i part =
      _mm512_add_epi32(_mm512_madd_epi16(even, q_even), _mm512_madd_epi16(odd, q_odd));
  return IntVec{_mm512_add_epi32(sum.raw, part)};
}
#else
constexpr bool kKeepsOffset = true;
HWY_INLINE IntVec dot4(IntVec sum, IntVec bytes, IntVec query) {
  const IntTag d;
  const UintTag du;
  const auto unsigned_bytes = hn::BitCast(du, bytes);
  const auto mask = hn::Set(du, 255u);
  const auto product = [&](auto k, auto q)
                           HWY_ATTR { return hn::Mul(hn::BitCast(d, hn::And(k, mask)), q); };
  sum = hn::Add(sum, product(unsigned_bytes, hn::ShiftRight<24>(hn::ShiftLeft<24>(query))));
  sum = hn::Add(sum, product(hn::ShiftRight<8>(unsigned_bytes),
                             hn::ShiftRight<24>(hn::ShiftLeft<16>(query))));
  sum = hn::Add(sum, product(hn::ShiftRight<16>(unsigned_bytes),
                             hn::ShiftRight<24>(hn::ShiftLeft<8>(query))));
  return hn::Add(sum, product(hn::ShiftRight<24>(unsigned_bytes), hn::ShiftRight<24>(query)));
}
#endif

// kRows query rows over all panels, kVecs registers of vectors at a time.
template <int kRows, int kVecs>
HWY_NOINLINE void scan_int8_rows(const Int8Vectors& vectors, const RoundedQuery& query,
                                 std::int32_t first_row, float factor, float* out,
                                 std::int64_t stride) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::int32_t words = vectors.d / 4;
  const auto* q = reinterpret_cast<const std::int32_t*>(
      query.values.data() + static_cast<std::int64_t>(first_row) * vectors.d);
  for (std::int32_t first = 0; first < vectors.count; first += kScanPanel) {
    const auto* panel = reinterpret_cast<const std::int32_t*>(
        vectors.panels.data() + static_cast<std::int64_t>(first) * vectors.d);
    for (std::int32_t lane = 0; lane < kScanPanel; lane += kVecs * lanes) {
      IntVec sum[kRows][kVecs];
      for (int r = 0; r < kRows; ++r) {
        const std::size_t row = static_cast<std::size_t>(first_row + r);
        for (IntVec& s : sum[r]) s = hn::Set(di, kKeepsOffset ? -query.offset[row] : 0);
      }
      for (std::int32_t g = 0; g < words; ++g) {
        IntVec bytes[kVecs];
        for (int v = 0; v < kVecs; ++v) {
          bytes[v] = hn::LoadU(di, panel + g * kScanPanel + lane + v * lanes);
        }
        for (int r = 0; r < kRows; ++r) {
          const IntVec x = hn::Set(di, q[r * words + g]);
          for (int v = 0; v < kVecs; ++v) sum[r][v] = dot4(sum[r][v], bytes[v], x);
        }
      }
      for (int v = 0; v < kVecs; ++v) {
        const std::int32_t i = first + lane + v * lanes;
        const FloatVec scale = hn::LoadU(d, vectors.scale.data() + i);
        for (int r = 0; r < kRows; ++r) {
          const std::size_t row = static_cast<std::size_t>(first_row + r);
          const FloatVec whole = hn::Mul(scale, hn::Set(d, query.scale[row] * factor));
          hn::StoreU(hn::Mul(hn::ConvertTo(d, sum[r][v]), whole), d, out + r * stride + i);
        }
      }
    }
  }
}

// ------------------------------------------------------------------------------------- bf16 scan

template <int kRows, int kVecs>
HWY_NOINLINE void scan_bf16_rows(const Bf16Vectors& vectors, const float* q, float factor,
                                 float* out, std::int64_t stride) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t first = 0; first < vectors.count; first += kScanPanel) {
    const Bf16* panel = vectors.panels.data() + static_cast<std::int64_t>(first) * vectors.d;
    for (std::int32_t lane = 0; lane < kScanPanel; lane += kVecs * lanes) {
      FloatVec sum[kRows][kVecs];
      for (int r = 0; r < kRows; ++r) {
        for (FloatVec& s : sum[r]) s = hn::Zero(d);
      }
      for (std::int32_t j = 0; j < vectors.d; ++j) {
        FloatVec k[kVecs];
        for (int v = 0; v < kVecs; ++v) {
          k[v] = load_bf16(d, panel + j * kScanPanel + lane + v * lanes);
        }
        for (int r = 0; r < kRows; ++r) {
          const FloatVec x = hn::Set(d, q[static_cast<std::int64_t>(r) * vectors.d + j]);
          for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(k[v], x, sum[r][v]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVecs; ++v) {
          hn::StoreU(hn::Mul(sum[r][v], hn::Set(d, factor)), d,
                     out + r * stride + first + lane + v * lanes);
        }
      }
    }
  }
}

// ------------------------------------------------------------------------------------- centroids

template <int kPoints>
HWY_INLINE void nearest_of(const float* points, const Centroids& centroids, std::int32_t* out) {
  const FloatTag d;
  const IntTag di;
  constexpr int kVecs = 2;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  FloatVec best[kPoints];
  IntVec best_at[kPoints];
  for (int t = 0; t < kPoints; ++t) {
    best[t] = hn::Set(d, -HUGE_VALF);
    best_at[t] = hn::Zero(di);
  }
  for (std::int32_t first = 0; first < centroids.count; first += kVecs * lanes) {
    const float* panel =
        centroids.panels.data() +
        static_cast<std::int64_t>(first / Centroids::kPanel) * Centroids::kPanel * centroids.d +
        first % Centroids::kPanel;
    FloatVec sum[kPoints][kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const FloatVec bias = hn::Neg(hn::LoadU(d, centroids.bias.data() + first + v * lanes));
      for (int t = 0; t < kPoints; ++t) sum[t][v] = bias;
    }
    for (std::int32_t j = 0; j < centroids.d; ++j) {
      const FloatVec c0 = hn::LoadU(d, panel + j * Centroids::kPanel);
      const FloatVec c1 = hn::LoadU(d, panel + j * Centroids::kPanel + lanes);
      for (int t = 0; t < kPoints; ++t) {
        const FloatVec x = hn::Set(d, points[static_cast<std::int64_t>(t) * centroids.d + j]);
        sum[t][0] = hn::MulAdd(c0, x, sum[t][0]);
        sum[t][1] = hn::MulAdd(c1, x, sum[t][1]);
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      const IntVec index = hn::Iota(di, first + v * lanes);
      for (int t = 0; t < kPoints; ++t) {
        const auto better = hn::Gt(sum[t][v], best[t]);
        best[t] = hn::IfThenElse(better, sum[t][v], best[t]);
        best_at[t] = hn::IfThenElse(hn::RebindMask(di, better), index, best_at[t]);
      }
    }
  }
  for (int t = 0; t < kPoints; ++t) {
    const auto is_best = hn::RebindMask(di, hn::Eq(best[t], hn::MaxOfLanes(d, best[t])));
    const auto index = hn::IfThenElse(is_best, best_at[t], hn::Set(di, centroids.count - 1));
    out[t] = hn::GetLane(hn::MinOfLanes(di, index));
  }
}

}  // namespace

void scan_int8(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor,
               float* out, std::int64_t stride) {
  const RoundedQuery query = round_query(q, rows, vectors.d);
  std::int32_t r = 0;
  for (; kWide && r + 8 <= rows; r += 8) {
    scan_int8_rows<8, 2>(vectors, query, r, factor, out + r * stride, stride);
  }
  for (; r + 4 <= rows; r += 4) {
    scan_int8_rows<4, 2>(vectors, query, r, factor, out + r * stride, stride);
  }
  for (; r + 2 <= rows; r += 2) {
    scan_int8_rows<2, 4>(vectors, query, r, factor, out + r * stride, stride);
  }
  if (r < rows) scan_int8_rows<1, 4>(vectors, query, r, factor, out + r * stride, stride);
}

void scan_bf16(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor,
               float* out, std::int64_t stride) {
  const auto query = [&](std::int32_t r) { return q + static_cast<std::int64_t>(r) * vectors.d; };
  std::int32_t r = 0;
  for (; kWide && r + 8 <= rows; r += 8) {
    scan_bf16_rows<8, 2>(vectors, query(r), factor, out + r * stride, stride);
  }
  for (; r + 4 <= rows; r += 4) {
    scan_bf16_rows<4, 2>(vectors, query(r), factor, out + r * stride, stride);
  }
  for (; r < rows; ++r) {
    scan_bf16_rows<1, 4>(vectors, query(r), factor, out + r * stride, stride);
  }
}

void votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
           const float* exact_lse, float* scratch, float* vote) {
  if (rows == 1) {
    std::copy_n(logits, count, vote);
    return;
  }
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t r = 0; r < rows; ++r) {
    const float* row = logits + r * stride;
    const float exact = exact_lse == nullptr ? -HUGE_VALF : exact_lse[r];
    const float most = std::max(max_of(d, row, count), exact);
    const FloatVec largest = hn::Set(d, most);
    FloatVec sum = hn::Zero(d);
    for (std::int32_t i = 0; i < count; i += lanes) {
      const FloatVec x = load_first(d, row + i, count - i, -HUGE_VALF);
      const FloatVec e = exp_lanes(d, hn::Sub(x, largest));
      store_first(d, e, count - i, scratch + i);
      sum = hn::Add(sum, e);
    }
    const FloatVec weight = hn::Set(d, 1 / (sum_lanes(d, sum) + std::exp(exact - most)));
    for (std::int32_t i = 0; i < count; i += lanes) {
      const FloatVec before = r == 0 ? hn::Zero(d) : load_first(d, vote + i, count - i, 0);
      const FloatVec e = load_first(d, scratch + i, count - i, 0);
      store_first(d, hn::MulAdd(e, weight, before), count - i, vote + i);
    }
  }
}

// Scores are filtered against the worst of the best so far, so most cost one comparison.
void top(const float* score, std::int32_t count, std::int32_t wanted, Scored* best) {
  if (wanted == 0) return;
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::int64_t room = top_room(wanted) - lanes;
  std::int64_t kept = 0;
  float threshold = -HUGE_VALF;
  const auto cut = [&] {
    std::nth_element(best, best + wanted - 1, best + kept, [](const Scored& a, const Scored& b) {
      return a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    threshold = best[wanted - 1].score;
    kept = wanted;
  };
  for (std::int32_t i = 0; i < count; i += lanes) {
    // The first ones enter whatever they are.
    const FloatVec x = load_first(d, score + i, count - i, -HUGE_VALF);
    if (kept >= wanted && hn::AllFalse(d, hn::Gt(x, hn::Set(d, threshold)))) continue;
    for (std::int32_t k = i; k < std::min(i + lanes, count); ++k) {
      if (kept < wanted || score[k] > threshold) best[kept++] = {score[k], k};
    }
    if (kept > room) cut();
  }
  if (kept > wanted) cut();
}

void dots(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d_k,
          const float* q, float factor, float* out) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const auto dot = [&](auto several, std::int32_t i) HWY_ATTR {
    FloatVec sum[several()];
    for (FloatVec& s : sum) s = hn::Zero(d);
    for (std::int32_t j = 0; j < d_k; j += lanes) {
      const FloatVec x = hn::LoadU(d, q + j);
      for (int k = 0; k < several(); ++k) {
        sum[k] = hn::MulAdd(load_bf16(d, rows + (i + k) * stride + j), x, sum[k]);
      }
    }
    for (int k = 0; k < several(); ++k) out[i + k] = factor * sum_lanes(d, sum[k]);
  };
  std::int32_t i = 0;
  for (; i + 4 <= count; i += 4) dot(std::integral_constant<int, 4>(), i);
  for (; i < count; ++i) dot(std::integral_constant<int, 1>(), i);
}

void nearest(const float* points, std::int32_t count, const Centroids& centroids,
             std::int32_t* out) {
  constexpr int kPoints = kWide ? 8 : 4;
  const auto at = [&](std::int32_t i) {
    return points + static_cast<std::int64_t>(i) * centroids.d;
  };
  std::int32_t i = 0;
  for (; i + kPoints <= count; i += kPoints) nearest_of<kPoints>(at(i), centroids, out + i);
  for (; i < count; ++i) nearest_of<1>(at(i), centroids, out + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(scan_int8);
HWY_EXPORT(scan_bf16);
HWY_EXPORT(votes);
HWY_EXPORT(top);
HWY_EXPORT(dots);
HWY_EXPORT(nearest);

void scan(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride) {
  HWY_DYNAMIC_DISPATCH(scan_int8)(vectors, q, rows, factor, out, stride);
}
void scan(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride) {
  HWY_DYNAMIC_DISPATCH(scan_bf16)(vectors, q, rows, factor, out, stride);
}
void softmax_votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
                   const float* exact_lse, float* scratch, float* vote) {
  HWY_DYNAMIC_DISPATCH(votes)(logits, rows, count, stride, exact_lse, scratch, vote);
}
void top_scores(const float* score, std::int32_t count, std::int32_t wanted, Scored* best) {
  HWY_DYNAMIC_DISPATCH(top)(score, count, wanted, best);
}
void dot_rows(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d,
              const float* q, float factor, float* out) {
  HWY_DYNAMIC_DISPATCH(dots)(rows, stride, count, d, q, factor, out);
}
void nearest_centroids(const float* points, std::int32_t count, const Centroids& centroids,
                       std::int32_t* nearest_out) {
  HWY_DYNAMIC_DISPATCH(nearest)(points, count, centroids, nearest_out);
}

}  // namespace icefield
#endif  // HWY_ONCE
