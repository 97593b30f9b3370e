// kernels/attend_tiles-inl.h — exact rows for eight query rows with AMX. Included once per
// instruction set, for those that may have it.
//
// A tile product is 16 rows of 32 bf16 values times 16 columns of as many. Queries and weights are
// fp32, so they are split into three bf16 parts that add up to them, within 2^-25: two would leave
// 2^-17, and a part of a context that is attended by tiles could not be merged with one that is
// attended by vectors as if both were one.
//   logits  keys [16 rows, 32 dimensions] · queries [32 dimensions, 8 first and 8 second parts],
//           and once more with the third parts
//   out     weights [8 first and 8 second parts, 32 rows] · values [32 rows, 16 dimensions],
//           and once more with the third parts
// Of a right operand, pairs of dimensions or rows stand side by side. Rows lie anywhere, so they
// are copied on the way; that, and the softmax, is all that vectors have to do.
//
// Bound: memory. 4 096 scattered rows of 128 dimensions take 60 us from the L1 cache, 92 to 103
// from L2 and 116 to 120 from L3, where reading them alone takes 42 to 53 and 76; vectors take 128
// and 145.
#if defined(ICEFIELD_KERNELS_ATTEND_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_TILES_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_TILES_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_TILES_INL_H_
#endif

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/attend_softmax-inl.h"
#include "kernels/attend_tail-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/simd_tile-inl.h"

#if HWY_TARGET <= HWY_AVX3_DL  // of x86
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

constexpr int kTileQueries = 8;
constexpr int kTileBlock = 32;  // rows of a softmax block
static_assert(kTileQueries == kMostRows && kTileDims == kUnit);

// Where dimension `dim` stands in a row of sums: values of two rows are interleaved inside of 128
// bits, so four dimensions go to one tile and four to the next.
constexpr std::int32_t tiled_at(std::int32_t dim) {
  return dim / 32 * 32 + dim / 4 % 2 * 16 + dim / 8 % 4 * 4 + dim % 4;
}

// x = first + second + third; the first two are bf16 numbers.
struct Split {
  HWY_INLINE explicit Split(FloatVec x) {
    const FloatTag d;
    first = rounded(x);
    const FloatVec rest = hn::Sub(x, first);
    second = rounded(rest);
    third = hn::Sub(rest, second);
  }

  FloatVec first;
  FloatVec second;
  FloatVec third;

 private:
  static HWY_INLINE FloatVec rounded(FloatVec x) {
    const UintTag du;
    const auto bits = hn::Add(hn::BitCast(du, x), hn::Set(du, 0x8000u));
    return hn::BitCast(FloatTag(), hn::And(bits, hn::Set(du, 0xffff0000u)));
  }
};

// Eight queries as right operands: unit u, dimensions 32 u + 2 p and 32 u + 2 p + 1 in row p.
template <int kDim>
struct TileQueries {
  static constexpr int kUnits = units_of(kDim);

  explicit TileQueries(const float* q) {  // [8, kDim]
    const FloatTag d;
    for (int unit = 0; unit < kUnits; ++unit) {
      FloatVec two[kTileHeight];
      FloatVec third[kTileHeight];
      for (int r = 0; r < kTileQueries; ++r) {
        const float* at = q + r * kDim + unit * kUnit;
        const Split a(hn::LoadU(d, at));
        const Split b(load_first(d, at + kLanes, kDim - unit * kUnit - kLanes, 0));
        two[r] = hn::BitCast(d, pack_bf16(a.first, b.first));
        two[kTileQueries + r] = hn::BitCast(d, pack_bf16(a.second, b.second));
        third[r] = hn::BitCast(d, pack_bf16(a.third, b.third));
        third[kTileQueries + r] = hn::Zero(d);
      }
      transpose(d, two);
      transpose(d, third);
      for (int p = 0; p < kTileHeight; ++p) {
        hn::Store(hn::BitCast(WordTag(), two[p]), WordTag(), parts[unit][p]);
        hn::Store(hn::LowerHalf(hn::BitCast(WordTag(), third[p])), hn::Half<WordTag>(),
                  thirds[unit][p]);
      }
    }
  }

