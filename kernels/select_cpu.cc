// Selection on the CPU. Bound: the bytes of L1 and L2 that are scanned, 1 byte per cluster and
// dimension and 2 bits per token and dimension, converted to float in registers.
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
#include "kernels/simd_dot-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void score_lists_target(const ScoreListsArgs& args) { score_lists_reference(args); }
void propose_target(const ProposeArgs& args) { propose_reference(args); }
void rank_target(const RankArgs& args) { rank_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

FloatVec vote_lanes(FloatTag d, FloatVec logit, FloatVec reference) {
  return exp_lanes(d, hn::Min(hn::Sub(logit, reference), hn::Set(d, kVoteExponentCap)));
}

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

// Adds one row's vote for the clusters of one segment; the first row starts the sum.
void add_cluster_votes(const HeadShape& shape, const float* q, float reference_level,
                       const LevelView& clusters, const float* logit, bool first_row,
                       float* votes) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const FloatVec two_weight = hn::Set(d, 2 * variance_weight(d, q, clusters, shape.beta));
  const FloatVec reference = hn::Set(d, reference_level);
  for (std::int32_t c = 0; c < clusters.count; c += lanes) {
    const std::int32_t left = clusters.count - c;
    const FloatVec deviation = hn::Sqrt(hn::Mul(two_weight, load_fp16(d, clusters.sigma + c)));
    const FloatVec reach =
        hn::MulAdd(hn::Set(d, 2.0f), deviation, load_first(d, logit + c, left, 0));
    const FloatVec before = first_row ? hn::Zero(d) : load_first(d, votes + c, left, 0);
    store_first(d, hn::Add(before, vote_lanes(d, reach, reference)), left, votes + c);
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
  for_segments(group.segments, segment, begin, end, [&](const HeadIndex& in, std::int32_t first) {
    for (std::int32_t c = 0; c < in.clusters.count; ++c) {
      bin_rows[vote_bin(group.cluster_vote[first + c])] += in.clusters.token_count[c];
    }
  });
  const std::int64_t wanted = std::max<std::int64_t>(
      static_cast<std::int64_t>(group.rule.breadth) * budget, kMinCandidateRows);
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
      for (int r = 0; r < rows(); ++r) {
        add_cluster_votes(shape, q + r * shape.d_k, group.reference_level[row + r], clusters,
                          logit + static_cast<std::int64_t>(r) * total, row + r == 0, votes);
      }
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

// ----------------------------------------------------------------------------------------- rank

// kRows rotated query rows as codes see them.
template <int kRows>
struct CodeQueries {
  // q_rotated [kRows, d]
  CodeQueries(const float* q_rotated, std::int32_t d, float beta) {
    for (int r = 0; r < kRows; ++r) {
      step[r] = beta * internal::round_query(q_rotated + static_cast<std::int64_t>(r) * d, d,
                                             internal::kCodeQueryLimit, levels[r]);
      sum[r] = std::accumulate(levels[r], levels[r] + d, 0);
    }
  }

  HWY_ALIGN std::int8_t levels[kRows][kMaxHeadDim];
  std::int32_t sum[kRows];  // of the levels
  float step[kRows];        // times β
};

// Σ q c of the rows in one vector of code words, from the words on. Dimension 4 k + b of a word's
// 16 stands in bits 2 k of byte b: masks give k = 0 and, times 4, k = 1; after a shift 2 and 3.
template <int kRows>
HWY_INLINE void sum_codes(const CodeQueries<kRows>& q, const std::uint32_t* words,
                          std::int32_t steps, IntVec* total) {
  const IntTag di;
  const UintTag du;
  const UByteTag du8;
  const ByteTag d8;
  const auto plain = hn::Set(du, 0x03030303u);
  const auto times_4 = hn::Set(du, 0x0c0c0c0cu);
  for (int r = 0; r < kRows; ++r) total[r] = hn::Zero(di);
  for (std::int32_t begin = 0; begin < steps; begin += kCodeSumSteps) {
    CodeSum sum[kRows][2];
    for (auto& row : sum) row[0] = row[1] = zero_codes();
    for (std::int32_t g = begin; g < std::min(begin + kCodeSumSteps, steps); ++g) {
      const auto low = hn::LoadU(du, words + static_cast<std::int64_t>(g) * kCodePanel);
      const auto high = hn::ShiftRight<4>(low);
      const UByteVec codes[4] = {
          hn::BitCast(du8, hn::And(low, plain)), hn::BitCast(du8, hn::And(low, times_4)),
          hn::BitCast(du8, hn::And(high, plain)), hn::BitCast(du8, hn::And(high, times_4))};
      for (int r = 0; r < kRows; ++r) {
        for (int k = 0; k < 4; ++k) {
          std::int32_t four;
          std::memcpy(&four, q.levels[r] + g * kCodeGroup + 4 * k, sizeof(four));
          sum[r][k % 2] = add_codes(sum[r][k % 2], codes[k], hn::BitCast(d8, hn::Set(di, four)));
        }
      }
    }
    for (int r = 0; r < kRows; ++r) total[r] = close_codes(total[r], sum[r][0], sum[r][1]);
  }
}

// β rotate(q)·decode(code) of the 16 rows of a panel: out[r * out_stride + row].
template <int kRows>
HWY_INLINE void code_dots(const CodesView& codes, std::int32_t panel, const CodeQueries<kRows>& q,
                          float* out, std::int64_t out_stride) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::uint32_t* words = codes.codes + static_cast<std::int64_t>(panel) * codes.d_k;
  for (std::int32_t lane = 0; lane < kCodePanel; lane += lanes) {
    IntVec total[kRows];
    sum_codes<kRows>(q, words + lane, codes.d_k / kCodeGroup, total);
    const std::int32_t row = panel * kCodePanel + lane;
    const FloatVec scale = load_fp16(d, codes.scale + row);
    for (int r = 0; r < kRows; ++r) {
      const IntVec twice = hn::ShiftLeft<1>(total[r]);
      const FloatVec dot = hn::ConvertTo(d, hn::Sub(twice, hn::Set(di, 3 * q.sum[r])));
      hn::StoreU(hn::Mul(hn::Mul(dot, scale), hn::Set(d, q.step[r])), d,
                 out + r * out_stride + row);
    }
  }
}

// Residual dots of all panels that hold a row of a candidate.
template <int kRows>
HWY_NOINLINE void segment_dots(const HeadIndex& segment, const std::uint8_t* candidate,
                               const CodeQueries<kRows>& q, float* out, std::int64_t out_stride) {
  std::int32_t next = 0;
  for_candidate_runs(candidate, segment.clusters.count, [&](std::int32_t c, std::int32_t end) {
    const RowRange rows = rows_of(segment.clusters, c, end);
    for (std::int32_t panel = std::max(rows.first / kCodePanel, next);
         panel <= (rows.end - 1) / kCodePanel; ++panel) {
      code_dots<kRows>(segment.codes, panel, q, out, out_stride);
      next = panel + 1;
    }
  });
}

// Makes x̂ of the residual dots of one segment and adds one row's votes; the first row starts the
// sum.
void finish_logits(const HeadIndex& segment, const std::uint8_t* candidate, const float* base,
                   float reference_level, bool first_row, float* logit, float* vote) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const FloatVec reference = hn::Set(d, reference_level);
  for_candidate_runs(candidate, segment.clusters.count, [&](std::int32_t c, std::int32_t end) {
    const RowRange rows = rows_of(segment.clusters, c, end);
    for (; c < end; ++c) {
      const std::int32_t first = segment.clusters.first_row[c];
      const std::int32_t count = segment.clusters.token_count[c];
      const FloatVec mean = hn::Set(d, base[c]);
      for (std::int32_t i = 0; i < count; i += lanes) {
        const FloatVec x = hn::Add(load_first(d, logit + first + i, count - i, 0), mean);
        store_first(d, x, count - i, logit + first + i);
      }
    }
    for (std::int32_t row = rows.first; row < rows.end; row += lanes) {
      const std::int32_t left = rows.end - row;
      const FloatVec x = load_first(d, logit + row, left, 0);
      const FloatVec before = first_row ? hn::Zero(d) : load_first(d, vote + row, left, 0);
      store_first(d, hn::Add(before, vote_lanes(d, x, reference)), left, vote + row);
    }
  });
}

