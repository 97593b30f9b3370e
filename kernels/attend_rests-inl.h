// kernels/attend_rests-inl.h — the rests of candidate clusters (docs/formats/attention.md step 6),
// and what the parts of the tail share. Included once per instruction set.
#if defined(ICEFIELD_KERNELS_ATTEND_RESTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_RESTS_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_RESTS_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_RESTS_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

static_assert(kMostRows <= kAttendRowsAtOnce && kLanes <= kAttendPadding, "scratch is too small");

// The tail of up to kMostRows query rows, relative to e^largest.
struct TailSums {
  HWY_ALIGN float out[kMostRows][kMaxHeadDim];  // Σ w ν in order
  float largest[kMostRows];
  float weight[kMostRows];  // Σ w
  float fault[kMostRows];   // Σ w of the terms that stand in for something missing
  float drift[kMostRows];   // Σ w Δ
  // [kRows, selected_stride] The vector of the rest of a cluster with selected rows is
  // n/(n-s) ν - Σ_S v/(n-s): what each selected row has to lose. Null: nothing is selected.
  const float* taken_out = nullptr;
  std::int64_t selected_stride = 0;
};

struct TailShape {
  TableSize size;
  std::int64_t terms;            // clusters, then lists
  std::int64_t selected_stride;  // selected rows, and room for the rest of a vector
};
inline TailShape tail_shape(const AttendGroup& group) {
  const TableSize size = table_size(group.segments, group.segment_count);
  return {.size = size,
          .terms = size.clusters + size.lists,
          .selected_stride = group.selected_count + kLanes - 1};
}

inline Accounting accounting(const AttendGroup& group, std::int32_t segment) {
  return group.accounts == nullptr ? Accounting::kTokens : group.accounts[segment].by;
}

// Where a segment's items begin in arrays that hold one segment after the other.
struct Offsets {
  std::int32_t clusters = 0;
  std::int32_t lists = 0;
  std::int32_t rows = 0;
};
template <class F>
HWY_INLINE void for_each_segment(const AttendGroup& group, F&& f) {
  Offsets at;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    f(s, group.segments[s], at);
    at.clusters += group.segments[s].clusters.count;
    at.lists += group.segments[s].lists.count;
    at.rows += group.segments[s].codes.row_count;
  }
}

// The rows of S by segment, as bits, so that what each cluster has of them is found without a loop
// whose end differs from cluster to cluster.
class SelectedRows {
 public:
  explicit SelectedRows(const AttendGroup& group)
      : at_(group.selected), end_(group.selected + group.selected_count), first_(group.selected) {}

  // Goes to segment s; ascending.
  void enter(std::int32_t s) {  // of at most kMaxSegmentTokens rows
    while (at_ != end_ && at_->segment < s) ++at_;
    std::fill_n(bits_, kWords + 1, std::uint64_t{0});
    const TableRow* row = at_;
    for (; row != end_ && row->segment == s; ++row) {
      bits_[row->row / 64] |= std::uint64_t{1} << (row->row % 64);
    }
    end_of_segment_ = row;
  }
  // Bit i: row first + i of the segment is in S. Call with ascending clusters.
  HWY_INLINE std::uint64_t take(std::int32_t first, std::int32_t count) {
    while (at_ != end_of_segment_ && at_->row < first) ++at_;
    const std::uint64_t* word = bits_ + first / 64;
    const int shift = first % 64;
    const std::uint64_t bits = word[0] >> shift | word[1] << 1 << (63 - shift);
    const std::uint64_t taken = bits & ((std::uint64_t{1} << count) - 1);
    index_ = at_ - first_;
    at_ += __builtin_popcountll(taken);
    return taken;
  }
  // Where in S what was taken last begins.
  std::int64_t index() const { return index_; }

 private:
  static constexpr int kWords = kMaxSegmentTokens / 64;

  const TableRow* at_;  // the first not yet passed
  const TableRow* end_;
  const TableRow* first_;
  const TableRow* end_of_segment_ = nullptr;
  std::int64_t index_ = 0;
  std::uint64_t bits_[kWords + 1];
};

