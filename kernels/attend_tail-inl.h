// kernels/attend_tail-inl.h — the tail's terms (docs/formats/attention.md step 6): what stands for
// the rows that are not attended exactly. Included once per instruction set.
#if defined(ICEFIELD_KERNELS_ATTEND_TAIL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_ATTEND_TAIL_INL_H_
#undef ICEFIELD_KERNELS_ATTEND_TAIL_INL_H_
#else
#define ICEFIELD_KERNELS_ATTEND_TAIL_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/level_dots-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

static_assert(kRowBlock <= kAttendRowsAtOnce && kLanes <= kAttendPadding, "scratch is too small");

// The tail of up to kRowBlock query rows, relative to e^largest.
struct TailSums {
  HWY_ALIGN float out[kRowBlock][kMaxHeadDim];  // Σ w ν in order
  float largest[kRowBlock];
  float weight[kRowBlock];  // Σ w
  float fault[kRowBlock];   // Σ w of the terms that stand in for something missing
  float drift[kRowBlock];   // Σ w Δ
  // [kRows, selected_stride] The vector of the rest of a cluster with selected rows is
  // n/(n-s) ν - Σ_S v/(n-s): what each selected row has to lose. Null: nothing is selected.
  const float* taken_out = nullptr;
  std::int64_t selected_stride = 0;
};

struct TailShape {
  TableSize size;
  std::int64_t terms;            // clusters, then lists
  std::int64_t selected_stride;  // selected rows in whole vectors
};
inline TailShape tail_shape(const AttendGroup& group) {
  const TableSize size = table_size(group.segments, group.segment_count);
  return {.size = size,
          .terms = size.clusters + size.lists,
          .selected_stride = round_up(group.selected_count, kLanes)};
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

// λ̄ of a level's clusters: ln n + β q·μ + min(w σ, 1), where `dot` holds β q·μ.
inline void term_logits(const LevelView& level, const float* q, float beta, const float* dot,
                        float* out) {
  const FloatTag d;
  const FloatVec weight = hn::Set(d, variance_weight(d, q, level, beta));
  for (std::int32_t c = 0; c < level.count; c += kLanes) {
    const std::int32_t left = level.count - c;
    const FloatVec spread =
        hn::Min(hn::Mul(weight, load_fp16(d, level.sigma + c)), hn::Set(d, kTermVarianceCap));
    const FloatVec x = load_first(d, dot + c, left, 0);
    store_first(d, hn::Add(hn::Add(hn::LoadU(d, level.ln_count + c), x), spread), left, out + c);
  }
}

// Logits of the terms of query row h that are means; -inf for candidates, whose rests come later,
// and for what has no term. Returns the largest logit of all, candidates' tokens included.
inline float mean_logits(const HeadShape& shape, const AttendGroup& group, std::int32_t h,
                         const TailShape& tail, float* term) {
  const FloatTag d;
  const float* q = group.q + static_cast<std::int64_t>(h) * shape.d_k;
  std::fill_n(term, tail.terms, -HUGE_VALF);
  float largest = -HUGE_VALF;
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    if (accounting(group, s) == Accounting::kLists) {
      float* lists = term + tail.size.clusters + at.lists;
      const MeanQueries<1> rounded(q, shape.d_k, shape.beta);
      level_dots<1>(segment.lists, rounded, lists, 0);
      term_logits(segment.lists, q, shape.beta, lists, lists);
      return;
    }
    const float* dots =
        group.cluster_logit + static_cast<std::int64_t>(h) * tail.size.clusters + at.clusters;
    term_logits(segment.clusters, q, shape.beta, dots, term + at.clusters);
    if (accounting(group, s) != Accounting::kTokens) return;
    const float* logit =
        group.token_logit + static_cast<std::int64_t>(h) * tail.size.rows + at.rows;
    for_candidate_runs(group.candidate + at.clusters, segment.clusters.count,
                       [&](std::int32_t c, std::int32_t end) {
                         std::fill(term + at.clusters + c, term + at.clusters + end, -HUGE_VALF);
                         const RowRange rows = rows_of(segment.clusters, c, end);
                         largest = std::max(largest,
                                            max_of(d, logit + rows.first, rows.end - rows.first));
                       });
  });
  return std::max(largest, max_of(d, term, tail.terms));
}

