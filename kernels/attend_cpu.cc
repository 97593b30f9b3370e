// Attention on the CPU: online softmax over blocks of rows, then the tail's terms. Bound: the bytes
// of the rows for long runs, the dot products for few rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/level_dots-inl.h"
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

constexpr int kBlock = RowRun::kMaxRows;  // rows per softmax block

// Sums of up to kRowBlock query rows, unnormalised: out = Σ w x, total = Σ w, w = e^(t - largest).
struct Sums {
  HWY_ALIGN float out[kRowBlock][kMaxHeadDim];
  float largest[kRowBlock];
  float total[kRowBlock];
  float tail[kRowBlock];
  float fault[kRowBlock];
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

// acc[r] *= factor[r].
template <int kRows>
HWY_INLINE void scale_rows(Sums& sums, const float* factor, std::int32_t d_v) {
  const FloatTag d;
  for (int r = 0; r < kRows; ++r) {
    const FloatVec f = hn::Set(d, factor[r]);
    for (std::int32_t j = 0; j < d_v; j += static_cast<std::int32_t>(hn::Lanes(d))) {
      hn::Store(hn::Mul(hn::Load(d, sums.out[r] + j), f), d, sums.out[r] + j);
    }
  }
}

// out[r] += Σ_i weight[r * stride + i] x_i for the vectors x_i of `load(i, j)`, lanes from j on.
template <int kRows, class Load>
HWY_INLINE void add_weighted(Sums& sums, const float* weight, std::int64_t stride,
                             std::int64_t count, std::int32_t d_v, const Load& load) {
  const FloatTag d;
  constexpr int kVecs = HWY_MAX_BYTES >= 64 ? 4 : 2;  // sums that fit the registers
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t j = 0; j < d_v; j += kVecs * lanes) {
    FloatVec sum[kRows][kVecs];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Load(d, sums.out[r] + j + v * lanes);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      FloatVec x[kVecs];
      for (int v = 0; v < kVecs; ++v) x[v] = load(i, j + v * lanes);
      for (int r = 0; r < kRows; ++r) {
        const FloatVec w = hn::Set(d, weight[r * stride + i]);
        for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(w, x[v], sum[r][v]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) hn::Store(sum[r][v], d, sums.out[r] + j + v * lanes);
    }
  }
}