bool ranks_before(const RankedRow& a, const RankedRow& b) {
  return a.vote != b.vote ? a.vote > b.vote : a.index < b.index;
}

// The rows with the largest votes, `budget` of them. Votes are filtered against the worst of the
// best so far, so most rows cost one comparison.
class BestRows {
 public:
  BestRows(std::int32_t budget, RankedRow* best) : budget_(budget), best_(best) {}

  // votes[i] of the rows [begin, end) of the table; call with ascending rows.
  void add(const float* votes, std::int32_t begin, std::int32_t end) {
    if (budget_ == 0) return;
    const FloatTag d;
    const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
    const std::int32_t room = static_cast<std::int32_t>(rank_scratch_rows(budget_)) - lanes;
    for (std::int32_t i = begin; i < end; i += lanes) {
      const FloatVec v = load_first(d, votes + i, end - i, -1);
      std::uint8_t bits[8] = {};
      if (hn::StoreMaskBits(d, hn::Gt(v, hn::Set(d, threshold_)), bits) == 0) continue;
      std::uint64_t above;
      std::memcpy(&above, bits, sizeof(above));
      for (; above != 0; above &= above - 1) {
        const std::int32_t row = i + __builtin_ctzll(above);
        best_[count_++] = {votes[row], row};
      }
      if (count_ > room) cut();
    }
  }