// Logits into weights e^(t - largest).
inline void weigh(float* term, std::int64_t count, float largest) {
  const FloatTag d;
  for (std::int64_t t = 0; t < count; t += kLanes) {
    const FloatVec x = load_first(d, term + t, count - t, -HUGE_VALF);
    store_first(d, exp_lanes(d, hn::Sub(x, hn::Set(d, largest))), count - t, term + t);
  }
}

// Walks the clusters of all segments with the rows of S that lie in each.
struct SelectedCursor {
  const AttendGroup& group;
  std::int32_t next = 0;  // first row of S not yet passed

  // Bit i: row first + i of segment s is in S. Call with ascending clusters.
  std::uint64_t take(std::int32_t s, std::int32_t first, std::int32_t count) {
    const auto before = [&](std::int32_t row) {
      return next < group.selected_count &&
             (group.selected[next].segment < s ||
              (group.selected[next].segment == s && group.selected[next].row < row));
    };
    while (before(first)) ++next;
    std::uint64_t bits = 0;
    for (; before(first + count); ++next) {
      bits |= std::uint64_t{1} << (group.selected[next].row - first);
    }
    return bits;
  }
};

// Σ w Δ of the clusters that are whole: Δ = min(2 w σ, 2). Candidates must weigh nothing yet.
inline float mean_drift(const LevelView& level, const float* q, float beta, const float* term) {
  const FloatTag d;
  const FloatVec weight = hn::Set(d, 2 * variance_weight(d, q, level, beta));
  FloatVec sum = hn::Zero(d);
  for (std::int32_t c = 0; c < level.count; c += kLanes) {
    const FloatVec drift =
        hn::Min(hn::Mul(weight, load_fp16(d, level.sigma + c)), hn::Set(d, kTermDriftCap));
    sum = hn::MulAdd(load_first(d, term + c, level.count - c, 0), drift, sum);
  }
  return sum_lanes(d, sum);
}

// Shares of the means in the tail and in what stands in for missing data.
inline void sum_terms(const AttendGroup& group, const TailShape& tail, const float* term,
                      float& weight, float& fault) {
  const FloatTag d;
  const auto sum_of = [&](const float* x, std::int32_t count) HWY_ATTR {
    FloatVec sum = hn::Zero(d);
    for (std::int32_t i = 0; i < count; i += kLanes) {
      sum = hn::Add(sum, load_first(d, x + i, count - i, 0));
    }
    return sum_lanes(d, sum);
  };
  weight = 0;
  fault = 0;
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    const bool by_lists = accounting(group, s) == Accounting::kLists;
    const float* terms = by_lists ? term + tail.size.clusters + at.lists : term + at.clusters;
    const float of_segment = sum_of(terms, by_lists ? segment.lists.count : segment.clusters.count);
    weight += of_segment;
    if (group.accounts != nullptr && group.accounts[s].fault) {
      fault += of_segment;
    } else if (group.faulty != nullptr && !by_lists) {
      for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
        if (group.faulty[at.clusters + c] != 0) fault += terms[c];
      }
    }
  });
}

// Which of kLanes rows from row i of a cluster on are marked.
HWY_INLINE hn::Mask<FloatTag> rows_marked(std::uint64_t bits, std::int32_t i) {
  bits >>= i;
  std::uint8_t bytes[8];
  std::memcpy(bytes, &bits, sizeof(bytes));
  return hn::LoadMaskBits(FloatTag(), bytes);
}

// The rows of a candidate cluster.
struct ClusterRows {
  std::int32_t count;
  std::int32_t taken_count;  // of them selected
  std::uint64_t taken;       // which
};

// The rests of candidates (step 6) for kRows query rows.
template <int kRows>
class Rests {
 public:
  // Adds to the sums of weight, fault and drift.
  HWY_INLINE Rests(const TailShape& tail, TailSums& sums) : tail_(tail), sums_(sums) {
    for (int r = 0; r < kRows; ++r) {
      drift_[r] = hn::Zero(FloatTag());
      // A query row without terms: then all its weights are 0.
      reference_[r] = sums.largest[r] == -HUGE_VALF ? HUGE_VALF : sums.largest[r];
    }
  }

