#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/level_math.h"
#include "kernels/select.h"

namespace icefield {
namespace {

using internal::cluster_dot;
using internal::CodeQuery;
using internal::MeanQuery;
using internal::sigma_of;
using internal::variance_weight;

double vote(double logit, double reference) {
  const double exponent = logit - reference;
  if (exponent < static_cast<double>(kLeastExponent)) return 0;
  const double cap = static_cast<double>(kVoteExponentCap);
  return std::exp(exponent < cap ? exponent : cap);  // a query that is not finite votes for all
}

// The vote of a token where there is one query row: finite, the largest for what is not a number.
double only_vote(double logit, double reference) {
  constexpr double kLargest = static_cast<double>(std::numeric_limits<float>::max());
  const double above = logit - reference;
  return std::max(above < kLargest ? above : kLargest, -kLargest);
}

// Offsets of a segment's items in arrays that hold one segment after the other.
struct Offsets {
  std::int32_t cluster = 0;
  std::int32_t row = 0;
};

// C: the shortest prefix in order of vote that holds enough rows, among clusters [begin, end).
void take_candidates(const std::vector<double>& votes, const std::vector<std::int32_t>& rows,
                     std::size_t begin, std::size_t end, std::int32_t budget, std::int32_t breadth,
                     std::uint8_t* candidate) {
  std::fill(candidate + begin, candidate + end, std::uint8_t{0});
  if (budget == 0) return;
  std::vector<std::size_t> order(end - begin);
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return votes[a] > votes[b]; });
  std::int32_t indexed_rows = 0;
  std::int32_t reaching_rows = 0;
  for (std::size_t c = begin; c < end; ++c) {
    indexed_rows += rows[c];
    if (votes[c] >= static_cast<double>(kReachingVote)) reaching_rows += rows[c];
  }
  const std::int64_t wanted = candidate_rows(breadth, budget, indexed_rows, reaching_rows);
  std::int64_t taken = 0;
  for (const std::size_t c : order) {
    if (taken >= wanted) return;
    candidate[c] = 1;
    taken += rows[c];
  }
}

// S among the rows of C, in[i] of the table.
void take_rows(const float* votes, const std::vector<TableRow>& table, const std::vector<bool>& in,
               std::size_t begin, std::size_t end, std::int32_t budget,
               std::vector<TableRow>& selected) {
  std::vector<std::size_t> order;
  for (std::size_t i = begin; i < end; ++i) {
    if (in[i]) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return votes[a] > votes[b]; });
  order.resize(std::min(order.size(), static_cast<std::size_t>(budget)));
  std::sort(order.begin(), order.end());
  for (const std::size_t i : order) selected.push_back(table[i]);
}

}  // namespace

void score_lists_reference(const ScoreListsArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) {
    const ScoreListsGroup& group = args.groups[g];
    const TableSize size = table_size(group.segments, group.segment_count);
    std::fill_n(group.segment_mass, group.segment_count, 0.0f);
    for (std::int32_t h = 0; h < group.row_count; ++h) {
      const float* q = group.q + static_cast<std::int64_t>(h) * args.shape.d_k;
      const MeanQuery rounded(q, args.shape.d_k);
      std::vector<double> logits;
      for (std::int32_t s = 0; s < group.segment_count; ++s) {
        const LevelView& lists = group.segments[s].lists;
        const double weight = variance_weight(q, lists, args.shape.beta);
        for (std::int32_t l = 0; l < lists.count; ++l) {
          logits.push_back(
              lists.ln_count[l] + cluster_dot(rounded, lists, l, args.shape.beta) +
              std::min(weight * sigma_of(lists, l), static_cast<double>(kVoteVarianceCap)));
        }
      }
      double sum = 0;
      double largest = group.exact_lse[h];
      for (const double logit : logits) largest = std::max(largest, logit);
      if (std::isfinite(largest)) {
        sum = std::exp(group.exact_lse[h] - largest);
        for (const double logit : logits) sum += std::exp(logit - largest);
      }
      const double reference = std::isfinite(largest) ? largest + std::log(sum) : largest;
      group.reference_level[h] = static_cast<float>(reference);
      std::size_t at = 0;
      for (std::int32_t s = 0; s < group.segment_count; ++s) {
        double mass = 0;
        for (std::int32_t l = 0; l < group.segments[s].lists.count; ++l, ++at) {
          mass += vote(logits[at], reference);
          group.list_logit[static_cast<std::int64_t>(h) * size.lists +
                           static_cast<std::int64_t>(at)] = static_cast<float>(logits[at]);
        }
        group.segment_mass[s] += static_cast<float>(mass);
      }
    }
  }
}