// logit[r][i] = β q_r·k_i.
template <int kRows>
HWY_INLINE void row_logits(const Bf16* const* rows, int count, const float* q, std::int32_t d_k,
                           float beta, float logit[kRowBlock][kBlock]) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (int i = 0; i < count; ++i) {
    FloatVec sum[kRows];
    for (FloatVec& s : sum) s = hn::Zero(d);
    for (std::int32_t j = 0; j < d_k; j += lanes) {
      const FloatVec k = load_bf16(d, rows[i] + j);
      for (int r = 0; r < kRows; ++r) {
        sum[r] = hn::MulAdd(k, hn::LoadU(d, q + static_cast<std::int64_t>(r) * d_k + j), sum[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) logit[r][i] = beta * sum_lanes(d, sum[r]);
  }
}

// Moves the sums of row r to a new largest logit and returns the factor for what they hold.
HWY_INLINE float raise_largest(Sums& sums, int r, float logit) {
  const float before = sums.largest[r];
  sums.largest[r] = std::max(before, logit);
  const float factor = before == -HUGE_VALF ? 0.0f : std::exp(before - sums.largest[r]);
  sums.total[r] *= factor;
  return factor;
}

// Exact rows: seen[r] of them for query row r.
template <int kRows>
void add_rows(const HeadShape& shape, const AttendGroup& group, const float* q,
              const std::int64_t* seen, Sums& sums) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  RowReader reader(group, shape.d_k + shape.d_v);
  const Bf16* rows[kBlock];
  HWY_ALIGN float logit[kRowBlock][kBlock];
  std::int64_t done = 0;
  for (int count = reader.next(rows); count > 0; count = reader.next(rows)) {
    row_logits<kRows>(rows, count, q, shape.d_k, shape.beta, logit);
    float factor[kRows];
    for (int r = 0; r < kRows; ++r) {
      const auto visible = std::clamp<std::int64_t>(seen[r] - done, 0, count);
      std::fill(logit[r] + visible, logit[r] + kBlock, -HUGE_VALF);
      if (visible == 0) {  // e^(-inf - largest) would be right too, but largest may be -inf
        factor[r] = 1;
        std::fill_n(logit[r], kBlock, 0.0f);
        continue;
      }
      factor[r] = raise_largest(sums, r, max_of(d, logit[r], kBlock));
      FloatVec sum = hn::Zero(d);
      for (std::int64_t i = 0; i < kBlock; i += lanes) {
        const FloatVec weight =
            exp_lanes(d, hn::Sub(hn::Load(d, logit[r] + i), hn::Set(d, sums.largest[r])));
        hn::Store(weight, d, logit[r] + i);
        sum = hn::Add(sum, weight);
      }
      // Padding lanes hold e^-104, too small to count.
      sums.total[r] += sum_lanes(d, sum);
    }
    scale_rows<kRows>(sums, factor, shape.d_v);
    add_weighted<kRows>(sums, logit[0], kBlock, count, shape.d_v,
                        [&](std::int64_t i, std::int32_t j)
                            HWY_ATTR { return load_bf16(d, rows[i] + shape.d_k + j); });
    done += count;
  }
}

// ----------------------------------------------------------------------------------------- tail

// Walks the clusters of all segments with the rows of S that lie in each.
struct ClusterCursor {
  const AttendGroup& group;
  std::int32_t selected = 0;  // first row of S not yet passed

  // Rows of S in rows [first, end) of segment s; call with ascending ranges.
  std::int32_t count_selected(std::int32_t s, std::int32_t first, std::int32_t end) {
    const auto before = [&](std::int32_t row) {
      return selected < group.selected_count &&
             (group.selected[selected].segment < s ||
              (group.selected[selected].segment == s && group.selected[selected].row < row));
    };
    while (before(first)) ++selected;
    const std::int32_t begin = selected;
    while (before(end)) ++selected;
    return selected - begin;
  }
};

// Unselected logits of a cluster's rows: `logit[count]` without the `taken` rows of S, the first of
// which is `chosen`. Returns how many were written to `rest`.
int gather_rest(const float* logit, std::int32_t first, std::int32_t count, const TableRow* chosen,
                std::int32_t taken, float* rest) {
  int written = 0;
  std::int32_t next = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    if (next < taken && chosen[next].row == first + i) {
      ++next;
    } else {
      rest[written++] = logit[i];
    }
  }
  return written;
}

// Runs f(c, s, in_segment, taken, first_taken) for every cluster of the segments that are accounted
// for by tokens; c counts over all segments.
template <class F>
HWY_INLINE void for_each_ranked(const AttendGroup& group, F&& f) {
  ClusterCursor cursor{group};
  std::int32_t c = 0;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const LevelView& clusters = group.segments[s].clusters;
    const bool ranked = group.accounts == nullptr || group.accounts[s].by == Accounting::kTokens;
    for (std::int32_t i = 0; i < clusters.count; ++i, ++c) {
      if (!ranked) continue;
      const std::int32_t first = clusters.first_row[i];
      const std::int32_t taken = cursor.count_selected(s, first, first + clusters.token_count[i]);
      f(c, s, i, taken, cursor.selected - taken);
    }
  }
}

// λ̄ of a level's clusters: ln n + β q·μ + min(w σ, 1), where `logit` holds β q·μ.
void term_logits(const LevelView& level, const float* q, float beta, const float* logit,
                 float* out) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const FloatVec weight = hn::Set(d, variance_weight(d, q, level, beta));
  for (std::int32_t c = 0; c < level.count; c += lanes) {
    const std::int32_t left = level.count - c;
    const FloatVec spread =
        hn::Min(hn::Mul(weight, load_fp16(d, level.sigma + c)), hn::Set(d, kTermVarianceCap));
    const FloatVec dot = load_first(d, logit + c, left, 0);
    store_first(d, hn::Add(hn::Add(hn::LoadU(d, level.ln_count + c), dot), spread), left, out + c);
  }
}

