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
#include "kernels/attend_rests-inl.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/level_dots-inl.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

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
// and for what has no term. Returns the largest logit of all, candidates' tokens included, those of
// selected rows too, which have no term: to leave them out would take as long as the rests.
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

// The largest logit of what has a term, where `term` is what mean_logits() made.
inline float largest_term(const AttendGroup& group, std::int32_t h, const TailShape& tail,
                          const float* term) {
  float largest = max_of(FloatTag(), term, tail.terms);
  SelectedRows selected(group);
  for_each_segment(group, [&](std::int32_t s, const HeadIndex& segment, const Offsets& at) {
    if (accounting(group, s) != Accounting::kTokens) return;
    const float* logit =
        group.token_logit + static_cast<std::int64_t>(h) * tail.size.rows + at.rows;
    const LevelView& clusters = segment.clusters;
    selected.enter(s);
    for_candidate_runs(group.candidate + at.clusters, clusters.count,
                       [&](std::int32_t c, std::int32_t end) {
                         for (; c < end; ++c) {
                           const std::int32_t first = clusters.first_row[c];
                           const std::int32_t count = clusters.token_count[c];
                           const std::uint64_t taken = selected.take(first, count);
                           for (std::int32_t i = 0; i < count; ++i) {
                             if ((taken >> i & 1) == 0) {
                               largest = std::max(largest, logit[first + i]);
                             }
                           }
                         }
                       });
  });
  return largest;
}

// Logits into weights e^(t - largest).
inline void weigh(float* term, std::int64_t count, float largest) {
  const FloatTag d;
  for (std::int64_t t = 0; t < count; t += kLanes) {
    const FloatVec x = load_first(d, term + t, count - t, -HUGE_VALF);
    store_first(d, exp_lanes(d, hn::Sub(x, hn::Set(d, largest))), count - t, term + t);
  }
}

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

// Below it the weights of a tail are too close to where e^x ends to be what they should: then the
// largest logit was that of a selected row, and far above all terms.
constexpr float kLeastTailWeight = 1e-30f;

// The weights of the tail relative to e^sums.largest, from the logits of mean_logits().
template <int kRows>
HWY_NOINLINE void weigh_tail(const HeadShape& shape, const AttendGroup& group,
                             std::int32_t first_row, const TailShape& tail, TailSums& sums) {
  float* term = group.scratch;
  for (int r = 0; r < kRows; ++r) {
    float* of_row = term + r * tail.terms;
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
  }
  rest_terms<kRows>(group, first_row, tail, term, term + kRows * tail.terms, sums);
}

// The tail of query rows [first_row, first_row + kRows) of a group.
template <int kRows>
HWY_NOINLINE void make_tail(const HeadShape& shape, const AttendGroup& group,
                            std::int32_t first_row, TailSums& sums) {
  const TailShape tail = tail_shape(group);
  float* term = group.scratch;
  for (int r = 0; r < kRows; ++r) {
    sums.largest[r] = mean_logits(shape, group, first_row + r, tail, term + r * tail.terms);
    std::fill_n(sums.out[r], shape.d_v, 0.0f);
  }
  weigh_tail<kRows>(shape, group, first_row, tail, sums);
  if (group.selected_count > 0) {
    if (*std::min_element(sums.weight, sums.weight + kRows) < kLeastTailWeight) {
      for (int r = 0; r < kRows; ++r) {
        float* of_row = term + r * tail.terms;
        static_cast<void>(mean_logits(shape, group, first_row + r, tail, of_row));
        sums.largest[r] = largest_term(group, first_row + r, tail, of_row);
      }
      weigh_tail<kRows>(shape, group, first_row, tail, sums);
    }
    sums.taken_out = term + kRows * tail.terms;
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
