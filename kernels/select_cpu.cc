// Scores of lists, and which clusters propose their tokens, on the CPU. Bound: the bytes of L0 and
// L1, one per cluster and dimension, up to about four query rows; then their products.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/select_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>
#include <cstring>
#include <numeric>

#include "hwy/highway.h"
#include "kernels/level_dots-inl.h"
#include "kernels/select.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void score_lists_target(const ScoreListsArgs& args) { score_lists_reference(args); }
void propose_target(const ProposeArgs& args) { propose_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

// ---------------------------------------------------------------------------------- score lists

// Turns β q·μ of one segment's lists into λ, in place.
void finish_list_logits(const HeadShape& shape, const float* q, const LevelView& lists,
                        float* logit) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const FloatVec weight = hn::Set(d, variance_weight(d, q, lists, shape.beta));
  for (std::int32_t l = 0; l < lists.count; l += lanes) {
    const FloatVec spread =
        hn::Min(hn::Mul(weight, load_fp16(d, lists.sigma + l)), hn::Set(d, kVoteVarianceCap));
    const FloatVec dot = load_first(d, logit + l, lists.count - l, 0);
    store_first(d, hn::Add(hn::Add(hn::LoadU(d, lists.ln_count + l), dot), spread), lists.count - l,
                logit + l);
  }
}

void score_lists(const HeadShape& shape, const ScoreListsGroup& group) {
  const FloatTag d;
  const std::int32_t total = table_size(group.segments, group.segment_count).lists;
  std::fill_n(group.segment_mass, group.segment_count, 0.0f);
  for_row_blocks(group.row_count, [&](auto rows, std::int32_t row) {
    const float* q = group.q + static_cast<std::int64_t>(row) * shape.d_k;
    const MeanQueries<rows()> rounded(q, shape.d_k, shape.beta);
    float* logit = group.list_logit + static_cast<std::int64_t>(row) * total;
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const LevelView& lists = group.segments[s].lists;
      level_dots<rows()>(lists, rounded, logit, total);
      for (int r = 0; r < rows(); ++r) {
        finish_list_logits(shape, q + r * shape.d_k, lists,
                           logit + static_cast<std::int64_t>(r) * total);
      }
      logit += lists.count;
    }
  });
  for (std::int32_t h = 0; h < group.row_count; ++h) {
    const float* logit = group.list_logit + static_cast<std::int64_t>(h) * total;
    const float largest = std::max(max_of(d, logit, total), group.exact_lse[h]);
    float reference = largest;
    if (std::isfinite(largest)) {
      reference +=
          std::log(sum_exp(d, logit, total, largest) + std::exp(group.exact_lse[h] - largest));
    }
    group.reference_level[h] = reference;
    // λ <= R, so the cap of 80 never bites here.
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const std::int32_t count = group.segments[s].lists.count;
      group.segment_mass[s] += sum_exp(d, logit, count, reference);
      logit += count;
    }
  }
}

// -------------------------------------------------------------------------------------- propose

// Adds the votes of kRows query rows for the clusters of one segment; the first block starts the
// sums. logit [kRows, stride].
template <int kRows>
HWY_NOINLINE void add_cluster_votes(const HeadShape& shape, const float* q,
                                    const float* reference_level, const LevelView& clusters,
                                    const float* logit, std::int64_t stride, bool first_block,
                                    float* votes) {
  const FloatTag d;
  float two_weight[kRows];
  for (int r = 0; r < kRows; ++r) {
    two_weight[r] = 2 * variance_weight(d, q + r * shape.d_k, clusters, shape.beta);
  }
  for (std::int32_t c = 0; c < clusters.count; c += kLanes) {
    const std::int32_t left = clusters.count - c;
    const FloatVec sigma = load_fp16(d, clusters.sigma + c);
    FloatVec vote = first_block ? hn::Zero(d) : load_first(d, votes + c, left, 0);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec deviation = hn::Sqrt(hn::Mul(hn::Set(d, two_weight[r]), sigma));
      const FloatVec reach = hn::MulAdd(hn::Set(d, kReachDeviations), deviation,
                                        load_first(d, logit + r * stride + c, left, 0));
      vote = hn::Add(vote, vote_lanes(d, reach, hn::Set(d, reference_level[r])));
    }
    store_first(d, vote, left, votes + c);
  }
}

std::int32_t cluster_rows(const ProposeGroup& group, std::int32_t cluster) {
  std::int32_t s = 0;
  while (cluster >= group.segments[s].clusters.count) cluster -= group.segments[s++].clusters.count;
  return group.segments[s].clusters.token_count[cluster];
}

