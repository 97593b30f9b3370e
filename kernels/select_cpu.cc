// Selection on the CPU. Bound: the bytes of L1 and L2 that are scanned, 1 byte per cluster and
// dimension and 2 bits per token and dimension, converted to float in registers.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/select_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>
#include <numeric>

#include "hwy/highway.h"
#include "kernels/select.h"
#include "kernels/simd-inl.h"

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

void score_lists(const HeadShape& shape, const ScoreListsGroup& group) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::int32_t total = table_size(group.segments, group.segment_count).lists;
  std::fill_n(group.segment_mass, group.segment_count, 0.0f);
  std::int32_t first = 0;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const LevelView& lists = group.segments[s].lists;
    all_level_dots(lists, group.q, group.row_count, shape.beta, group.list_logit + first, total);
    for (std::int32_t h = 0; h < group.row_count; ++h) {
      const FloatVec weight =
          hn::Set(d, variance_weight(d, group.q + static_cast<std::int64_t>(h) * shape.d_k, lists,
                                     shape.beta));
      float* logit = group.list_logit + static_cast<std::int64_t>(h) * total + first;
      for (std::int32_t l = 0; l < lists.count; l += lanes) {
        const FloatVec spread =
            hn::Min(hn::Mul(weight, load_fp16(d, lists.sigma + l)), hn::Set(d, kVoteVarianceCap));
        const FloatVec dot = load_first(d, logit + l, lists.count - l, 0);
        store_first(d, hn::Add(hn::Add(hn::LoadU(d, lists.ln_count + l), dot), spread),
                    lists.count - l, logit + l);
      }
    }
    first += lists.count;
  }
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

// Adds every row's vote for the clusters of one segment.
void add_cluster_votes(const HeadShape& shape, const ProposeGroup& group, const LevelView& clusters,
                       std::int32_t first, std::int32_t total) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  float* votes = group.cluster_vote + first;
  for (std::int32_t h = 0; h < group.row_count; ++h) {
    const float* q = group.q + static_cast<std::int64_t>(h) * shape.d_k;
    const FloatVec two_weight = hn::Set(d, 2 * variance_weight(d, q, clusters, shape.beta));
    const FloatVec reference = hn::Set(d, group.reference_level[h]);
    const float* logit = group.cluster_logit + static_cast<std::int64_t>(h) * total + first;
    for (std::int32_t c = 0; c < clusters.count; c += lanes) {
      const std::int32_t left = clusters.count - c;
      const FloatVec deviation = hn::Sqrt(hn::Mul(two_weight, load_fp16(d, clusters.sigma + c)));
      const FloatVec reach =
          hn::MulAdd(hn::Set(d, 2.0f), deviation, load_first(d, logit + c, left, 0));
      const FloatVec before = h == 0 ? hn::Zero(d) : load_first(d, votes + c, left, 0);
      store_first(d, hn::Add(before, vote_lanes(d, reach, reference)), left, votes + c);
    }
  }
}

std::int32_t tokens_of(const ProposeGroup& group, std::int32_t cluster) {
  std::int32_t s = 0;
  while (cluster >= group.segments[s].clusters.count) cluster -= group.segments[s++].clusters.count;
  return group.segments[s].clusters.token_count[cluster];
}

// C among the clusters [begin, end): the shortest prefix in order of vote that holds enough rows.
void take_candidates(const ProposeGroup& group, std::int32_t begin, std::int32_t end,
                     std::int32_t budget) {
  const bool all = group.rule.breadth == kAllClusters;
  std::fill(group.candidate + begin, group.candidate + end,
            static_cast<std::uint8_t>(budget > 0 && all ? 1 : 0));
  if (budget == 0 || all) return;
  // A heap gives the best clusters one by one; few of them are wanted.
  const auto worse = [&](std::int32_t a, std::int32_t b) {
    const float vote_a = group.cluster_vote[a];
    const float vote_b = group.cluster_vote[b];
    return vote_a != vote_b ? vote_a < vote_b : a > b;
  };
  std::int32_t* heap = group.order + begin;
  std::int32_t* heap_end = group.order + end;
  std::iota(heap, heap_end, begin);
  std::make_heap(heap, heap_end, worse);
  const std::int64_t wanted = std::max<std::int64_t>(
      static_cast<std::int64_t>(group.rule.breadth) * budget, kMinCandidateRows);
  for (std::int64_t taken = 0; taken < wanted && heap != heap_end;) {
    std::pop_heap(heap, heap_end, worse);
    --heap_end;
    group.candidate[*heap_end] = 1;
    taken += tokens_of(group, *heap_end);
  }
}