struct TailSize {
  std::int32_t clusters;
  std::int32_t lists;
  std::int32_t rows;
  std::int32_t terms() const { return clusters + lists; }
};

// Logits of the tail's terms of query row h into term[clusters + lists]; clusters that have no term
// (all selected, or their lists stand for them) get -inf, candidates' rests are left to the caller
// with their largest logit as a stand-in. Returns the largest of all.
float tail_logits(const HeadShape& shape, const AttendGroup& group, std::int32_t h,
                  const TailSize& size, float* term) {
  const FloatTag d;
  const float* q = group.q + static_cast<std::int64_t>(h) * shape.d_k;
  std::fill_n(term, size.terms(), -HUGE_VALF);
  std::int32_t first = 0;
  std::int32_t first_list = size.clusters;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const HeadIndex& segment = group.segments[s];
    const bool lists = group.accounts != nullptr && group.accounts[s].by == Accounting::kLists;
    if (lists) {
      const MeanQueries<1> rounded(q, shape.d_k, shape.beta);
      level_dots<1>(segment.lists, rounded, term + first_list, size.lists);
      term_logits(segment.lists, q, shape.beta, term + first_list, term + first_list);
    } else {
      const float* dots =
          group.cluster_logit + static_cast<std::int64_t>(h) * size.clusters + first;
      term_logits(segment.clusters, q, shape.beta, dots, term + first);
    }
    first += segment.clusters.count;
    first_list += segment.lists.count;
  }
  const float* logits = group.token_logit + static_cast<std::int64_t>(h) * size.rows;
  std::int32_t segment = 0;
  std::int32_t row_base = 0;
  for_each_ranked(group, [&](std::int32_t c, std::int32_t s, std::int32_t i, std::int32_t taken,
                             std::int32_t first_taken) {
    for (; segment < s; ++segment) row_base += group.segments[segment].codes.row_count;
    if (group.candidate[c] == 0) return;
    const LevelView& clusters = group.segments[s].clusters;
    const std::int32_t begin = clusters.first_row[i];
    const std::int32_t count = clusters.token_count[i];
    const float* at = logits + row_base + begin;
    HWY_ALIGN float rest[kMaxClusterTokens];
    if (taken == 0) {
      term[c] = max_of(d, at, count);
    } else {
      const int left = gather_rest(at, begin, count, group.selected + first_taken, taken, rest);
      term[c] = max_of(d, rest, left);
    }
  });
  return max_of(d, term, size.terms());
}

// Turns the logits into weights e^(t - largest): term[clusters + lists].
void tail_weights(const AttendGroup& group, std::int32_t h, const TailSize& size, float largest,
                  float* term) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t t = 0; t < size.terms(); t += lanes) {
    const FloatVec x = load_first(d, term + t, size.terms() - t, -HUGE_VALF);
    const FloatVec weight = hn::IfThenZeroElse(hn::Eq(x, hn::Set(d, -HUGE_VALF)),
                                               exp_lanes(d, hn::Sub(x, hn::Set(d, largest))));
    store_first(d, weight, size.terms() - t, term + t);
  }
  const float* logits = group.token_logit + static_cast<std::int64_t>(h) * size.rows;
  std::int32_t segment = 0;
  std::int32_t row_base = 0;
  for_each_ranked(group, [&](std::int32_t c, std::int32_t s, std::int32_t i, std::int32_t taken,
                             std::int32_t first_taken) {
    for (; segment < s; ++segment) row_base += group.segments[segment].codes.row_count;
    if (group.candidate[c] == 0) return;
    const LevelView& clusters = group.segments[s].clusters;
    const std::int32_t begin = clusters.first_row[i];
    const std::int32_t count = clusters.token_count[i];
    const float* at = logits + row_base + begin;
    HWY_ALIGN float rest[kMaxClusterTokens];
    if (taken == 0) {
      term[c] = sum_exp(d, at, count, largest);
    } else {
      const int left = gather_rest(at, begin, count, group.selected + first_taken, taken, rest);
      term[c] = sum_exp(d, rest, left, largest);
    }
  });
}