// Which of kLanes rows from row i of a cluster on are marked.
HWY_INLINE hn::Mask<FloatTag> rows_marked(std::uint64_t bits, std::int32_t i) {
  bits >>= i;
  std::uint8_t bytes[8];
  std::memcpy(bytes, &bits, sizeof(bytes));
  return hn::LoadMaskBits(FloatTag(), bytes);
}

// Those of the next `count` floats that are marked, zero for the others.
HWY_INLINE FloatVec load_marked(hn::Mask<FloatTag> marked, const float* at, std::int64_t count) {
#if HWY_MEM_OPS_MIGHT_FAULT
  return hn::IfThenElseZero(marked, load_first(FloatTag(), at, count, 0.0f));
#else
  (void)count;
  return hn::MaskedLoad(marked, FloatTag(), at);
#endif
}

// The rows of a candidate cluster.
struct ClusterRows {
  std::int32_t count;
  std::int32_t after;        // rows of the table from its first one on
  std::int32_t taken_count;  // of them selected
  std::uint64_t taken;       // which

  std::uint64_t left() const { return ((std::uint64_t{1} << count) - 1) & ~taken; }
};

// The rests of candidates (step 6) for kRows query rows.
template <int kRows>
class Rests {
 public:
  // Adds to the sums of weight, fault and drift. taken_out [kRows, selected_stride].
  HWY_INLINE Rests(const TailShape& tail, float* taken_out, TailSums& sums)
      : tail_(tail), sums_(sums), taken_out_(taken_out) {
    constexpr float kMost = 1e30f;  // for a query row without terms: then all its weights are 0
    for (int r = 0; r < kRows; ++r) {
      reference_[r] = sums.largest[r] == -HUGE_VALF ? kMost : sums.largest[r];
      lane_drift_[r] = hn::Zero(FloatTag());
    }
    if constexpr (kRows == kLanes) {
      std::fill_n(logits_[kBefore + kLow], kLanes, -kMost);
      std::fill_n(logits_[kBefore + kZero], kLanes, 0.0f);
    }
  }

  // One cluster with unselected rows: logit [kRows, rows] of its rows, mean [kRows, clusters] its
  // own; those of its rows that are selected begin at `index` of S. What ν is to be multiplied with
  // goes to term [kRows, terms]: a rest of which rows are selected has the factor n/(n-s). What
  // each of those is to lose goes to taken_out.
  HWY_INLINE void add(const ClusterRows& rows, const float* logit, const float* mean, bool fault,
                      std::int64_t index, float* term) {
    HWY_ALIGN float total[2 * kRows];
    HWY_ALIGN float middle[kRows];
    for (int r = 0; r < kRows; ++r) middle[r] = mean[r * tail_.size.clusters];
    if constexpr (kRows == kLanes) {
      add_up_transposed(rows, logit, middle, total);
    } else {
      add_up(rows, logit, middle, total);
    }
    const float per_row = 1.0f / static_cast<float>(rows.count - rows.taken_count);
    const float factor = static_cast<float>(rows.count) * per_row;
    // One loop for each thing: the compiler makes vectors of those that touch only members.
    for (int r = 0; r < kRows; ++r) weight_[r] += total[r];
    if (fault) {
      for (int r = 0; r < kRows; ++r) fault_[r] += total[r];
    }
    for (int r = 0; r < kRows; ++r) term[r * tail_.terms] = total[r] * factor;
    if (rows.taken_count == 0) return;
    // The drift of such a rest is from the mean of what is left.
    const auto taken = static_cast<float>(rows.taken_count);
    HWY_ALIGN float share[kRows];
    for (int r = 0; r < kRows; ++r) share[r] = total[r] * per_row;
    for (int r = 0; r < kRows; ++r) drift_[r] -= share[r] * (taken * middle[r] - total[kRows + r]);
    take_nothing_until(index);
    for (int r = 0; r < kRows; ++r) {
      float* at = taken_out_ + r * tail_.selected_stride + index;
      // Whole vectors: what is too much is written again, or is the end of selected_stride.
      for (std::int32_t k = 0; k < rows.taken_count; k += kLanes) {
        hn::StoreU(hn::Set(FloatTag(), share[r]), FloatTag(), at + k);
      }
    }
    written_ = index + rows.taken_count;
  }
  HWY_INLINE void finish() {
    take_nothing_until(tail_.selected_stride);
    for (int r = 0; r < kRows; ++r) {
      sums_.weight[r] += weight_[r];
      sums_.fault[r] += fault_[r];
      sums_.drift[r] += sum_lanes(FloatTag(), lane_drift_[r]) + drift_[r];
    }
  }