  // Puts them first into `best`, ascending by row; returns how many there are.
  std::int32_t finish() {
    if (count_ > budget_) cut();
    std::sort(best_, best_ + count_,
              [](const RankedRow& a, const RankedRow& b) { return a.index < b.index; });
    return count_;
  }

 private:
  void cut() {
    std::nth_element(best_, best_ + budget_ - 1, best_ + count_, ranks_before);
    threshold_ = best_[budget_ - 1].vote;
    count_ = budget_;
  }

  const std::int32_t budget_;
  RankedRow* const best_;
  std::int32_t count_ = 0;
  float threshold_ = -0.5f;
};

// Appends the best rows, which come out ascending, so that the segment only moves forward.
void append_selected(const RankGroup& group, BestRows& best, std::int32_t segment,
                     std::int32_t segment_begin) {
  const std::int32_t count = best.finish();
  std::int32_t& selected = *group.selected_count;
  for (std::int32_t i = 0; i < count; ++i) {
    while (group.ranking[i].index >= segment_begin + group.segments[segment].codes.row_count) {
      segment_begin += group.segments[segment++].codes.row_count;
    }
    group.selected[selected++] = {segment, group.ranking[i].index - segment_begin};
  }
}

// x̂ and votes of all candidates.
void score_tokens(const HeadShape& shape, const RankGroup& group, const TableSize& total) {
  for_row_blocks(group.row_count, [&](auto rows, std::int32_t row) {
    const CodeQueries<rows()> q(group.q_rotated + static_cast<std::int64_t>(row) * shape.d_k,
                                shape.d_k, shape.beta);
    const float* base = group.cluster_logit + static_cast<std::int64_t>(row) * total.clusters;
    float* logit = group.token_logit + static_cast<std::int64_t>(row) * total.rows;
    const std::uint8_t* candidate = group.candidate;
    float* vote = group.vote;
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const HeadIndex& segment = group.segments[s];
      segment_dots<rows()>(segment, candidate, q, logit, total.rows);
      for (int r = 0; r < rows(); ++r) {
        finish_logits(segment, candidate, base + static_cast<std::int64_t>(r) * total.clusters,
                      group.reference_level[row + r], row + r == 0,
                      logit + static_cast<std::int64_t>(r) * total.rows, vote);
      }
      base += segment.clusters.count;
      candidate += segment.clusters.count;
      logit += segment.codes.row_count;
      vote += segment.codes.row_count;
    }
  });
}

void rank(const HeadShape& shape, const RankGroup& group) {
  const TableSize total = table_size(group.segments, group.segment_count);
  score_tokens(shape, group, total);
  *group.selected_count = 0;
  const bool by_segment = group.rule.segment_budgets != nullptr;
  BestRows of_all(by_segment ? 0 : group.rule.budget, group.ranking);
  const std::uint8_t* candidate = group.candidate;
  std::int32_t first_row = 0;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const HeadIndex& segment = group.segments[s];
    BestRows of_segment(by_segment ? group.rule.segment_budgets[s] : 0, group.ranking);
    BestRows& best = by_segment ? of_segment : of_all;
    for_candidate_runs(candidate, segment.clusters.count, [&](std::int32_t c, std::int32_t end) {
      const RowRange rows = rows_of(segment.clusters, c, end);
      best.add(group.vote, first_row + rows.first, first_row + rows.end);
    });
    if (by_segment) append_selected(group, of_segment, s, first_row);
    candidate += segment.clusters.count;
    first_row += segment.codes.row_count;
  }
  if (!by_segment) append_selected(group, of_all, 0, 0);
}

}  // namespace

void score_lists_target(const ScoreListsArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) score_lists(args.shape, args.groups[g]);
}
void propose_target(const ProposeArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) propose(args.shape, args.groups[g]);
}
void rank_target(const RankArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) rank(args.shape, args.groups[g]);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(score_lists_target);
HWY_EXPORT(propose_target);
HWY_EXPORT(rank_target);

void score_lists_cpu(const ScoreListsArgs& args) { HWY_DYNAMIC_DISPATCH(score_lists_target)(args); }
void propose_cpu(const ProposeArgs& args) { HWY_DYNAMIC_DISPATCH(propose_target)(args); }
void rank_cpu(const RankArgs& args) { HWY_DYNAMIC_DISPATCH(rank_target)(args); }

}  // namespace icefield
#endif
