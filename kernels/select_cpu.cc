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

// The bits of a vote, which is not negative, grow with it.
std::int32_t vote_bits(float vote) {
  std::int32_t bits;
  std::memcpy(&bits, &vote, sizeof(bits));
  return bits;
}
// The highest of them, an exponent and three digits, sort clusters into bins; the last of a bin.
constexpr int kVoteBins = 1 << 11;
constexpr std::int32_t end_of_bin(int bin) {
  return static_cast<std::int32_t>(((static_cast<std::uint32_t>(bin) + 1) << 20) - 1);
}

// Σ rows[c] of the clusters whose votes have larger bits.
std::int32_t rows_above(const float* votes, const std::int32_t* rows, std::int32_t count,
                        std::int32_t bits) {
  const IntTag di;
  const auto least = hn::Set(di, bits);
  IntVec sum = hn::Zero(di);
  std::int32_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const IntVec vote = hn::BitCast(di, hn::LoadU(FloatTag(), votes + c));
    sum = hn::Add(sum, hn::IfThenElseZero(hn::Gt(vote, least), hn::LoadU(di, rows + c)));
  }
  std::int32_t total = hn::GetLane(hn::SumOfLanes(di, sum));
  for (; c < count; ++c) total += vote_bits(votes[c]) > bits ? rows[c] : 0;
  return total;
}

// Makes candidates of the clusters [begin, end) above a bin; those in it are written to `at`, in
// order. Returns the end of these.
std::int32_t* take_above(const ProposeGroup& group, std::int32_t begin, std::int32_t end, int bin,
                         std::int32_t* at) {
  const IntTag di;
  const hn::Rebind<std::uint8_t, IntTag> d8;
  const auto below_bin = hn::Set(di, end_of_bin(bin - 1));
  const auto of_bin = hn::Set(di, end_of_bin(bin));
  std::int32_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    const IntVec vote = hn::BitCast(di, hn::LoadU(FloatTag(), group.cluster_vote + c));
    const IntVec above = hn::IfThenElseZero(hn::Gt(vote, of_bin), hn::Set(di, 1));
    hn::StoreU(hn::DemoteTo(d8, above), d8, group.candidate + c);
    std::uint8_t bytes[8] = {};
    hn::StoreMaskBits(di, hn::AndNot(hn::Gt(vote, of_bin), hn::Gt(vote, below_bin)), bytes);
    std::uint64_t in_bin;
    std::memcpy(&in_bin, bytes, sizeof(in_bin));
    for (; in_bin != 0; in_bin &= in_bin - 1) *at++ = c + __builtin_ctzll(in_bin);
  }
  for (; c < end; ++c) {
    const std::int32_t vote = vote_bits(group.cluster_vote[c]);
    group.candidate[c] = vote > end_of_bin(bin) ? 1 : 0;
    if (vote > end_of_bin(bin - 1) && vote <= end_of_bin(bin)) *at++ = c;
  }
  return at;
}

// C among the clusters [begin, end), those of the segments from `segment` on: the shortest prefix
// in order of vote that holds enough rows. The bin of votes in which the prefix ends is searched
// for by halves, and only what is in it is sorted.
void take_candidates(const ProposeGroup& group, std::int32_t segment, std::int32_t begin,
                     std::int32_t end, std::int32_t budget) {
  const bool all = group.rule.breadth == kAllClusters;
  if (budget == 0 || all) {
    std::fill(group.candidate + begin, group.candidate + end,
              static_cast<std::uint8_t>(budget > 0 ? 1 : 0));
    return;
  }
  std::int32_t rows = 0;
  for_segments(group.segments, segment, begin, end, [&](const HeadIndex& in, std::int32_t first) {
    std::copy_n(in.clusters.token_count, in.clusters.count, group.order + first);
    rows += in.indexed_rows();
  });
  const auto rows_of_votes_above = [&](std::int32_t bits) {
    return rows_above(group.cluster_vote + begin, group.order + begin, end - begin, bits);
  };
  const std::int32_t reaching_rows = rows_of_votes_above(vote_bits(kReachingVote) - 1);
  const std::int64_t wanted = candidate_rows(group.rule.breadth, budget, rows, reaching_rows);
  int cut = 0;
  for (int step = kVoteBins / 2; step > 0; step /= 2) {
    if (rows_of_votes_above(end_of_bin(cut + step - 1)) >= wanted) cut += step;
  }
  std::int64_t taken = rows_of_votes_above(end_of_bin(cut));
  // Clusters above the cut are in; those in it are put in order.
  std::int32_t* const at_cut = take_above(group, begin, end, cut, group.order + begin);
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
