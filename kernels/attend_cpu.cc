// Attention on the CPU: the tail's terms, then online softmax over blocks of rows. Bound: the bytes
// of the rows for one query, the dot products for several.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/attend_logits-inl.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/attend_tail-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void attend_target(const AttendArgs& args) { attend_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

// Rows per softmax block: at d 128 this one and the next, which is being fetched, fit the L1 cache.
constexpr int kBlock = 32;

// Exact rows of up to kRowBlock query rows, unnormalised: out = Σ w v, total = Σ w,
// w = e^(x - largest).
struct Sums {
  HWY_ALIGN float out[kRowBlock][kMaxHeadDim];  // split
  float largest[kRowBlock];
  HWY_ALIGN float total[kRowBlock][kLanes];  // by lane
  float tail_factor[kRowBlock];              // e^(largest of the tail - largest)
};

// The next rows of the runs, at most kBlock.
class RowReader {
 public:
  RowReader(const AttendGroup& group, std::int64_t row_elements)
      : run_(group.runs), end_(group.runs + group.run_count), row_elements_(row_elements) {
    if (run_ != end_) mask_ = run_->mask;
  }
  int next(const Bf16** rows) {
    int count = 0;
    while (count < kBlock && run_ != end_) {
      if (mask_ == 0) {
        if (++run_ != end_) mask_ = run_->mask;
        continue;
      }
      const int bit = __builtin_ctzll(mask_);
      mask_ &= mask_ - 1;
      rows[count++] = run_->rows + bit * row_elements_;
    }
    return count;
  }

 private:
  const RowRun* run_;
  const RowRun* end_;
  std::int64_t row_elements_;
  std::uint64_t mask_ = 0;
};

// Moves the sums of row r to a new largest logit.
HWY_NOINLINE void raise_largest(Sums& sums, int r, float logit, std::int32_t d_v) {
  const FloatTag d;
  const float factor = sums.largest[r] == -HUGE_VALF ? 0.0f : std::exp(sums.largest[r] - logit);
  sums.largest[r] = logit;
  sums.tail_factor[r] *= factor;
  const FloatVec f = hn::Set(d, factor);
  hn::Store(hn::Mul(hn::Load(d, sums.total[r]), f), d, sums.total[r]);
  for (std::int32_t j = 0; j < units_of(d_v) * kUnit; j += kLanes) {
    hn::Store(hn::Mul(hn::Load(d, sums.out[r] + j), f), d, sums.out[r] + j);
  }
}

