// Ranking of candidates' tokens on the CPU. Bound: the instructions that unpack codes and multiply
// them. For each vector of code words (16 dimensions of kLanes tokens) 4 with VNNI, 8 without, are
// each query row's own; 4 to 7 are shared by the rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rank_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "common/bytes.h"
#include "hwy/highway.h"
#include "kernels/rounded_query.h"
#include "kernels/select.h"
#include "kernels/simd-inl.h"
#include "kernels/simd_dot-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void rank_target(const RankArgs& args) { rank_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {
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

// Sums that a query row's products with the four codes of a byte go into. With one all codes are
// shifted, which many query rows share. Codes that stay in their bits, times 4^k, need four sums,
// where these may grow; else code k comes times 4^(k % 2).
template <int kRows>
constexpr int kCodeSums = kRows > 2       ? 1
                          : kWideCodeSums ? 4
                                          : 2;

// Vectors of rows that share the broadcasts of the queries, which would else decide: as many as
// have room in the registers.
template <int kRows>
constexpr int kVecsAtOnce = (kLanes == kCodePanel && (kCodeSums<kRows> * kRows) <= 8) ? 2 : 1;

// The four codes in each byte of `words`: dimension 4 k + b of a word's 16 stands in bits 2 k of
// byte b.
template <int kSums>
HWY_INLINE void split_codes(hn::Vec<UintTag> words, UByteVec* codes) {
  const UintTag du;
  const UByteTag du8;
  const auto masked = [&](hn::Vec<UintTag> x, std::uint32_t shift) HWY_ATTR {
    return hn::BitCast(du8, hn::And(x, hn::Set(du, 0x03030303u << shift)));
  };
  codes[0] = masked(words, 0);
  codes[1] = kSums == 1 ? masked(hn::ShiftRight<2>(words), 0) : masked(words, 2);
  codes[2] = kSums == 4 ? masked(words, 4) : masked(hn::ShiftRight<4>(words), 0);
  codes[3] = kSums == 4   ? masked(words, 6)
             : kSums == 2 ? masked(hn::ShiftRight<4>(words), 2)
                          : masked(hn::ShiftRight<6>(words), 0);
}