  // One cluster with unselected rows: logit [kRows, rows] of its rows, mean [kRows, clusters] its
  // own. What ν is to be multiplied with goes to term [kRows, terms]: a rest of which rows are
  // selected has the factor n/(n-s); what each of those is to lose to taken_out [kRows,
  // selected_stride], for as many as there are.
  HWY_INLINE void add(const ClusterRows& rows, const float* logit, const float* mean, bool fault,
                      float* term, float* taken_out) {
    const FloatTag d;
    HWY_ALIGN float total[2 * kRows];
    add_up(rows, logit, mean, total);
    const float per_row = 1.0f / static_cast<float>(rows.count - rows.taken_count);
    const float factor = static_cast<float>(rows.count) * per_row;
    // One loop for each thing: the compiler makes vectors of those that touch only members.
    for (int r = 0; r < kRows; ++r) weight_[r] += total[r];
    if (fault) {
      for (int r = 0; r < kRows; ++r) fault_[r] += total[r];
    }
    HWY_ALIGN float share[kRows];
    for (int r = 0; r < kRows; ++r) share[r] = total[r] * per_row;
    for (int r = 0; r < kRows; ++r) term[r * tail_.terms] = total[r] * factor;
    if (rows.taken_count == 0) return;
    // The drift of such a rest is from the mean of what is left.
    const auto taken = static_cast<float>(rows.taken_count);
    HWY_ALIGN float middle[kRows];
    for (int r = 0; r < kRows; ++r) middle[r] = mean[r * mean_stride()];
    for (int r = 0; r < kRows; ++r) {
      taken_drift_[r] += share[r] * (taken * middle[r] - total[kRows + r]);
    }
    for (std::int32_t k = 0; k < rows.taken_count; k += kLanes) {
      const std::int32_t left = rows.taken_count - k;
      const auto within = hn::FirstN(d, static_cast<std::size_t>(std::min(left, kLanes)));
      for (int r = 0; r < kRows; ++r) {
        hn::BlendedStore(hn::Set(d, share[r]), within, d,
                         taken_out + r * tail_.selected_stride + k);
      }
    }
  }
  HWY_INLINE void finish() {
    for (int r = 0; r < kRows; ++r) {
      sums_.weight[r] += weight_[r];
      sums_.fault[r] += fault_[r];
      sums_.drift[r] += sum_lanes(FloatTag(), drift_[r]) - taken_drift_[r];
    }
  }

 private:
  std::int64_t row_stride() const { return tail_.size.rows; }
  std::int64_t mean_stride() const { return tail_.size.clusters; }

  // Σ w of the unselected rows, w = e^(x - largest), then Σ x of the selected ones, [2, kRows];
  // adds w (x - mean) to the drift.
  HWY_INLINE void add_up(const ClusterRows& rows, const float* logit, const float* mean,
                         float* total) {
    const FloatTag d;
    const std::uint64_t rest = ((std::uint64_t{1} << rows.count) - 1) & ~rows.taken;
    FloatVec sum[2 * kRows];
    for (FloatVec& v : sum) v = hn::Zero(d);
    // Query rows innermost: clusters differ in size, so the end of this loop is guessed wrong.
    for (std::int32_t i = 0; i < rows.count; i += kLanes) {
      const auto left = rows_marked(rest, i);
      for (int r = 0; r < kRows; ++r) {
        const FloatVec x = hn::MaskedLoad(left, d, logit + r * row_stride() + i);
        const FloatVec w =
            hn::IfThenElseZero(left, exp_lanes(d, hn::Sub(x, hn::Set(d, reference_[r]))));
        sum[r] = hn::Add(sum[r], w);
        drift_[r] = hn::MulAdd(w, hn::Sub(x, hn::Set(d, mean[r * mean_stride()])), drift_[r]);
      }
    }
    for (std::int32_t i = 0; rows.taken >> i != 0; i += kLanes) {
      const auto taken = rows_marked(rows.taken, i);
      for (int r = 0; r < kRows; ++r) {
        sum[kRows + r] =
            hn::Add(sum[kRows + r], hn::MaskedLoad(taken, d, logit + r * row_stride() + i));
      }
    }
    if constexpr (2 * kRows == kLanes) {
      hn::Store(sum_each(d, sum), d, total);
    } else {
      for (int i = 0; i < 2 * kRows; ++i) total[i] = sum_lanes(d, sum[i]);
    }
  }

  const TailShape& tail_;
  TailSums& sums_;
  float reference_[kRows];  // the largest logit
  HWY_ALIGN float weight_[kRows] = {};
  HWY_ALIGN float fault_[kRows] = {};
  HWY_ALIGN float taken_drift_[kRows] = {};
  FloatVec drift_[kRows];
};