// Clusters [begin, end) of the table belong to segments from `segment` on, which begins at
// `segment_begin`: calls f(segment, its first cluster in the table) for each.
template <class F>
HWY_INLINE void for_segments(const HeadIndex* segments, std::int32_t segment,
                             std::int32_t segment_begin, std::int32_t end, F&& f) {
  for (; segment_begin < end; segment_begin += segments[segment++].clusters.count) {
    f(segments[segment], segment_begin);
  }
}

// The bits of a vote, which is not negative, grow with it. The highest of them, an exponent and
// three digits, sort clusters into bins.
constexpr int kVoteBinShift = 20;
constexpr int kVoteBins = 1 << (31 - kVoteBinShift);
std::uint32_t vote_bin(float vote) {
  std::uint32_t bits;
  std::memcpy(&bits, &vote, sizeof(bits));
  return bits >> kVoteBinShift;
}

// C among the clusters [begin, end), those of the segments from `segment` on: the shortest prefix
// in order of vote that holds enough rows. Rows are counted by bin of vote; only the bin in which
// the prefix ends is sorted.
void take_candidates(const ProposeGroup& group, std::int32_t segment, std::int32_t begin,
                     std::int32_t end, std::int32_t budget) {
  const bool all = group.rule.breadth == kAllClusters;
  std::fill(group.candidate + begin, group.candidate + end,
            static_cast<std::uint8_t>(budget > 0 && all ? 1 : 0));
  if (budget == 0 || all) return;
  std::uint32_t bin_rows[kVoteBins] = {};
  std::int32_t rows = 0;
  std::int32_t reaching_rows = 0;
  for_segments(group.segments, segment, begin, end, [&](const HeadIndex& in, std::int32_t first) {
    for (std::int32_t c = 0; c < in.clusters.count; ++c) {
      const float vote = group.cluster_vote[first + c];
      bin_rows[vote_bin(vote)] += in.clusters.token_count[c];
      reaching_rows += vote >= kReachingVote ? in.clusters.token_count[c] : 0;
    }
    rows += in.indexed_rows();
  });
  const std::int64_t wanted = candidate_rows(group.rule.breadth, budget, rows, reaching_rows);
  std::int64_t taken = 0;
  int cut = kVoteBins - 1;
  for (; cut > 0 && taken + bin_rows[cut] < wanted; --cut) taken += bin_rows[cut];
  // Clusters above the cut are in; those in it are put in order.
  std::int32_t* at_cut = group.order + begin;
  for (std::int32_t c = begin; c < end; ++c) {
    const int bin = static_cast<int>(vote_bin(group.cluster_vote[c]));
    group.candidate[c] = bin > cut ? 1 : 0;
    *at_cut = c;
    at_cut += bin == cut ? 1 : 0;
  }
  std::sort(group.order + begin, at_cut, [&](std::int32_t a, std::int32_t b) {
    const float vote_a = group.cluster_vote[a];
    const float vote_b = group.cluster_vote[b];
    return vote_a != vote_b ? vote_a > vote_b : a < b;
  });
  for (std::int32_t* next = group.order + begin; next != at_cut && taken < wanted; ++next) {
    group.candidate[*next] = 1;
    taken += cluster_rows(group, *next);
  }
}

void propose(const HeadShape& shape, const ProposeGroup& group) {
  const std::int32_t total = table_size(group.segments, group.segment_count).clusters;
  for_row_blocks(group.row_count, [&](auto rows, std::int32_t row) {
    const float* q = group.q + static_cast<std::int64_t>(row) * shape.d_k;
    const MeanQueries<rows()> rounded(q, shape.d_k, shape.beta);
    float* logit = group.cluster_logit + static_cast<std::int64_t>(row) * total;
    float* votes = group.cluster_vote;
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const LevelView& clusters = group.segments[s].clusters;
      level_dots<rows()>(clusters, rounded, logit, total);
      add_cluster_votes<rows()>(shape, q, group.reference_level + row, clusters, logit, total,
                                row == 0, votes);
      logit += clusters.count;
      votes += clusters.count;
    }
  });
  if (group.rule.segment_budgets == nullptr) {
    take_candidates(group, 0, 0, total, group.rule.budget);
    return;
  }
  std::int32_t first = 0;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const std::int32_t end = first + group.segments[s].clusters.count;
    take_candidates(group, s, first, end, group.rule.segment_budgets[s]);
    first = end;
  }
}

}  // namespace

void score_lists_target(const ScoreListsArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) score_lists(args.shape, args.groups[g]);
}
void propose_target(const ProposeArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) propose(args.shape, args.groups[g]);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(score_lists_target);
HWY_EXPORT(propose_target);

void score_lists_cpu(const ScoreListsArgs& args) { HWY_DYNAMIC_DISPATCH(score_lists_target)(args); }
void propose_cpu(const ProposeArgs& args) { HWY_DYNAMIC_DISPATCH(propose_target)(args); }

}  // namespace icefield
#endif