  HWY_ALIGN Bf16 parts[kUnits][kTileHeight][kTileDims];
  HWY_ALIGN Bf16 thirds[kUnits][kTileHeight][kTileDims / 2];
};

// Blocks of rows, copied as tiles want them, a few rows at a time between other work: memory, tiles
// and vectors are waited for side by side. There is one place for keys and one for values, because
// more of them would push each other out of the L1 cache (32 KB instead of 16: half as fast).
template <int kDim>
class TileRows {
 public:
  static constexpr int kUnits = units_of(kDim);

  explicit TileRows(const AttendGroup& group) : reader_(group, 2 * kDim) {
    after_->count = reader_.next(after_->rows, kTileBlock);
    std::fill(after_->rows + after_->count, after_->rows + kTileBlock, after_->rows[0]);
    std::swap(next_, after_);
    copy_keys<1>(0);
  }

  // Goes to the next block, of which keys must be there; returns how many rows it has.
  int advance() {
    std::swap(now_, next_);
    std::swap(next_, after_);
    after_->count = 0;
    return now_->count;
  }
  // Part `step` of kSteps of the keys of the next block; of the one after it, one line is fetched
  // of each row: the processor does the rest, faster than if it were asked for every line.
  template <int kSteps>
  HWY_INLINE void copy_keys(int step) {
    if (next_->count == 0) return;
    const WordTag d16;
    const int begin = step * kTileBlock / kSteps;
    const int end = (step + 1) * kTileBlock / kSteps;
    const int count = reader_.next(after_->rows + begin, end - begin);
    after_->count += count;
    std::fill(after_->rows + begin + count, after_->rows + end, next_->rows[0]);
    for (int i = begin; i < end; ++i) {
      __builtin_prefetch(after_->rows[i], 0, 3);
      for (int unit = 0; unit < kUnits; ++unit) {
        hn::Store(hn::BitCast(d16, load_words(next_->rows[i], unit, kDim)), d16,
                  keys[i] + unit * kUnit);
      }
    }
  }
  // Part `step` of kSteps of the values of this block.
  template <int kSteps>
  HWY_INLINE void copy_values(int step) {
    constexpr int kPairs = kTileBlock / 2;
    const WordTag d16;
    for (int p = step * kPairs / kSteps; p < (step + 1) * kPairs / kSteps; ++p) {
      const Bf16* a = now_->rows[2 * p] + kDim;
      const Bf16* b = now_->rows[2 * p + 1] + kDim;
      for (int unit = 0; unit < kUnits; ++unit) {
        const auto x = hn::BitCast(d16, load_words(a, unit, kDim));
        const auto y = hn::BitCast(d16, load_words(b, unit, kDim));
        hn::Store(hn::InterleaveLower(d16, x, y), d16, values[2 * unit][p]);
        hn::Store(hn::InterleaveUpper(d16, x, y), d16, values[2 * unit + 1][p]);
      }
    }
  }

  HWY_ALIGN Bf16 keys[kTileBlock][kUnits * kUnit];
  HWY_ALIGN Bf16 values[2 * kUnits][kTileBlock / 2][kTileDims];  // pairs of rows

 private:
  struct Block {
    const Bf16* rows[kTileBlock] = {};  // beyond `count` some row that is there
    int count = 0;
  };

  RowReader reader_;
  Block blocks_[3];
  Block* now_ = &blocks_[0];
  Block* next_ = &blocks_[1];
  Block* after_ = &blocks_[2];
};

// What stands in memory between tiles and vectors.
struct TileWork {
  TileWork() { std::fill_n(third_parts[kTileQueries], kTileQueries * kTileBlock, Bf16{0}); }

  HWY_ALIGN float products[kTileBlock][2 * kTileQueries];  // with first and second parts
  HWY_ALIGN float thirds[kTileBlock][kTileQueries];
  HWY_ALIGN float weight[kTileQueries][kTileBlock];
  HWY_ALIGN Bf16 parts[2 * kTileQueries][kTileBlock];        // of the weights: first and second
  HWY_ALIGN Bf16 third_parts[2 * kTileQueries][kTileBlock];  // then nothing
};

