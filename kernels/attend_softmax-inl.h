// kernels/attend_softmax-inl.h — online softmax over blocks of exact rows: which rows a block has,
// their weights, and the sums so far. Included once per instruction set.
#if defined(ICEFIELD_KERNELS_ATTEND_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_SOFTMAX_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_SOFTMAX_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

// Exact rows of up to kMostRows query rows, unnormalised: out = Σ w v, total = Σ w,
// w = e^(x - largest).
struct Sums {
  // Split. While tiles add to it: of weights' first and third parts and, kMostRows rows on, of
  // their second parts, in the order of tiles.
  HWY_ALIGN float out[2 * kMostRows][kMaxHeadDim];
  float largest[kMostRows];
  HWY_ALIGN float total[kMostRows][kLanes];  // by lane
  float tail_factor[kMostRows];              // e^(largest of the tail - largest)
};

// The rows of the runs, one after the other.
class RowReader {
 public:
  RowReader(const AttendGroup& group, std::int64_t row_elements)
      : run_(group.runs), end_(group.runs + group.run_count), row_elements_(row_elements) {}

  // The next rows, `limit` or all that are left.
  HWY_INLINE int next(const Bf16** rows, int limit) {
    // In registers: what members point to might be themselves, as far as the compiler knows.
    const RowRun* run = run_;
    const Bf16* first = first_;
    std::uint64_t mask = mask_;
    int count = 0;
    while (count < limit) {
      if (mask == 0) {
        if (run == end_) break;
        mask = run->mask;
        first = run++->rows;
        continue;
      }
      rows[count++] = first + __builtin_ctzll(mask) * row_elements_;
      mask &= mask - 1;
    }
    run_ = run;
    first_ = first;
    mask_ = mask;
    return count;
  }

 private:
  const RowRun* run_;
  const RowRun* end_;
  const Bf16* first_ = nullptr;  // of the run before run_
  std::uint64_t mask_ = 0;       // what is left of it
  std::int64_t row_elements_;
};

// Moves the sums of row r, in kParts rows of `out`, to a new largest logit.
template <int kParts>
HWY_NOINLINE void raise_largest(Sums& sums, int r, float logit, std::int32_t d_v) {
  const FloatTag d;
  const float factor = sums.largest[r] == -HUGE_VALF ? 0.0f : std::exp(sums.largest[r] - logit);
  sums.largest[r] = logit;
  sums.tail_factor[r] *= factor;
  const FloatVec f = hn::Set(d, factor);
  hn::Store(hn::Mul(hn::Load(d, sums.total[r]), f), d, sums.total[r]);
  for (int part = 0; part < kParts; ++part) {
    float* out = sums.out[part * kMostRows + r];
    for (std::int32_t j = 0; j < units_of(d_v) * kUnit; j += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, out + j), f), d, out + j);
    }
  }
}

// Logits into weights, in place: the first `visible` of `block`, zero in the rest. Blocks are whole
// vectors.
template <int kParts>
HWY_INLINE void weigh_block(Sums& sums, int r, std::int64_t visible, int block, std::int32_t d_v,
                            float* logit) {
  const FloatTag d;
  if (visible < block) {
    std::fill(logit + visible, logit + block, -HUGE_VALF);
    if (visible == 0) {  // the largest logit may be -inf, too
      std::fill_n(logit, block, 0.0f);
      return;
    }
  }
  FloatVec most = hn::Load(d, logit);
  for (int i = kLanes; i < block; i += kLanes) most = hn::Max(most, hn::Load(d, logit + i));
  if (!hn::AllFalse(d, hn::Gt(most, hn::Set(d, sums.largest[r])))) {
    raise_largest<kParts>(sums, r, max_lanes(d, most), d_v);
  }
  const FloatVec largest = hn::Set(d, sums.largest[r]);
  FloatVec sum = hn::Load(d, sums.total[r]);
  for (int i = 0; i < block; i += kLanes) {
    const FloatVec weight = exp_lanes(d, hn::Sub(hn::Load(d, logit + i), largest));
    hn::Store(weight, d, logit + i);
    sum = hn::Add(sum, weight);
  }
  hn::Store(sum, d, sums.total[r]);
}

// weight -= what the rests of clusters give up of these rows.
HWY_INLINE void take_out(const float* taken_out, float factor, int count, float* weight) {
  const FloatTag d;
  const FloatVec f = hn::Set(d, factor);
  for (int i = 0; i < count; i += kLanes) {
    hn::Store(hn::NegMulAdd(f, load_first(d, taken_out + i, count - i, 0), hn::Load(d, weight + i)),
              d, weight + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