void propose(const HeadShape& shape, const ProposeGroup& group) {
  const std::int32_t total = table_size(group.segments, group.segment_count).clusters;
  std::int32_t first = 0;
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const LevelView& clusters = group.segments[s].clusters;
    all_level_dots(clusters, group.q, group.row_count, shape.beta, group.cluster_logit + first,
                   total);
    add_cluster_votes(shape, group, clusters, first, total);
    if (group.rule.segment_budgets != nullptr) {
      take_candidates(group, first, first + clusters.count, group.rule.segment_budgets[s]);
    }
    first += clusters.count;
  }
  if (group.rule.segment_budgets == nullptr) take_candidates(group, 0, total, group.rule.budget);
}

// ----------------------------------------------------------------------------------------- rank

// β scale rotate(q)·levels of the 16 rows of a panel for kRows query rows, added nothing yet:
// out[r * out_stride + row].
template <int kRows>
HWY_INLINE void panel_dots(const CodesView& codes, std::int32_t panel, const float* q, float beta,
                           float* out, std::int64_t out_stride) {
  const hn::CappedTag<float, kCodePanel> d;
  const hn::Rebind<std::uint32_t, decltype(d)> du;
  const hn::Rebind<std::int32_t, decltype(d)> di;
  const hn::Rebind<hwy::float16_t, decltype(d)> d16;
  const hn::Rebind<std::uint16_t, decltype(d)> du16;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  // Tables hold the four levels as often as they fit; code & 3 is the index.
  HWY_ALIGN float levels[HWY_MAX_BYTES / sizeof(float)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) levels[i] = kCodeLevels[i % 4];
  const auto table = hn::Load(d, levels);
  const std::uint32_t* words = codes.codes + static_cast<std::int64_t>(panel) * codes.d_k;
  for (std::int32_t lane = 0; lane < kCodePanel; lane += lanes) {
    const auto shifts = hn::ShiftLeft<1>(hn::Iota(du, static_cast<std::uint32_t>(lane)));
    hn::Vec<decltype(d)> sum[kRows];
    for (auto& s : sum) s = hn::Zero(d);
    for (std::int32_t j = 0; j < codes.d_k; ++j) {
      const auto code = hn::And(hn::Shr(hn::Set(du, words[j]), shifts), hn::Set(du, 3u));
      const auto level = hn::TableLookupLanes(table, hn::IndicesFromVec(d, hn::BitCast(di, code)));
      for (int r = 0; r < kRows; ++r) {
        sum[r] =
            hn::MulAdd(level, hn::Set(d, q[static_cast<std::int64_t>(r) * codes.d_k + j]), sum[r]);
      }
    }
    const std::int64_t row = static_cast<std::int64_t>(panel) * kCodePanel + lane;
    const auto half = hn::BitCast(d16, hn::LoadU(du16, codes.scale + row));
    const auto scale = hn::Mul(hn::PromoteTo(d, half), hn::Set(d, beta));
    for (int r = 0; r < kRows; ++r) {
      hn::StoreU(hn::Mul(sum[r], scale), d, out + r * out_stride + row);
    }
  }
}

// Residual dots of all panels that hold a row of a candidate.
template <int kRows>
HWY_NOINLINE void segment_dots(const HeadIndex& segment, const std::uint8_t* candidate,
                               const float* q, float beta, float* out, std::int64_t out_stride) {
  std::int32_t next_panel = 0;
  for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
    if (candidate[c] == 0) continue;
    const std::int32_t first = segment.clusters.first_row[c];
    const std::int32_t last = first + segment.clusters.token_count[c] - 1;
    for (std::int32_t panel = std::max(first / kCodePanel, next_panel); panel <= last / kCodePanel;
         ++panel) {
      panel_dots<kRows>(segment.codes, panel, q, beta, out, out_stride);
      next_panel = panel + 1;
    }
  }
}