// Products of a block's keys with the queries. Copies half of what steps of the values there are.
template <int kDim, int kSteps>
HWY_INLINE void multiply_keys(const TileQueries<kDim>& queries, TileRows<kDim>& rows,
                              TileWork& work) {
  constexpr std::int64_t kKeyStride = sizeof(rows.keys[0]);
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
  for (int unit = 0; unit < rows.kUnits; ++unit) {
    load_tile<4>(queries.parts[unit], sizeof(queries.parts[0][0]));
    load_tile<5>(queries.thirds[unit], sizeof(queries.thirds[0][0]));
    load_tile<6>(rows.keys[0] + unit * kUnit, kKeyStride);
    add_tile_product<0, 6, 4>();
    load_tile<7>(rows.keys[kTileHeight] + unit * kUnit, kKeyStride);
    add_tile_product<1, 7, 4>();
    rows.template copy_values<kSteps>(2 * unit);
    add_tile_product<2, 6, 5>();
    add_tile_product<3, 7, 5>();
    rows.template copy_values<kSteps>(2 * unit + 1);
  }
  store_tile<0>(work.products[0], sizeof(work.products[0]));
  store_tile<1>(work.products[kTileHeight], sizeof(work.products[0]));
  store_tile<2>(work.thirds[0], sizeof(work.thirds[0]));
  store_tile<3>(work.thirds[kTileHeight], sizeof(work.thirds[0]));
}

// x, or -inf for NaN.
HWY_INLINE FloatVec number_or_least(FloatVec x) {
  return hn::IfThenElse(hn::Eq(x, x), x, hn::Set(FloatTag(), -HUGE_VALF));
}

// work.weight[r][first + i] = β q_r·k of rows first + i, i < 16: adds the parts and transposes. A
// row with an infinite key has NaN here, because parts of opposite sign or of 0 meet it: it counts
// as -inf.
HWY_INLINE void tile_to_logits(float beta, int first, TileWork& work) {
  const FloatTag d;
  const hn::Half<FloatTag> dh;
  FloatVec group[2][4];
  for (int g = 0; g < 2; ++g) {
    for (int i = 0; i < 4; ++i) {  // two rows, eight queries each
      const int low = first + 8 * g + i;
      const int high = low + 4;
      const FloatVec x =
          hn::Combine(d, hn::Load(dh, work.products[high]), hn::Load(dh, work.products[low]));
      const FloatVec y = hn::Combine(d, hn::Load(dh, work.products[high] + kTileQueries),
                                     hn::Load(dh, work.products[low] + kTileQueries));
      const FloatVec z =
          hn::Combine(d, hn::Load(dh, work.thirds[high]), hn::Load(dh, work.thirds[low]));
      group[g][i] = hn::Add(x, hn::Add(y, z));
    }
    transpose_blocks(d, group[g]);
  }
  // Now even blocks of group[g][r] have rows 8 g on of query r, odd ones those of query 4 + r.
  const FloatVec factor = hn::Set(d, beta);
  for (int r = 0; r < 4; ++r) {
    const FloatVec even{_mm512_shuffle_f32x4(group[0][r].raw, group[1][r].raw, 0x88)};
    const FloatVec odd{_mm512_shuffle_f32x4(group[0][r].raw, group[1][r].raw, 0xdd)};
    hn::Store(number_or_least(hn::Mul(even, factor)), d, work.weight[r] + first);
    hn::Store(number_or_least(hn::Mul(odd, factor)), d, work.weight[4 + r] + first);
  }
}

HWY_INLINE void split_weights(int r, TileWork& work) {
  const FloatTag d;
  const Split a(hn::Load(d, work.weight[r]));
  const Split b(hn::Load(d, work.weight[r] + kLanes));
  static_assert(kTileBlock == 2 * kLanes);
  hn::Store(pack_bf16(a.first, b.first), WordTag(), work.parts[r]);
  hn::Store(pack_bf16(a.second, b.second), WordTag(), work.parts[kTileQueries + r]);
  hn::Store(pack_bf16(a.third, b.third), WordTag(), work.third_parts[r]);
}