// total[v][r] = Σ q_r c of the rows in kVecs vectors of code words, which begin at words[v].
template <int kRows, int kVecs>
HWY_INLINE void sum_codes(const CodeQueries<kRows>& q, const std::uint32_t* const* words,
                          std::int32_t d_k, IntVec (*total)[kRows]) {
  const IntTag di;
  const ByteTag d8;
  constexpr int kSums = kCodeSums<kRows>;
  const std::int32_t steps = d_k / kCodeGroup;
  for (int v = 0; v < kVecs; ++v) {
    for (int r = 0; r < kRows; ++r) total[v][r] = hn::Zero(di);
  }
  for (std::int32_t begin = 0; begin < steps; begin += kCodeSumSteps<kSums>) {
    CodeSum sum[kVecs][kRows][kSums];
    for (auto& vec : sum) {
      for (auto& row : vec) {
        for (CodeSum& s : row) s = zero_codes();
      }
    }
    for (std::int32_t g = begin; g < std::min(begin + kCodeSumSteps<kSums>, steps); ++g) {
      UByteVec codes[kVecs][4];
      for (int v = 0; v < kVecs; ++v) {
        split_codes<kSums>(hn::LoadU(UintTag(), words[v] + g * kCodePanel), codes[v]);
      }
      for (int r = 0; r < kRows; ++r) {
        for (int k = 0; k < 4; ++k) {
          std::int32_t four;
          std::memcpy(&four, q.levels[r] + g * kCodeGroup + 4 * k, sizeof(four));
          const ByteVec x = hn::BitCast(d8, hn::Set(di, four));
          for (int v = 0; v < kVecs; ++v) {
            sum[v][r][k % kSums] = add_codes(sum[v][r][k % kSums], codes[v][k], x);
          }
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      for (int r = 0; r < kRows; ++r) {
        total[v][r] = close_codes<kSums>(total[v][r], sum[v][r]);
      }
    }
  }
}

// What code scores of one segment go into, for kRows query rows from row 0 of the arrays on.
template <int kRows>
struct TokenScores {
  const float* cluster_logit;  // [kRows, cluster_stride] β q·μ
  std::int64_t cluster_stride;
  const float* reference_level;  // [kRows]
  float* logit;                  // out [kRows, row_stride]
  std::int64_t row_stride;
  float* vote;       // [rows]
  bool first_block;  // these query rows' votes start the sums
  bool only_row;     // there is one query row: x̂ - R orders as its vote does
};

// Finite numbers in the order of x; the largest for what is not a number.
HWY_INLINE FloatVec ordered_lanes(FloatTag d, FloatVec x) {
  const FloatVec largest = hn::Set(d, std::numeric_limits<float>::max());
  return hn::Max(hn::IfThenElse(hn::Lt(x, largest), x, largest), hn::Neg(largest));
}

// x̂ and votes of kLanes rows from `row` on, of which `total` has Σ q c. `cluster` is the one that
// holds the first of them, or the first after it. Rows in no cluster get numbers that nobody reads.
template <int kRows>
HWY_INLINE void score_rows(const HeadIndex& segment, std::int32_t row, std::int32_t cluster,
                           const CodeQueries<kRows>& q, const IntVec* total,
                           const TokenScores<kRows>& out) {
  const FloatTag d;
  const IntTag di;
  const FloatVec scale = load_fp16(d, segment.codes.scale + row);
  FloatVec logit[kRows];
  for (int r = 0; r < kRows; ++r) {
    const IntVec twice = hn::ShiftLeft<1>(total[r]);
    const FloatVec dot = hn::ConvertTo(d, hn::Sub(twice, hn::Set(di, 3 * q.sum[r])));
    logit[r] = hn::Mul(hn::Mul(dot, scale), hn::Set(d, q.step[r]));
  }
  const IntVec lane = hn::Iota(di, 0);
  for (; cluster < segment.clusters.count; ++cluster) {
    const std::int32_t begin = segment.clusters.first_row[cluster] - row;
    if (begin >= kLanes) break;
    const std::int32_t end = begin + segment.clusters.token_count[cluster];
    const auto inside = hn::RebindMask(
        d, hn::And(hn::Gt(lane, hn::Set(di, begin - 1)), hn::Lt(lane, hn::Set(di, end))));
    for (int r = 0; r < kRows; ++r) {
      const FloatVec mean = hn::Set(d, out.cluster_logit[r * out.cluster_stride + cluster]);
      logit[r] = hn::Add(logit[r], hn::IfThenElseZero(inside, mean));
    }
  }
  for (int r = 0; r < kRows; ++r) hn::StoreU(logit[r], d, out.logit + r * out.row_stride + row);
  if (kRows == 1 && out.only_row) {
    const FloatVec vote = hn::Sub(logit[0], hn::Set(d, out.reference_level[0]));
    hn::StoreU(ordered_lanes(d, vote), d, out.vote + row);
    return;
  }
  FloatVec vote = out.first_block ? hn::Zero(d) : hn::LoadU(d, out.vote + row);
  for (int r = 0; r < kRows; ++r) {
    vote = hn::Add(vote, vote_lanes(d, logit[r], hn::Set(d, out.reference_level[r])));
  }
  hn::StoreU(vote, d, out.vote + row);
}

// kLanes rows from `row` on, and the cluster that holds the first of them or the first after it.
struct RowVector {
  std::int32_t row;
  std::int32_t cluster;
};

// All vectors of rows of a segment that hold a row of a candidate, ascending.
struct CandidateVectors {
  CandidateVectors(const LevelView& clusters, const std::uint8_t* candidate) {
    std::int32_t next = 0;  // first row not yet in
    for_candidate_runs(candidate, clusters.count, [&](std::int32_t c, std::int32_t end) {
      const RowRange rows = rows_of(clusters, c, end);
      next = std::max(next, rows.first / kLanes * kLanes);
      while (c > 0 && clusters.first_row[c] > next) --c;
      for (; next < rows.end; next += kLanes) {
        while (clusters.first_row[c] + clusters.token_count[c] <= next) ++c;
        at[count++] = {next, c};
      }
    });
  }

  std::int32_t count = 0;
  RowVector at[kMaxSegmentTokens / kLanes];
};

inline const std::uint32_t* code_words(const CodesView& codes, std::int32_t row) {
  return codes.codes + static_cast<std::int64_t>(row / kCodePanel) * codes.d_k + row % kCodePanel;
}

// Fetches what scoring kLanes rows reads and writes.
template <int kRows>
HWY_INLINE void prefetch_rows(const CodesView& codes, std::int32_t row,
                              const TokenScores<kRows>& out) {
  const std::uint32_t* words = code_words(codes, row);
  for (std::int32_t i = 0; i < codes.d_k; i += kCodePanel) __builtin_prefetch(words + i);
  __builtin_prefetch(codes.scale + row);
  for (int r = 0; r < kRows; ++r) __builtin_prefetch(out.logit + r * out.row_stride + row, 1);
  __builtin_prefetch(out.vote + row, 1);
}

// x̂ and votes of all vectors that hold a row of a candidate.
template <int kRows>
HWY_NOINLINE void score_segment(const HeadIndex& segment, const std::uint8_t* candidate,
                                const CodeQueries<kRows>& q, const TokenScores<kRows>& out) {
  constexpr int kVecs = kVecsAtOnce<kRows>;
  constexpr std::int32_t kAhead = 6;  // vectors
  const CandidateVectors vectors(segment.clusters, candidate);
  // The processor fetches ahead by itself where rows follow each other.
  const bool scattered = 2 * kLanes * vectors.count < segment.codes.row_count;
  const auto score = [&](auto vecs, std::int32_t i) HWY_ATTR {
    const std::uint32_t* words[vecs];
    for (int v = 0; v < vecs; ++v) {
      words[v] = code_words(segment.codes, vectors.at[i + v].row);
      const std::int32_t ahead = i + v + kAhead;
      if (scattered && ahead < vectors.count) {
        prefetch_rows(segment.codes, vectors.at[ahead].row, out);
      }
    }
    IntVec total[vecs][kRows];
    sum_codes<kRows, vecs>(q, words, segment.codes.d_k, total);
    for (int v = 0; v < vecs; ++v) {
      const RowVector& at = vectors.at[i + v];
      score_rows<kRows>(segment, at.row, at.cluster, q, total[v], out);
    }
  };
  if (scattered) {
    for (std::int32_t i = 0; i < std::min(kAhead, vectors.count); ++i) {
      prefetch_rows(segment.codes, vectors.at[i].row, out);
    }
  }
  std::int32_t i = 0;
  for (; i + kVecs <= vectors.count; i += kVecs) score(std::integral_constant<int, kVecs>(), i);
  for (; i < vectors.count; ++i) score(std::integral_constant<int, 1>(), i);
}

// A vote that `budget` rows reach: every largest vote of 4 × budget sets of rows is one row's, so
// the budget-th of them will do, and few rows beyond the best reach it.
class VoteBound {
 public:
  explicit VoteBound(std::int32_t budget)
      : budget_(budget),
        sets_(budget > kMostBudget ? 0 : static_cast<int>(ceil_div(4 * budget, kLanes))) {
    std::fill_n(largest_, sets_ * kLanes, -HUGE_VALF);
  }

  // votes[i] of the rows [begin, end) of the table.
  void add(const float* votes, std::int32_t begin, std::int32_t end) {
    if (sets_ == 0) return;
    const FloatTag d;
    for (std::int32_t i = begin; i < end; i += kLanes) {
      const FloatVec v = load_first(d, votes + i, end - i, -HUGE_VALF);
      float* at = largest_ + next_ * kLanes;
      const FloatVec largest = hn::Load(d, at);
      hn::Store(hn::IfThenElse(hn::Gt(v, largest), v, largest), d, at);
      next_ = next_ + 1 == sets_ ? 0 : next_ + 1;
    }
  }
  float value() {
    if (sets_ == 0) return -HUGE_VALF;
    std::nth_element(largest_, largest_ + budget_ - 1, largest_ + sets_ * kLanes, std::greater<>());
    return largest_[budget_ - 1];
  }

 private:
  static constexpr std::int32_t kMostBudget = 256;

  HWY_ALIGN float largest_[4 * kMostBudget + kLanes];
  const std::int32_t budget_;
  const int sets_;  // vectors of them
  int next_ = 0;
};

// The rows with the largest votes, `budget` of them. Votes are filtered against the worst of the
// best so far, so most rows cost one comparison.
class BestRows {
 public:
  // `budget` rows have at least the vote `bound`.
  BestRows(std::int32_t budget, float bound, RankedRow* best)
      : budget_(budget), best_(best), threshold_(below(bound)) {}

  // votes[i] of the rows [begin, end) of the table; call with ascending rows.
  void add(const float* votes, std::int32_t begin, std::int32_t end) {
    const FloatTag d;
    const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
    const std::int32_t room = static_cast<std::int32_t>(rank_scratch_rows(budget_)) - lanes;
    for (std::int32_t i = begin; i < end; i += lanes) {
      const FloatVec v = load_first(d, votes + i, end - i, -HUGE_VALF);
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
  // The next number below. Tiny ones count as 0 where the process flushes denormal numbers.
  static float below(float bound) {
    constexpr float kTiny = std::numeric_limits<float>::min();
    return std::abs(bound) < kTiny ? -kTiny : std::nextafter(bound, -HUGE_VALF);
  }

  void cut() {
    std::nth_element(best_, best_ + budget_ - 1, best_ + count_,
                     [](const RankedRow& a, const RankedRow& b) {
                       return a.vote != b.vote ? a.vote > b.vote : a.index < b.index;
                     });
    threshold_ = best_[budget_ - 1].vote;
    count_ = budget_;
  }

  const std::int32_t budget_;
  RankedRow* const best_;
  std::int32_t count_ = 0;
  float threshold_;  // what a row must exceed
};

// The part of a group's table that one selection goes over.
struct Selection {
  std::int32_t first_segment;
  std::int32_t end_segment;
  std::int32_t first_cluster;
  std::int32_t first_row;
  std::int32_t budget;
};

// Appends the best rows, which come out ascending, so that the segment only moves forward.
void append_selected(const RankGroup& group, const Selection& from, BestRows& best) {
  const std::int32_t count = best.finish();
  std::int32_t segment = from.first_segment;
  std::int32_t segment_begin = from.first_row;
  std::int32_t& selected = *group.selected_count;
  for (std::int32_t i = 0; i < count; ++i) {
    while (group.ranking[i].index >= segment_begin + group.segments[segment].codes.row_count) {
      segment_begin += group.segments[segment++].codes.row_count;
    }
    group.selected[selected++] = {segment, group.ranking[i].index - segment_begin};
  }
}

// Calls f(first row of the table, end) for each run of candidates' rows.
template <class F>
HWY_INLINE void for_candidate_rows(const RankGroup& group, const Selection& from, F&& f) {
  const std::uint8_t* candidate = group.candidate + from.first_cluster;
  std::int32_t first_row = from.first_row;
  for (std::int32_t s = from.first_segment; s < from.end_segment; ++s) {
    const HeadIndex& segment = group.segments[s];
    for_candidate_runs(candidate, segment.clusters.count, [&](std::int32_t c, std::int32_t end) {
      const RowRange rows = rows_of(segment.clusters, c, end);
      f(first_row + rows.first, first_row + rows.end);
    });
    candidate += segment.clusters.count;
    first_row += segment.codes.row_count;
  }
}

void select_best(const RankGroup& group, const Selection& from) {
  if (from.budget == 0) return;
  VoteBound bound(from.budget);
  for_candidate_rows(group, from, [&](std::int32_t begin, std::int32_t end) {
    bound.add(group.vote, begin, end);
  });
  BestRows best(from.budget, bound.value(), group.ranking);
  for_candidate_rows(
      group, from, [&](std::int32_t begin, std::int32_t end) { best.add(group.vote, begin, end); });
  append_selected(group, from, best);
}

// x̂ and votes of all candidates.
void score_tokens(const HeadShape& shape, const RankGroup& group, const TableSize& total) {
  for_row_blocks<kMostRows>(group.row_count, [&](auto rows, std::int32_t row) {
    constexpr int kRows = rows();
    const CodeQueries<kRows> q(group.q_rotated + static_cast<std::int64_t>(row) * shape.d_k,
                               shape.d_k, shape.beta);
    TokenScores<kRows> out{
        .cluster_logit = group.cluster_logit + static_cast<std::int64_t>(row) * total.clusters,
        .cluster_stride = total.clusters,
        .reference_level = group.reference_level + row,
        .logit = group.token_logit + static_cast<std::int64_t>(row) * total.rows,
        .row_stride = total.rows,
        .vote = group.vote,
        .first_block = row == 0,
        .only_row = group.row_count == 1};
    const std::uint8_t* candidate = group.candidate;
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const HeadIndex& segment = group.segments[s];
      score_segment<kRows>(segment, candidate, q, out);
      candidate += segment.clusters.count;
      out.cluster_logit += segment.clusters.count;
      out.logit += segment.codes.row_count;
      out.vote += segment.codes.row_count;
    }
  });
}

void rank(const HeadShape& shape, const RankGroup& group) {
  const TableSize total = table_size(group.segments, group.segment_count);
  score_tokens(shape, group, total);
  *group.selected_count = 0;
  if (group.rule.segment_budgets == nullptr) {
    const std::int32_t budget = std::min(group.rule.budget, total.indexed_rows);
    select_best(group, {0, group.segment_count, 0, 0, budget});
    return;
  }
  Selection from{};
  for (std::int32_t s = 0; s < group.segment_count; ++s) {
    from.first_segment = s;
    from.end_segment = s + 1;
    from.budget = std::min(group.rule.segment_budgets[s], group.segments[s].indexed_rows());
    select_best(group, from);
    from.first_cluster += group.segments[s].clusters.count;
    from.first_row += group.segments[s].codes.row_count;
  }
}

}  // namespace

void rank_target(const RankArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) rank(args.shape, args.groups[g]);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(rank_target);

void rank_cpu(const RankArgs& args) { HWY_DYNAMIC_DISPATCH(rank_target)(args); }

}  // namespace icefield
#endif
