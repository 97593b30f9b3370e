// kernels/attend_logits-inl.h — q·k of a tile of rows of bf16 that lie anywhere. Included once per
// instruction set.
//
// Up to four queries, or eight lanes and fewer: a row's products with each query are added up by
// lane and kept; the sums across lanes, of kLanes rows at a time, are made afterwards, so that the
// products of the next rows do not wait for them. Eight queries and sixteen lanes: sixteen
// rows are transposed on the way, so that a lane has a row and nothing is added across lanes; that
// would cost three instructions for each sum, the transposition costs two.
#if defined(ICEFIELD_KERNELS_ATTEND_LOGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_LOGITS_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_LOGITS_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_LOGITS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

template <int kRows>
constexpr bool kTransposed = kLanes == 16 && kRows == 8;

constexpr int kTileRows = kLanes;

// kRows queries, split, those of a unit side by side; transposed: [kMaxHeadDim, kRows] in order.
// What lies beyond d_k is zero.
template <int kRows>
struct Queries {
  // q [kRows, d_k]
  Queries(const float* q, std::int32_t d_k) {
    std::fill_n(values, kRows * kMaxHeadDim, 0.0f);
    for (int r = 0; r < kRows; ++r, q += d_k) {
      for (std::int32_t j = 0; j < d_k; ++j) {
        const std::int32_t in_unit = (j / kUnit * kRows + r) * kUnit + split_at(j % kUnit);
        values[kTransposed<kRows> ? j * kRows + r : in_unit] = q[j];
      }
    }
  }
  const float* at(int unit, int r) const { return values + (unit * kRows + r) * kUnit; }

  HWY_ALIGN float values[kRows * kMaxHeadDim];
};

// Queries whose products with rows are made together, and of how many rows: as many as have room in
// the registers. One or two queries read row after row, as memory likes it.
template <int kRows>
constexpr int kQueriesAtOnce = kRows < 4 ? kRows : 4;
template <int kRows>
constexpr int kRowsAtOnce = kRows <= 2 ? 1 : kLanes / 4;

// Products of rows with queries from kFirst on, not yet summed over lanes, into products [queries,
// kTileRows, kLanes]. The first queries fetch the `next` rows.
template <int kRows, int kFirst>
HWY_INLINE void row_products(const Bf16* const* rows, const Bf16* const* next,
                             const Queries<kRows>& q, std::int32_t d_k, float* products) {
  const FloatTag d;
  constexpr int kQueries = kQueriesAtOnce<kRows>;
  constexpr int kCount = kRowsAtOnce<kRows>;
  FloatVec sum[kQueries][kCount];
  for (auto& of_query : sum) {
    for (FloatVec& s : of_query) s = hn::Zero(d);
  }
  for (int unit = 0; unit < units_of(d_k); ++unit) {
    Halves k[kCount];
    for (int i = 0; i < kCount; ++i) {
      k[i] = load_unit(rows[i], unit, d_k);
      if constexpr (kFirst == 0) prefetch_unit(next[i], unit);
    }
    for (int r = 0; r < kQueries; ++r) {
      FloatVec even = hn::Load(d, q.at(unit, kFirst + r));
      FloatVec odd = hn::Load(d, q.at(unit, kFirst + r) + kLanes);
      if constexpr (kCount > 1) {
        even = in_register(even);
        odd = in_register(odd);
      }
      for (int i = 0; i < kCount; ++i) sum[r][i] = hn::MulAdd(k[i].even, even, sum[r][i]);
      for (int i = 0; i < kCount; ++i) sum[r][i] = hn::MulAdd(k[i].odd, odd, sum[r][i]);
    }
  }
  for (int r = 0; r < kQueries; ++r) {
    for (int i = 0; i < kCount; ++i) {
      hn::Store(sum[r][i], d, products + (r * kTileRows + i) * kLanes);
    }
  }
}

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
using UintVec = hn::Vec<UintTag>;

// Blocks of 128 bits: those of `a`, then those of `b`, with even or odd numbers.
HWY_INLINE UintVec even_blocks(UintVec a, UintVec b) {
  return UintVec{_mm512_shuffle_i32x4(a.raw, b.raw, 0x88)};
}
HWY_INLINE UintVec odd_blocks(UintVec a, UintVec b) {
  return UintVec{_mm512_shuffle_i32x4(a.raw, b.raw, 0xdd)};
}

// sum[r] += q_r·k over the two dimensions in `words` of 16 rows; q [2, 8].
HWY_INLINE void add_products(UintVec words, const float* q, FloatVec* sum) {
  const FloatTag d;
  const FloatVec even = hn::BitCast(d, hn::ShiftLeft<16>(words));
  const FloatVec odd = hn::BitCast(d, hn::And(words, hn::Set(UintTag(), 0xffff0000u)));
  for (int r = 0; r < 8; ++r) sum[r] = hn::MulAdd(even, hn::Set(d, q[r]), sum[r]);
  for (int r = 0; r < 8; ++r) sum[r] = hn::MulAdd(odd, hn::Set(d, q[8 + r]), sum[r]);
}