void propose_reference(const ProposeArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) {
    const ProposeGroup& group = args.groups[g];
    const TableSize size = table_size(group.segments, group.segment_count);
    std::vector<double> votes(static_cast<std::size_t>(size.clusters), 0.0);
    std::vector<std::int32_t> rows;
    std::vector<std::size_t> segment_end;
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const LevelView& clusters = group.segments[s].clusters;
      const std::size_t first = rows.size();
      for (std::int32_t c = 0; c < clusters.count; ++c) rows.push_back(clusters.token_count[c]);
      segment_end.push_back(rows.size());
      for (std::int32_t h = 0; h < group.row_count; ++h) {
        const float* q = group.q + static_cast<std::int64_t>(h) * args.shape.d_k;
        const MeanQuery rounded(q, args.shape.d_k);
        const double weight = variance_weight(q, clusters, args.shape.beta);
        for (std::int32_t c = 0; c < clusters.count; ++c) {
          const double logit = cluster_dot(rounded, clusters, c, args.shape.beta);
          const double deviation = std::sqrt(2 * weight * sigma_of(clusters, c));
          const double reach = logit + static_cast<double>(kReachDeviations) * deviation;
          const std::size_t at = first + static_cast<std::size_t>(c);
          votes[at] += vote(reach, group.reference_level[h]);
          group.cluster_logit[static_cast<std::int64_t>(h) * size.clusters +
                              static_cast<std::int64_t>(at)] = static_cast<float>(logit);
        }
      }
    }
    for (std::size_t c = 0; c < votes.size(); ++c) {
      group.cluster_vote[c] = static_cast<float>(votes[c]);
    }
    if (group.rule.segment_budgets == nullptr) {
      take_candidates(votes, rows, 0, rows.size(), group.rule.budget, group.rule.breadth,
                      group.candidate);
      continue;
    }
    for (std::size_t s = 0; s < segment_end.size(); ++s) {
      take_candidates(votes, rows, s == 0 ? 0 : segment_end[s - 1], segment_end[s],
                      group.rule.segment_budgets[s], group.rule.breadth, group.candidate);
    }
  }
}

void rank_reference(const RankArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) {
    const RankGroup& group = args.groups[g];
    const TableSize size = table_size(group.segments, group.segment_count);
    std::vector<TableRow> table;
    std::vector<bool> in_candidates(static_cast<std::size_t>(size.rows), false);
    std::vector<std::size_t> segment_rows;
    Offsets offset;
    std::vector<CodeQuery> queries;
    for (std::int32_t h = 0; h < group.row_count; ++h) {
      queries.emplace_back(group.q_rotated + static_cast<std::int64_t>(h) * args.shape.d_k,
                           args.shape.d_k);
    }
    for (std::int32_t s = 0; s < group.segment_count; ++s) {
      const HeadIndex& segment = group.segments[s];
      for (std::int32_t row = 0; row < segment.codes.row_count; ++row) table.push_back({s, row});
      for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
        if (group.candidate[offset.cluster + c] == 0) continue;
        const std::int32_t first = segment.clusters.first_row[c];
        for (std::int32_t row = first; row < first + segment.clusters.token_count[c]; ++row) {
          double sum = 0;
          for (std::int32_t h = 0; h < group.row_count; ++h) {
            const double logit = group.cluster_logit[static_cast<std::int64_t>(h) * size.clusters +
                                                     offset.cluster + c] +
                                 internal::code_dot(queries[static_cast<std::size_t>(h)],
                                                    segment.codes, row, args.shape.beta);
            group.token_logit[static_cast<std::int64_t>(h) * size.rows + offset.row + row] =
                static_cast<float>(logit);
            sum += group.row_count == 1 ? only_vote(logit, group.reference_level[h])
                                        : vote(logit, group.reference_level[h]);
          }
          group.vote[offset.row + row] = static_cast<float>(sum);
          in_candidates[static_cast<std::size_t>(offset.row + row)] = true;
        }
      }
      offset.cluster += segment.clusters.count;
      offset.row += segment.codes.row_count;
      segment_rows.push_back(static_cast<std::size_t>(offset.row));
    }
    std::vector<TableRow> selected;
    if (group.rule.segment_budgets == nullptr) {
      take_rows(group.vote, table, in_candidates, 0, table.size(), group.rule.budget, selected);
    } else {
      for (std::size_t s = 0; s < segment_rows.size(); ++s) {
        take_rows(group.vote, table, in_candidates, s == 0 ? 0 : segment_rows[s - 1],
                  segment_rows[s], group.rule.segment_budgets[s], selected);
      }
    }
    std::copy(selected.begin(), selected.end(), group.selected);
    *group.selected_count = static_cast<std::int32_t>(selected.size());
  }
}

}  // namespace icefield