 private:
  // Places in logits_ after those of a cluster: one weighs nothing, one adds nothing.
  static constexpr int kLow = kMaxClusterTokens;
  static constexpr int kZero = kMaxClusterTokens + 1;
  static constexpr int kBefore = 3;  // as many rows of what is before the cluster may be in it

  void take_nothing_until(std::int64_t index) {
    if (written_ >= index) return;
    for (int r = 0; r < kRows; ++r) {
      std::fill_n(taken_out_ + r * tail_.selected_stride + written_, index - written_, 0.0f);
    }
    written_ = index;
  }

  // Σ w of the unselected rows, w = e^(x - largest), then Σ x of the selected ones, [2, kRows];
  // adds w (x - mean) to the drift, as w (x - largest) + w (largest - mean): these are large and
  // differ in sign, so they meet in each cluster, not at the end.
  HWY_INLINE void add_up(const ClusterRows& rows, const float* logit, const float* mean,
                         float* total) {
    const FloatTag d;
    const std::int64_t stride = tail_.size.rows;
    FloatVec sum[2 * kRows];
    for (FloatVec& v : sum) v = hn::Zero(d);
    // Query rows innermost: clusters differ in size, so the end of this loop is guessed wrong.
    for (std::int32_t i = 0; i < rows.count; i += kLanes) {
      const auto left = rows_marked(rows.left(), i);
      for (int r = 0; r < kRows; ++r) {
        const FloatVec x = load_marked(left, logit + r * stride + i, rows.after - i);
        const FloatVec below = hn::Sub(x, hn::Set(d, reference_[r]));
        const FloatVec w = hn::IfThenElseZero(left, exp_lanes(d, below));
        sum[r] = hn::Add(sum[r], w);
        lane_drift_[r] = hn::MulAdd(w, below, lane_drift_[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const FloatVec above = hn::Set(d, reference_[r] - mean[r]);
      lane_drift_[r] = hn::MulAdd(sum[r], above, lane_drift_[r]);
    }
    for (std::int32_t i = 0; rows.taken >> i != 0; i += kLanes) {
      const auto taken = rows_marked(rows.taken, i);
      for (int r = 0; r < kRows; ++r) {
        const FloatVec x = load_marked(taken, logit + r * stride + i, rows.after - i);
        sum[kRows + r] = hn::Add(sum[kRows + r], x);
      }
    }
    if constexpr (2 * kRows == kLanes) {
      hn::Store(sum_each(d, sum), d, total);
    } else {
      for (int i = 0; i < 2 * kRows; ++i) total[i] = sum_lanes(d, sum[i]);
    }
  }

  // The same with a query row in each lane: nothing is added across lanes, and only rows that are
  // left cost an exponential.
  HWY_INLINE void add_up_transposed(const ClusterRows& rows, const float* logit, const float* mean,
                                    float* total) {
    const FloatTag d;
    for (std::int32_t i = 0; i < rows.count; i += 4) {
      const std::int32_t at = std::min(i, rows.after - 4);  // not beyond the table
      FloatVec v[4];
      load_four(logit + at, v);
      transpose_blocks(d, v);
      for (int t = 0; t < 4; ++t) hn::Store(v[t], d, logits_[kBefore + at + t]);
    }
    const FloatVec largest = hn::Load(d, reference_);
    FloatVec sum[2] = {hn::Zero(d), hn::Zero(d)};
    FloatVec drift[2] = {hn::Zero(d), hn::Zero(d)};
    for_bits(rows.left(), kLow, [&](int i, int t) HWY_ATTR {
      const FloatVec below = hn::Sub(hn::Load(d, logits_[kBefore + t]), largest);
      const FloatVec w = exp_lanes(d, below);
      sum[i % 2] = hn::Add(sum[i % 2], w);
      drift[i % 2] = hn::MulAdd(w, below, drift[i % 2]);
    });
    FloatVec taken = hn::Zero(d);
    for_bits(rows.taken, kZero, [&](int, int t) HWY_ATTR {
      taken = hn::Add(taken, hn::Load(d, logits_[kBefore + t]));
    });
    const FloatVec all = hn::Add(sum[0], sum[1]);
    const FloatVec above = hn::Sub(largest, hn::Load(d, mean));
    const FloatVec of_cluster = hn::MulAdd(all, above, hn::Add(drift[0], drift[1]));
    hn::Store(hn::Add(hn::Load(d, drift_), of_cluster), d, drift_);
    hn::Store(all, d, total);
    hn::Store(taken, d, total + kRows);
  }
  // Four rows for all query rows, of which transpose_blocks() makes one row a vector.
  HWY_INLINE void load_four(const float* logit, FloatVec* v) const {
    const FloatTag d;
    const std::int64_t stride = tail_.size.rows;
    for (int r = 0; r < 4; ++r) {
      if constexpr (kLanes == 8) {
        const hn::Half<FloatTag> dh;
        v[r] = hn::Combine(d, hn::LoadU(dh, logit + (r + 4) * stride),
                           hn::LoadU(dh, logit + r * stride));
      } else {
        v[r] = hn::LoadU(d, logit + r * stride);
      }
    }
  }
  // Calls f(i, bit) for each bit, i < 4 in turn, and f(i, other) for the rest of the last four: the
  // end of this loop is guessed right more often.
  template <class F>
  static HWY_INLINE void for_bits(std::uint64_t bits, int other, F&& f) {
    while (bits != 0) {
      for (int i = 0; i < 4; ++i) {
        f(i, __builtin_ctzll(bits | std::uint64_t{1} << other));
        bits &= bits - 1;
      }
    }
  }

  const TailShape& tail_;
  TailSums& sums_;
  float* taken_out_;
  std::int64_t written_ = 0;          // rows of taken_out
  HWY_ALIGN float reference_[kRows];  // the largest logit
  HWY_ALIGN float weight_[kRows] = {};
  HWY_ALIGN float fault_[kRows] = {};
  HWY_ALIGN float drift_[kRows] = {};
  FloatVec lane_drift_[kRows];                           // belongs to it, by lane
  HWY_ALIGN float logits_[kBefore + kZero + 1][kLanes];  // of a cluster, transposed
};

// The rests of all candidates. Candidates must weigh nothing yet; taken_out [kRows,
// selected_stride].
template <int kRows>
HWY_INLINE void rest_terms(const AttendGroup& group, std::int32_t first_row, const TailShape& tail,
                           float* term, float* taken_out, TailSums& sums) {
  Rests<kRows> rests(tail, taken_out, sums);
  SelectedRows selected(group);
  const auto add = [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) HWY_ATTR {
    if (accounting(group, s) != Accounting::kTokens) return;
    const bool fault = group.accounts != nullptr && group.accounts[s].fault;
    const float* logit =
        group.token_logit + static_cast<std::int64_t>(first_row) * tail.size.rows + at.rows;
    const float* mean = group.cluster_logit +
                        static_cast<std::int64_t>(first_row) * tail.size.clusters + at.clusters;
    selected.enter(s);
    const auto add_run = [&](std::int32_t c, std::int32_t end) HWY_ATTR {
      for (; c < end; ++c) {
        const std::int32_t first = segment.clusters.first_row[c];
        const std::int32_t count = segment.clusters.token_count[c];
        const std::uint64_t taken = selected.take(first, count);
        const ClusterRows rows{.count = count,
                               .after = tail.size.rows - at.rows - first,
                               .taken_count = __builtin_popcountll(taken),
                               .taken = taken};
        if (rows.taken_count == count) continue;
        rests.add(rows, logit + first, mean + c,
                  fault || (group.faulty != nullptr && group.faulty[at.clusters + c] != 0),
                  selected.index(), term + at.clusters + c);
      }
    };
    for_candidate_runs(group.candidate + at.clusters, segment.clusters.count, add_run);
  };
  for_each_segment(group, add);
  rests.finish();
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
