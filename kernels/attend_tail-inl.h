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

// w = e^(x - largest) of the unselected rows of a cluster, in one vector to be summed; w (x - mean)
// of each is added to `drift`.
HWY_INLINE FloatVec rest_weights(const float* logit, std::int32_t count, std::uint64_t selected,
                                 float largest, float mean, FloatVec& drift) {
  const FloatTag d;
  constexpr float kNothing = -1e30f;  // weighs 0, also times itself
  const FloatVec reference = hn::Set(d, largest);
  FloatVec sum = hn::Zero(d);
  for (std::int32_t i = 0; i < count; i += kLanes) {
    const FloatVec x = load_first(d, logit + i, count - i, kNothing);
    FloatVec weight = exp_lanes(d, hn::Sub(x, reference));
    const std::uint64_t bits = selected >> i;
    if ((bits & ((std::uint64_t{1} << kLanes) - 1)) != 0) {
      std::uint8_t bytes[8];
      std::memcpy(bytes, &bits, sizeof(bytes));
      weight = hn::IfThenZeroElse(hn::LoadMaskBits(d, bytes), weight);
    }
    sum = hn::Add(sum, weight);
    drift = hn::MulAdd(weight, hn::Sub(x, hn::Set(d, mean)), drift);
  }
  return sum;
}

// Sums over lanes, kLanes of them at a time: vectors go in with the place of their sum.
class LaneSums {
 public:
  HWY_INLINE void add(FloatVec v, float* place) {
    hn::Store(v, FloatTag(), vectors_ + static_cast<std::ptrdiff_t>(count_) * kLanes);
    places_[count_] = place;
    if (++count_ == kLanes) flush();
  }
  HWY_INLINE void flush() {
    const FloatTag d;
    FloatVec v[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      v[i] = hn::Load(d, vectors_ + static_cast<std::ptrdiff_t>(i) * kLanes);
    }
    HWY_ALIGN float sums[kLanes];
    hn::Store(sum_each(d, v), d, sums);
    for (int i = 0; i < count_; ++i) *places_[i] = sums[i];
    count_ = 0;
  }

 private:
  HWY_ALIGN float vectors_[kLanes * kLanes] = {};
  float* places_[kLanes];
  int count_ = 0;
};

// Puts the weights of the candidates' rests into term[r * terms + c] for rows from first_row on,
// and adds their drift to drift[r] as if no row of theirs were selected.
template <int kRows>
HWY_INLINE void rest_terms(const AttendGroup& group, std::int32_t first_row, const TailShape& tail,
                           const float* largest, float* term, float* drift) {
  const FloatTag d;
  LaneSums sums;
  FloatVec drifts[kRows];
  for (FloatVec& v : drifts) v = hn::Zero(d);
  SelectedCursor cursor{group};
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    if (accounting(group, s) != Accounting::kTokens) return;
    const float* logit =
        group.token_logit + static_cast<std::int64_t>(first_row) * tail.size.rows + at.rows;
    const float* mean = group.cluster_logit +
                        static_cast<std::int64_t>(first_row) * tail.size.clusters + at.clusters;
    for_candidate_runs(
        group.candidate + at.clusters, segment.clusters.count,
        [&](std::int32_t c, std::int32_t end) {
          for (; c < end; ++c) {
            const std::int32_t first = segment.clusters.first_row[c];
            const std::int32_t count = segment.clusters.token_count[c];
            const std::uint64_t selected = cursor.take(s, first, count);
            if (__builtin_popcountll(selected) == count) {
              for (int r = 0; r < kRows; ++r) term[r * tail.terms + at.clusters + c] = 0;
              continue;
            }
            for (int r = 0; r < kRows; ++r) {
              if (largest[r] == -HUGE_VALF) continue;
              sums.add(rest_weights(logit + r * static_cast<std::int64_t>(tail.size.rows) + first,
                                    count, selected, largest[r],
                                    mean[r * static_cast<std::int64_t>(tail.size.clusters) + c],
                                    drifts[r]),
                       term + r * tail.terms + at.clusters + c);
            }
          }
        });
  });
  sums.flush();
  for (int r = 0; r < kRows; ++r) drift[r] += sum_lanes(d, drifts[r]);
}

// Shares of the tail and of what stands in for missing data.
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

// The mean of the rows of a cluster that `bits` marks.
inline float mean_of_selected(const float* logit, std::uint64_t bits, std::int32_t taken) {
  float sum = 0;
  for (; bits != 0; bits &= bits - 1) sum += logit[__builtin_ctzll(bits)];
  return sum / static_cast<float>(taken);
}

// Gives the clusters with selected rows their factor n/(n-s), and every selected row its share of
// what is taken out: taken_out[r * selected_stride + k] of row k of S. The drift of such a rest is
// from the mean of what is left.
template <int kRows>
HWY_INLINE void split_rests(const AttendGroup& group, std::int32_t first_row, const TailShape& tail,
                            float* term, float* taken_out, float* drift) {
  SelectedCursor cursor{group};
  std::fill_n(taken_out, kRows * tail.selected_stride, 0.0f);
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    if (accounting(group, s) != Accounting::kTokens) return;
    for (std::int32_t c = 0; c < segment.clusters.count && cursor.next < group.selected_count;
         ++c) {
      const std::int32_t count = segment.clusters.token_count[c];
      const std::int32_t first = segment.clusters.first_row[c];
      const std::uint64_t bits = cursor.take(s, first, count);
      const std::int32_t taken = __builtin_popcountll(bits);
      if (taken == 0 || taken == count) continue;
      const float per_row = 1.0f / static_cast<float>(count - taken);
      for (int r = 0; r < kRows; ++r) {
        float& weight = term[r * tail.terms + at.clusters + c];
        const std::int64_t h = first_row + r;
        const float* logit = group.token_logit + h * tail.size.rows + at.rows + first;
        drift[r] -= weight * static_cast<float>(taken) * per_row *
                    (group.cluster_logit[h * tail.size.clusters + at.clusters + c] -
                     mean_of_selected(logit, bits, taken));
        std::fill_n(taken_out + r * tail.selected_stride + cursor.next - taken, taken,
                    weight * per_row);
        weight *= static_cast<float>(count) * per_row;
      }
    }
  });
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
  }
  rest_terms<kRows>(group, first_row, tail, sums.largest, term, sums.drift);
  for (int r = 0; r < kRows; ++r) {
    sum_terms(group, tail, term + r * tail.terms, sums.weight[r], sums.fault[r]);
    std::fill_n(sums.out[r], shape.d_v, 0.0f);
  }
  if (group.selected_count > 0) {
    split_rests<kRows>(group, first_row, tail, term, taken_out, sums.drift);
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