// sum[r] = q_r·k of 16 rows in 16 lanes.
HWY_INLINE void transposed_products(const Bf16* const* rows, const Bf16* const* next,
                                    const Queries<8>& q, std::int32_t d_k, FloatVec* sum) {
  const UintTag du;
  const hn::Repartition<std::uint64_t, UintTag> d64;
  const auto lower = [&](UintVec a, UintVec b) HWY_ATTR {
    return hn::BitCast(du, hn::InterleaveLower(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  const auto upper = [&](UintVec a, UintVec b) HWY_ATTR {
    return hn::BitCast(du, hn::InterleaveUpper(d64, hn::BitCast(d64, a), hn::BitCast(d64, b)));
  };
  for (int r = 0; r < 8; ++r) sum[r] = hn::Zero(FloatTag());
  for (int unit = 0; unit < units_of(d_k); ++unit) {
    // Word 4 b + e of rows 4 g to 4 g + 3 in block b of words[e][g].
    UintVec words[4][4];
    for (int g = 0; g < 4; ++g) {
      UintVec x[4];
      for (int i = 0; i < 4; ++i) x[i] = load_words(rows[4 * g + i], unit, d_k);
      const UintVec a = hn::InterleaveLower(du, x[0], x[1]);
      const UintVec b = hn::InterleaveUpper(du, x[0], x[1]);
      const UintVec c = hn::InterleaveLower(du, x[2], x[3]);
      const UintVec e = hn::InterleaveUpper(du, x[2], x[3]);
      words[0][g] = lower(a, c);
      words[1][g] = upper(a, c);
      words[2][g] = lower(b, e);
      words[3][g] = upper(b, e);
    }
    const auto add = [&](int word, UintVec both) HWY_ATTR {
      prefetch_unit(next[word], unit);  // one at a time: they would wait for each other
      add_products(both, q.values + (unit * kUnit + 2 * word) * 8, sum);
    };
    const auto add_every_fourth = [&](int e) HWY_ATTR {
      const UintVec even_low = even_blocks(words[e][0], words[e][1]);
      const UintVec even_high = even_blocks(words[e][2], words[e][3]);
      const UintVec odd_low = odd_blocks(words[e][0], words[e][1]);
      const UintVec odd_high = odd_blocks(words[e][2], words[e][3]);
      add(e, even_blocks(even_low, even_high));
      add(e + 4, even_blocks(odd_low, odd_high));
      add(e + 8, odd_blocks(even_low, even_high));
      add(e + 12, odd_blocks(odd_low, odd_high));
    };
    add_every_fourth(0);
    add_every_fourth(1);
    add_every_fourth(2);
    add_every_fourth(3);
  }
}
#endif

// logit[r * stride + i] = β q_r·k_i for the rows i of a tile and the queries r from kFirst on.
template <int kRows, int kFirst>
HWY_INLINE void summed_logits(const Bf16* const* rows, const Bf16* const* next,
                              const Queries<kRows>& q, std::int32_t d_k, float beta, float* logit,
                              std::int64_t stride) {
  const FloatTag d;
  HWY_ALIGN float products[kQueriesAtOnce<kRows> * kTileRows * kLanes];
  for (int i = 0; i < kTileRows; i += kRowsAtOnce<kRows>) {
    row_products<kRows, kFirst>(rows + i, next + i, q, d_k, products + i * kLanes);
  }
  for (int r = 0; r < kQueriesAtOnce<kRows>; ++r) {
    FloatVec of_row[kTileRows];
    for (int i = 0; i < kTileRows; ++i) {
      of_row[i] = hn::Load(d, products + (r * kTileRows + i) * kLanes);
    }
    hn::Store(hn::Mul(sum_each(d, of_row), hn::Set(d, beta)), d, logit + (kFirst + r) * stride);
  }
}

// logit[r * stride + i] = β q_r·k_i for the rows i of a tile; `next` rows are fetched. `logit` and
// stride are whole vectors.
template <int kRows>
HWY_INLINE void tile_logits(const Bf16* const* rows, const Bf16* const* next,
                            const Queries<kRows>& q, std::int32_t d_k, float beta, float* logit,
                            std::int64_t stride) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if constexpr (kTransposed<kRows>) {
    const FloatTag d;
    FloatVec sum[kRows];
    transposed_products(rows, next, q, d_k, sum);
    for (int r = 0; r < kRows; ++r) {
      hn::Store(hn::Mul(sum[r], hn::Set(d, beta)), d, logit + r * stride);
    }
    return;
  }
#endif
  summed_logits<kRows, 0>(rows, next, q, d_k, beta, logit, stride);
  if constexpr (kRows > kQueriesAtOnce<kRows>) {
    summed_logits<kRows, 4>(rows, next, q, d_k, beta, logit, stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