// Logits into weights, in place: the first `visible` of kBlock, zero in the rest.
HWY_INLINE void weigh_block(Sums& sums, int r, std::int64_t visible, std::int32_t d_v,
                            float* logit) {
  const FloatTag d;
  if (visible < kBlock) {
    std::fill(logit + visible, logit + kBlock, -HUGE_VALF);
    if (visible == 0) {  // the largest logit may be -inf, too
      std::fill_n(logit, kBlock, 0.0f);
      return;
    }
  }
  FloatVec most = hn::Load(d, logit);
  for (int i = kLanes; i < kBlock; i += kLanes) most = hn::Max(most, hn::Load(d, logit + i));
  if (!hn::AllFalse(d, hn::Gt(most, hn::Set(d, sums.largest[r])))) {
    raise_largest(sums, r, max_lanes(d, most), d_v);
  }
  const FloatVec largest = hn::Set(d, sums.largest[r]);
  FloatVec sum = hn::Load(d, sums.total[r]);
  for (int i = 0; i < kBlock; i += kLanes) {
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

// Exact rows: seen[r] of them for query row r.
template <int kRows>
void add_rows(const HeadShape& shape, const AttendGroup& group, const float* q,
              const std::int64_t* seen, const TailSums& tail, Sums& sums) {
  constexpr int kTile = kTileRows<kRows>;
  static_assert(kBlock % kTile == 0);
  RowReader reader(group, shape.d_k + shape.d_v);
  const Queries<kRows> queries(q, shape.d_k);
  const Bf16* blocks[2][kBlock];
  const Bf16** rows = blocks[0];
  const Bf16** next = blocks[1];
  HWY_ALIGN float weight[kRows][kBlock];
  std::int64_t done = 0;
  for (int count = reader.next(rows), next_count = 0; count > 0; count = next_count) {
    next_count = reader.next(next);
    std::fill(rows + count, rows + kBlock, rows[0]);  // fills the last tile
    std::fill(next + next_count, next + kBlock, rows[0]);
    for (int i = 0; i < count; i += kTile) {
      tile_logits<kRows>(rows + i, next + i, queries, shape.d_k, shape.beta, weight[0] + i, kBlock);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto visible = std::clamp<std::int64_t>(seen[r] - done, 0, count);
      weigh_block(sums, r, visible, shape.d_v, weight[r]);
      if (tail.taken_out != nullptr) {
        take_out(tail.taken_out + r * tail.selected_stride + done, sums.tail_factor[r], count,
                 weight[r]);
      }
    }
    add_values<kRows>(rows, next, count, weight[0], kBlock, shape.d_k, shape.d_v, sums.out);
    done += count;
    std::swap(rows, next);
  }
}

template <int kRows>
void finish(const HeadShape& shape, std::int32_t first_row, const Sums& sums, const TailSums* tail,
            const Partial& result) {
  for (int r = 0; r < kRows; ++r) {
    const std::int32_t h = first_row + r;
    const float factor = tail == nullptr ? 0 : sums.tail_factor[r];
    const float of_tail = tail == nullptr ? 0 : tail->weight[r] * factor;
    const float total = sum_lanes(FloatTag(), hn::Load(FloatTag(), sums.total[r])) + of_tail;
    const float inverse = total > 0 ? 1.0f / total : 0.0f;
    result.lse[h] = total > 0 ? sums.largest[r] + std::log(total) : -HUGE_VALF;
    result.tail[h] = of_tail * inverse;
    result.fault[h] = tail == nullptr ? 0 : tail->fault[r] * factor * inverse;
    result.drift[h] = tail == nullptr ? 0 : tail->drift[r] * factor * inverse;
    float* out = result.out + static_cast<std::int64_t>(h) * shape.d_v;
    for (std::int32_t j = 0; j < shape.d_v; ++j) {
      out[j] = sums.out[r][split_at(j)] * inverse;
    }
    if (tail == nullptr) continue;
    for (std::int32_t j = 0; j < shape.d_v; ++j) out[j] += tail->out[r][j] * factor * inverse;
  }
}

void attend(const HeadShape& shape, const AttendGroup& group) {
  ICE_CHECK(shape.d_k <= kMaxHeadDim && shape.d_v <= kMaxHeadDim);
  std::int64_t rows = 0;
  for (std::int32_t r = 0; r < group.run_count; ++r) {
    rows += __builtin_popcountll(group.runs[r].mask);
  }
  const bool has_tail = group.segment_count > 0;
  for_row_blocks(group.row_count, [&](auto row_count, std::int32_t first) {
    constexpr int kRows = row_count();
    TailSums tail;
    if (has_tail) make_tail<kRows>(shape, group, first, tail);
    Sums sums;
    std::int64_t seen[kRows];
    for (int r = 0; r < kRows; ++r) {
      std::fill_n(sums.out[r], units_of(shape.d_v) * kUnit, 0.0f);
      sums.largest[r] = has_tail ? tail.largest[r] : -HUGE_VALF;
      sums.tail_factor[r] = 1;
      std::fill_n(sums.total[r], kLanes, 0.0f);
      seen[r] = rows - (group.hidden == nullptr ? 0 : group.hidden[first + r]);
    }
    add_rows<kRows>(shape, group, group.q + static_cast<std::int64_t>(first) * shape.d_k, seen,
                    tail, sums);
    finish<kRows>(shape, first, sums, has_tail ? &tail : nullptr, group.result);
  });
}

}  // namespace

void attend_target(const AttendArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) attend(args.shape, args.groups[g]);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(attend_target);

void attend_cpu(const AttendArgs& args) { HWY_DYNAMIC_DISPATCH(attend_target)(args); }

}  // namespace icefield
#endif