// With the parts of the weights in tiles 4 and 6.
template <int kSum>
HWY_INLINE void add_value_tile(const Bf16 (*values)[kTileDims], float* out) {
  constexpr std::int64_t kStride = sizeof(float) * kMaxHeadDim;
  load_tile<kSum>(out, kStride);
  load_tile<7>(values, sizeof(values[0]));
  add_tile_product<kSum, 4, 7>();
  add_tile_product<kSum, 6, 7>();
  store_tile<kSum>(out, kStride);
}

// out += weights · values of a block. Copies the keys of the next one.
template <int kDim>
HWY_INLINE void multiply_values(const TileWork& work, TileRows<kDim>& rows,
                                float (*out)[kMaxHeadDim]) {
  constexpr int kTiles = 2 * units_of(kDim);
  load_tile<4>(work.parts, sizeof(work.parts[0]));
  load_tile<6>(work.third_parts, sizeof(work.third_parts[0]));
  for (int t = 0; t < kTiles; t += 2) {
    add_value_tile<0>(rows.values[t], out[0] + 16 * t);
    rows.template copy_keys<kTiles>(t);
    add_value_tile<1>(rows.values[t + 1], out[0] + 16 * (t + 1));
    rows.template copy_keys<kTiles>(t + 1);
  }
}

// As add_rows(), for kTileQueries rows of kDim dimensions.
template <int kDim>
HWY_NOINLINE void add_rows_by_tiles(const HeadShape& shape, const AttendGroup& group,
                                    const float* q, const std::int64_t* seen, const TailSums& tail,
                                    Sums& sums) {
  constexpr int kSteps = 2 * units_of(kDim) + kTileQueries;  // the values of a block
  const FloatTag d;
  const TileUse use;
  const TileQueries<kDim> queries(q);
  TileRows<kDim> rows(group);
  TileWork work;
  for (int r = 0; r < 2 * kTileQueries; ++r) std::fill_n(sums.out[r], units_of(kDim) * kUnit, 0.0f);
  std::int64_t done = 0;
  while (const int count = rows.advance()) {
    multiply_keys<kDim, kSteps>(queries, rows, work);
    for (int i = 0; i < kTileBlock; i += kTileHeight) tile_to_logits(shape.beta, i, work);
    for (int r = 0; r < kTileQueries; ++r) {
      const auto visible = std::clamp<std::int64_t>(seen[r] - done, 0, count);
      weigh_block<2>(sums, r, visible, kTileBlock, kDim, work.weight[r]);
      if (tail.taken_out != nullptr) {
        take_out(tail.taken_out + r * tail.selected_stride + done, sums.tail_factor[r], count,
                 work.weight[r]);
      }
      split_weights(r, work);
      rows.template copy_values<kSteps>(kSteps - kTileQueries + r);
    }
    multiply_values(work, rows, sums.out);
    done += count;
  }
  // The parts together, in the order of finish().
  for (int r = 0; r < kTileQueries; ++r) {
    HWY_ALIGN float whole[kMaxHeadDim];
    for (std::int32_t j = 0; j < units_of(kDim) * kUnit; j += kLanes) {
      const FloatVec other = hn::Load(d, sums.out[kMostRows + r] + j);
      hn::Store(hn::Add(hn::Load(d, sums.out[r] + j), other), d, whole + j);
    }
    for (std::int32_t j = 0; j < kDim; ++j) sums.out[r][split_at(j)] = whole[tiled_at(j)];
  }
}

// The same for any shape that attends_by_tiles().
inline void add_rows_by_tiles(const HeadShape& shape, const AttendGroup& group, const float* q,
                              const std::int64_t* seen, const TailSums& tail, Sums& sums) {
  switch (shape.d_k) {
    case 64: return add_rows_by_tiles<64>(shape, group, q, seen, tail, sums);
    case 80: return add_rows_by_tiles<80>(shape, group, q, seen, tail, sums);
    case 96: return add_rows_by_tiles<96>(shape, group, q, seen, tail, sums);
    case 128: return add_rows_by_tiles<128>(shape, group, q, seen, tail, sums);
    case 256: return add_rows_by_tiles<256>(shape, group, q, seen, tail, sums);
    default: ICE_CHECK(false);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
