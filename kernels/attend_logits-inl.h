// kernels/attend_logits-inl.h — q·k of a tile of rows of bf16 that lie anywhere. Included once per
// instruction set.
//
// Up to four queries, and eight lanes or fewer: a row's products with each query are added up by
// lane and then, kLanes sums at a time, across lanes. Eight queries and sixteen lanes: sixteen rows
// are transposed on the way, so that a lane has a row and nothing is added across lanes; that would
// cost three instructions for each sum, the transposition costs two.
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

// Rows of a tile: as many as make kLanes products with kRows queries, or one for each lane.
template <int kRows>
constexpr int kTileRows = kTransposed<kRows> ? kLanes : kLanes / (kRows == 3 ? 4 : kRows);

// kRows queries, split; transposed: [kMaxHeadDim, kRows] in order. What lies beyond d_k is zero.
template <int kRows>
struct Queries {
  // q [kRows, d_k]
  Queries(const float* q, std::int32_t d_k) {
    std::fill_n(values, kRows * kMaxHeadDim, 0.0f);
    for (int r = 0; r < kRows; ++r, q += d_k) {
      for (std::int32_t j = 0; j < d_k; ++j) {
        values[kTransposed<kRows> ? j * kRows + r : r * kMaxHeadDim + split_at(j)] = q[j];
      }
    }
  }
  const float* row(int r) const { return values + r * kMaxHeadDim; }

  HWY_ALIGN float values[kRows * kMaxHeadDim];
};

// Products of one row with all queries, not yet summed over lanes.
template <int kRows>
HWY_INLINE void row_products(const Bf16* row, const Bf16* next, const Queries<kRows>& q,
                             std::int32_t d_k, FloatVec* sum) {
  const FloatTag d;
  for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
  for (int unit = 0; unit < units_of(d_k); ++unit) {
    const Halves k = load_unit(row, unit, d_k);
    prefetch_unit(next, unit);
    for (int r = 0; r < kRows; ++r) {
      sum[r] = hn::MulAdd(k.even, hn::Load(d, q.row(r) + unit * kUnit), sum[r]);
      sum[r] = hn::MulAdd(k.odd, hn::Load(d, q.row(r) + unit * kUnit + kLanes), sum[r]);
    }
  }
}

// Products of a tile's rows with all queries, unit by unit: each query is loaded once for all rows.
template <int kRows>
HWY_INLINE void tile_products(const Bf16* const* rows, const Bf16* const* next,
                              const Queries<kRows>& q, std::int32_t d_k, FloatVec* sum) {
  const FloatTag d;
  constexpr int kTile = kTileRows<kRows>;
  for (int i = 0; i < kLanes; ++i) sum[i] = hn::Zero(d);
  for (int unit = 0; unit < units_of(d_k); ++unit) {
    Halves k[kTile];
    for (int i = 0; i < kTile; ++i) {
      k[i] = load_unit(rows[i], unit, d_k);
      prefetch_unit(next[i], unit);
    }
    for (int r = 0; r < kRows; ++r) {
      const FloatVec even = hn::Load(d, q.row(r) + unit * kUnit);
      const FloatVec odd = hn::Load(d, q.row(r) + unit * kUnit + kLanes);
      for (int i = 0; i < kTile; ++i) {
        FloatVec& s = sum[r * kTile + i];
        s = hn::MulAdd(k[i].even, even, s);
        s = hn::MulAdd(k[i].odd, odd, s);
      }
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

// logit[r * stride + i] = β q_r·k_i for the kTileRows rows i of a tile; `next` rows are fetched.
// One or two queries read row after row, as memory likes it.
template <int kRows>
HWY_INLINE void tile_logits(const Bf16* const* rows, const Bf16* const* next,
                            const Queries<kRows>& q, std::int32_t d_k, float beta, float* logit,
                            std::int64_t stride) {
  const FloatTag d;
  constexpr int kTile = kTileRows<kRows>;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if constexpr (kTransposed<kRows>) {
    FloatVec sum[kRows];
    transposed_products(rows, next, q, d_k, sum);
    for (int r = 0; r < kRows; ++r) {
      hn::Store(hn::Mul(sum[r], hn::Set(d, beta)), d, logit + r * stride);
    }
    return;
  }
#endif
  FloatVec sum[kLanes];
  if constexpr (kRows > 2) {
    tile_products<kRows>(rows, next, q, d_k, sum);
  } else {
    HWY_ALIGN float products[kLanes * kLanes] = {};
    for (int i = 0; i < kTile; ++i) {
      FloatVec of_row[kRows];
      row_products<kRows>(rows[i], next[i], q, d_k, of_row);
      for (int r = 0; r < kRows; ++r) hn::Store(of_row[r], d, products + (r * kTile + i) * kLanes);
    }
    for (int i = 0; i < kLanes; ++i) sum[i] = hn::Load(d, products + i * kLanes);
  }
  const FloatVec all = hn::Mul(sum_each(d, sum), hn::Set(d, beta));
  if constexpr (kRows == 1) {
    hn::StoreU(all, d, logit);
  } else {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(all, d, lanes);
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kTile; ++i) logit[r * stride + i] = lanes[r * kTile + i];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