// The rests of all candidates. Candidates must weigh nothing yet; taken_out [kRows,
// selected_stride].
template <int kRows>
HWY_INLINE void rest_terms(const AttendGroup& group, std::int32_t first_row, const TailShape& tail,
                           float* term, float* taken_out, TailSums& sums) {
  std::fill_n(taken_out, kRows * tail.selected_stride, 0.0f);
  Rests<kRows> rests(tail, sums);
  SelectedCursor cursor{group};
  const auto add = [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) HWY_ATTR {
    if (accounting(group, s) != Accounting::kTokens) return;
    const bool fault = group.accounts != nullptr && group.accounts[s].fault;
    const float* logit =
        group.token_logit + static_cast<std::int64_t>(first_row) * tail.size.rows + at.rows;
    const float* mean = group.cluster_logit +
                        static_cast<std::int64_t>(first_row) * tail.size.clusters + at.clusters;
    const auto add_run = [&](std::int32_t c, std::int32_t end) HWY_ATTR {
      for (; c < end; ++c) {
        const std::int32_t first = segment.clusters.first_row[c];
        const std::int32_t count = segment.clusters.token_count[c];
        const std::uint64_t taken = cursor.take(s, first, count);
        const std::int32_t taken_count = __builtin_popcountll(taken);
        if (taken_count == count) continue;
        rests.add({count, taken_count, taken}, logit + first, mean + c,
                  fault || (group.faulty != nullptr && group.faulty[at.clusters + c] != 0),
                  term + at.clusters + c, taken_out + cursor.next - taken_count);
      }
    };
    for_candidate_runs(group.candidate + at.clusters, segment.clusters.count, add_run);
  };
  for_each_segment(group, add);
  rests.finish();
}

// out += Σ weight · mean over the clusters of one level. `weight` is consumed.
template <int kRows>
HWY_INLINE void add_level(const LevelView& level, float* weight, std::int64_t stride,
                          TailSums& sums) {
  const FloatTag d;
  for (int r = 0; r < kRows; ++r) {
    float* w = weight + r * stride;
    for (std::int32_t c = 0; c < level.count; c += kLanes) {
      const std::int32_t left = level.count - c;
      const FloatVec scaled =
          hn::Mul(load_first(d, w + c, left, 0), load_first(d, level.value_scale + c, left, 0));
      store_first(d, scaled, left, w + c);
    }
  }
  add_means<kRows>(level.value_means, level.count, weight, stride, level.d_v, sums.out);
}

// The tail of query rows [first_row, first_row + kRows) of a group.
template <int kRows>
HWY_NOINLINE void make_tail(const HeadShape& shape, const AttendGroup& group,
                            std::int32_t first_row, TailSums& sums) {
  const TailShape tail = tail_shape(group);
  float* term = group.scratch;
  float* taken_out = group.scratch + kRows * tail.terms;
  for (int r = 0; r < kRows; ++r) {
    float* of_row = term + r * tail.terms;
    sums.largest[r] = mean_logits(shape, group, first_row + r, tail, of_row);
    if (sums.largest[r] == -HUGE_VALF) {
      std::fill_n(of_row, tail.terms, 0.0f);
    } else {
      weigh(of_row, tail.terms, sums.largest[r]);
    }
    const float* q = group.q + static_cast<std::int64_t>(first_row + r) * shape.d_k;
    sums.drift[r] = 0;
    for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
      if (accounting(group, s) == Accounting::kLists) return;
      sums.drift[r] += mean_drift(segment.clusters, q, shape.beta, of_row + at.clusters);
    });
    sum_terms(group, tail, of_row, sums.weight[r], sums.fault[r]);
    std::fill_n(sums.out[r], shape.d_v, 0.0f);
  }
  rest_terms<kRows>(group, first_row, tail, term, taken_out, sums);
  if (group.selected_count > 0) {
    sums.taken_out = taken_out;
    sums.selected_stride = tail.selected_stride;
  }
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    if (accounting(group, s) == Accounting::kLists) {
      add_level<kRows>(segment.lists, term + tail.size.clusters + at.lists, tail.terms, sums);
    } else {
      add_level<kRows>(segment.clusters, term + at.clusters, tail.terms, sums);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