// Shares of the tail and of what stands in for missing data, and their part of the total.
void sum_tail(const AttendGroup& group, const TailSize& size, const float* term, int r,
              Sums& sums) {
  float tail = 0;
  float fault = 0;
  std::int32_t c = 0;
  std::int32_t l = size.clusters;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const bool segment_fault = group.accounts != nullptr && group.accounts[s].fault;
    for (std::int32_t i = 0; i < group.segments[s].clusters.count; ++i, ++c) {
      tail += term[c];
      if (segment_fault || (group.faulty != nullptr && group.faulty[c] != 0)) fault += term[c];
    }
    for (std::int32_t i = 0; i < group.segments[s].lists.count; ++i, ++l) {
      tail += term[l];
      if (segment_fault) fault += term[l];
    }
  }
  sums.total[r] += tail;
  sums.tail[r] = tail;
  sums.fault[r] = fault;
}

// out += Σ weight · mean over the clusters of one level. `weight` is consumed.
template <int kRows>
void add_means(const LevelView& level, float* weight, std::int64_t stride, Sums& sums) {
  const FloatTag d;
  for (int r = 0; r < kRows; ++r) {
    for (std::int32_t c = 0; c < level.count; ++c) weight[r * stride + c] *= level.value_scale[c];
  }
  add_weighted<kRows>(sums, weight, stride, level.count, level.d_v,
                      [&](std::int64_t i, std::int32_t j)
                          HWY_ATTR { return load_int8(d, level.value_means + i * level.d_v + j); });
}

// The rest of a cluster with selected rows has the vector n/(n-s) ν - Σ_S v/(n-s): takes the second
// half from the sums and puts the factor of the first into the weights.
template <int kRows>
void take_selected_out(const HeadShape& shape, const AttendGroup& group, float* term,
                       std::int64_t stride, Sums& sums) {
  const FloatTag d;
  RowReader reader(group, shape.d_k + shape.d_v);
  const Bf16* rows[kBlock];
  HWY_ALIGN float weight[kRowBlock][kBlock];
  std::int32_t block_begin = 0;
  int block_count = reader.next(rows);
  std::fill_n(weight[0], kRowBlock * kBlock, 0.0f);
  const auto flush = [&] {
    add_weighted<kRows>(sums, weight[0], kBlock, block_count, shape.d_v,
                        [&](std::int64_t i, std::int32_t j)
                            HWY_ATTR { return load_bf16(d, rows[i] + shape.d_k + j); });
    std::fill_n(weight[0], kRowBlock * kBlock, 0.0f);
    block_begin += block_count;
    block_count = reader.next(rows);
  };
  for_each_ranked(group, [&](std::int32_t c, std::int32_t s, std::int32_t i, std::int32_t taken,
                             std::int32_t first_taken) {
    const std::int32_t count = group.segments[s].clusters.token_count[i];
    if (taken == 0 || taken == count) return;
    const float per_row = 1.0f / static_cast<float>(count - taken);
    for (std::int32_t k = first_taken; k < first_taken + taken; ++k) {
      while (k >= block_begin + block_count) flush();
      for (int r = 0; r < kRows; ++r) weight[r][k - block_begin] = -term[r * stride + c] * per_row;
    }
    for (int r = 0; r < kRows; ++r) {
      term[r * stride + c] *= static_cast<float>(count) * per_row;
    }
  });
  if (block_count > 0) flush();
}