// Makes x̂ of the residual dots of one segment and adds up the votes.
void finish_logits(const RankGroup& group, const HeadIndex& segment, std::int32_t first_cluster,
                   std::int32_t first_row, const TableSize& total) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  for (std::int32_t h = 0; h < group.row_count; ++h) {
    float* logit = group.token_logit + static_cast<std::int64_t>(h) * total.rows + first_row;
    const float* base =
        group.cluster_logit + static_cast<std::int64_t>(h) * total.clusters + first_cluster;
    const FloatVec reference = hn::Set(d, group.reference_level[h]);
    for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
      if (group.candidate[first_cluster + c] == 0) continue;
      const std::int32_t first = segment.clusters.first_row[c];
      const std::int32_t end = first + segment.clusters.token_count[c];
      const FloatVec mean = hn::Set(d, base[c]);
      float* vote = group.vote + first_row;
      for (std::int32_t row = first; row < end; row += lanes) {
        const FloatVec x = hn::Add(load_first(d, logit + row, end - row, 0), mean);
        store_first(d, x, end - row, logit + row);
        const FloatVec before = h == 0 ? hn::Zero(d) : load_first(d, vote + row, end - row, 0);
        store_first(d, hn::Add(before, vote_lanes(d, x, reference)), end - row, vote + row);
      }
    }
  }
}

bool ranks_before(const RankedRow& a, const RankedRow& b) {
  return a.vote != b.vote ? a.vote > b.vote : a.index < b.index;
}

// Puts the `budget` rows of [begin, end) with the largest votes first into `best`, ascending by
// index; returns how many there are. Votes are filtered against the worst of the best so far, so
// most rows cost one comparison.
std::int32_t take_rows(const float* votes, std::int32_t begin, std::int32_t end,
                       std::int32_t budget, RankedRow* best) {
  if (budget == 0) return 0;
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::int32_t room = static_cast<std::int32_t>(rank_scratch_rows(budget)) - lanes;
  std::int32_t count = 0;
  float threshold = -0.5f;  // votes outside C are -1
  const auto cut = [&] {
    std::nth_element(best, best + budget - 1, best + count, ranks_before);
    threshold = best[budget - 1].vote;
    count = budget;
  };
  for (std::int32_t i = begin; i < end; i += lanes) {
    const FloatVec v = load_first(d, votes + i, end - i, -1);
    if (hn::AllFalse(d, hn::Gt(v, hn::Set(d, threshold)))) continue;
    for (std::int32_t k = i; k < std::min(i + lanes, end); ++k) {
      if (votes[k] > threshold) best[count++] = {votes[k], k};
    }
    if (count > room) cut();
  }
  if (count > budget) cut();
  std::sort(best, best + count,
            [](const RankedRow& a, const RankedRow& b) { return a.index < b.index; });
  return count;
}

void rank(const HeadShape& shape, const RankGroup& group) {
  const TableSize total = table_size(group.segments, group.segment_count);
  std::fill_n(group.vote, total.rows, -1.0f);
  std::int32_t first_cluster = 0;
  std::int32_t first_row = 0;
  std::int32_t selected = 0;
  // Rows come out by their number in the table, ascending, so the segment only moves forward.
  const auto take = [&](std::int32_t begin, std::int32_t end, std::int32_t budget,
                        std::int32_t segment, std::int32_t segment_begin) {
    const std::int32_t count = take_rows(group.vote, begin, end, budget, group.ranking);
    for (std::int32_t i = 0; i < count; ++i) {
      while (group.ranking[i].index >= segment_begin + group.segments[segment].codes.row_count) {
        segment_begin += group.segments[segment++].codes.row_count;
      }
      group.selected[selected++] = {segment, group.ranking[i].index - segment_begin};
    }
  };
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    const HeadIndex& segment = group.segments[s];
    for_row_blocks(group.row_count, [&](auto rows, std::int32_t row) {
      segment_dots<rows()>(
          segment, group.candidate + first_cluster,
          group.q_rotated + static_cast<std::int64_t>(row) * shape.d_k, shape.beta,
          group.token_logit + static_cast<std::int64_t>(row) * total.rows + first_row, total.rows);
    });
    finish_logits(group, segment, first_cluster, first_row, total);
    if (group.rule.segment_budgets != nullptr) {
      take(first_row, first_row + segment.codes.row_count, group.rule.segment_budgets[s], s,
           first_row);
    }
    first_cluster += segment.clusters.count;
    first_row += segment.codes.row_count;
  }
  if (group.rule.segment_budgets == nullptr) take(0, total.rows, group.rule.budget, 0, 0);
  *group.selected_count = selected;
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