template <int kRows>
void add_tail(const HeadShape& shape, const AttendGroup& group, std::int32_t first_row,
              const TailSize& size, Sums& sums) {
  const std::int64_t stride = size.terms();
  float* term = group.scratch + first_row * stride;
  float factor[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float largest = tail_logits(shape, group, first_row + r, size, term + r * stride);
    factor[r] = 1;
    if (largest == -HUGE_VALF) {
      std::fill_n(term + r * stride, stride, 0.0f);
      continue;
    }
    factor[r] = raise_largest(sums, r, largest);
    tail_weights(group, first_row + r, size, sums.largest[r], term + r * stride);
    sum_tail(group, size, term + r * stride, r, sums);
  }
  scale_rows<kRows>(sums, factor, shape.d_v);
  take_selected_out<kRows>(shape, group, term, stride, sums);
  std::int32_t c = 0;
  std::int32_t l = size.clusters;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const HeadIndex& segment = group.segments[s];
    const bool lists = group.accounts != nullptr && group.accounts[s].by == Accounting::kLists;
    if (lists) {
      add_means<kRows>(segment.lists, term + l, stride, sums);
    } else {
      add_means<kRows>(segment.clusters, term + c, stride, sums);
    }
    c += segment.clusters.count;
    l += segment.lists.count;
  }
}

template <int kRows>
void finish(const HeadShape& shape, std::int32_t first_row, const Sums& sums,
            const Partial& result) {
  const FloatTag d;
  for (int r = 0; r < kRows; ++r) {
    const std::int32_t h = first_row + r;
    const float total = sums.total[r];
    const float inverse = total > 0 ? 1.0f / total : 0.0f;
    result.lse[h] = total > 0 ? sums.largest[r] + std::log(total) : -HUGE_VALF;
    result.tail[h] = sums.tail[r] * inverse;
    result.fault[h] = sums.fault[r] * inverse;
    float* out = result.out + static_cast<std::int64_t>(h) * shape.d_v;
    for (std::int32_t j = 0; j < shape.d_v; j += static_cast<std::int32_t>(hn::Lanes(d))) {
      hn::StoreU(hn::Mul(hn::Load(d, sums.out[r] + j), hn::Set(d, inverse)), d, out + j);
    }
  }
}

void attend(const HeadShape& shape, const AttendGroup& group) {
  ICE_CHECK(shape.d_k <= kMaxHeadDim && shape.d_v <= kMaxHeadDim);
  std::int64_t rows = 0;
  for (std::int32_t r = 0; r < group.run_count; ++r) {
    rows += __builtin_popcountll(group.runs[r].mask);
  }
  const TableSize table = table_size(group.segments, group.segment_count);
  const TailSize size{.clusters = table.clusters, .lists = table.lists, .rows = table.rows};
  for_row_blocks(group.row_count, [&](auto row_count, std::int32_t first) {
    constexpr int kRows = row_count();
    Sums sums;
    std::int64_t seen[kRows];
    for (int r = 0; r < kRows; ++r) {
      std::fill_n(sums.out[r], shape.d_v, 0.0f);
      sums.largest[r] = -HUGE_VALF;
      sums.total[r] = sums.tail[r] = sums.fault[r] = 0;
      seen[r] = rows - (group.hidden == nullptr ? 0 : group.hidden[first + r]);
    }
    add_rows<kRows>(shape, group, group.q + static_cast<std::int64_t>(first) * shape.d_k, seen,
                    sums);
    if (group.segment_count > 0) add_tail<kRows>(shape, group, first, size, sums);
    finish<kRows>(shape, first, sums, group.result);
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

void merge_cpu(const MergeArgs& args) {
  const Partial& result = args.result;
  for (std::int32_t h = 0; h < args.row_count; ++h) {
    float* out = result.out + static_cast<std::int64_t>(h) * args.d_v;
    std::fill_n(out, args.d_v, 0.0f);
    result.lse[h] = -HUGE_VALF;
    result.tail[h] = result.fault[h] = 0;
    float largest = -HUGE_VALF;
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      largest = std::max(largest, args.parts[p].lse[h]);
    }
    if (largest == -HUGE_VALF) continue;
    float total = 0;
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      total += std::exp(args.parts[p].lse[h] - largest);
    }
    result.lse[h] = largest + std::log(total);
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      const Partial& part = args.parts[p];
      const float weight = std::exp(part.lse[h] - largest) / total;
      const float* in = part.out + static_cast<std::int64_t>(h) * args.d_v;
      for (std::int32_t j = 0; j < args.d_v; ++j) out[j] += weight * in[j];
      result.tail[h] += weight * part.tail[h];
      result.fault[h] += weight * part.fault[h];
    }
  }
}

}  // namespace icefield
#endif
