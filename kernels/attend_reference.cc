#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "kernels/attend.h"
#include "kernels/level_math.h"

namespace icefield {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// One term of T_h: docs/formats/attention.md step 6.
struct Term {
  double logit = 0;
  std::vector<double> vector;
  bool tail = false;
  bool fault = false;
  double drift = 0;  // Δ
};

struct Sum {
  std::vector<double> out;
  double lse = kMinusInfinity;
  double tail = 0;
  double fault = 0;
  double drift = 0;
};

Sum sum_terms(const std::vector<Term>& terms, std::int32_t d_v) {
  Sum sum{.out = std::vector<double>(static_cast<std::size_t>(d_v), 0.0)};
  double largest = kMinusInfinity;
  for (const Term& term : terms) largest = std::max(largest, term.logit);
  if (largest == kMinusInfinity) return sum;
  double total = 0;
  for (const Term& term : terms) {
    const double weight = std::exp(term.logit - largest);
    total += weight;
    sum.tail += term.tail ? weight : 0;
    sum.fault += term.fault ? weight : 0;
    sum.drift += weight * term.drift;
    for (std::size_t j = 0; j < sum.out.size(); ++j) sum.out[j] += weight * term.vector[j];
  }
  for (double& value : sum.out) value /= total;
  sum.tail /= total;
  sum.fault /= total;
  sum.drift /= total;
  sum.lse = largest + std::log(total);
  return sum;
}

void write(const Sum& sum, std::int32_t row, const Partial& result) {
  for (std::size_t j = 0; j < sum.out.size(); ++j) {
    result.out[static_cast<std::size_t>(row) * sum.out.size() + j] = static_cast<float>(sum.out[j]);
  }
  result.lse[row] = static_cast<float>(sum.lse);
  result.tail[row] = static_cast<float>(sum.tail);
  result.fault[row] = static_cast<float>(sum.fault);
  result.drift[row] = static_cast<float>(sum.drift);
}

std::vector<const Bf16*> exact_rows(const AttendGroup& group, const HeadShape& shape) {
  std::vector<const Bf16*> rows;
  for (std::int32_t r = 0; r < group.run_count; ++r) {
    for (int bit = 0; bit < RowRun::kMaxRows; ++bit) {
      if ((group.runs[r].mask >> bit & 1) == 0) continue;
      rows.push_back(group.runs[r].rows + static_cast<std::int64_t>(bit) * (shape.d_k + shape.d_v));
    }
  }
  return rows;
}

std::vector<double> value_of(const Bf16* row, const HeadShape& shape) {
  std::vector<double> value;
  for (std::int32_t j = 0; j < shape.d_v; ++j) value.push_back(bf16_to_float(row[shape.d_k + j]));
  return value;
}

std::vector<double> value_mean(const LevelView& level, std::int32_t index) {
  std::vector<double> mean;
  for (std::int32_t j = 0; j < level.d_v; ++j) {
    mean.push_back(static_cast<double>(level.value_scale[index]) *
                   level.value_means[static_cast<std::int64_t>(index) * level.d_v + j]);
  }
  return mean;
}

// The term of a cluster (or list) as a whole: ln n + β q·μ + min(w σ, 1), Δ = min(2 w σ, 2).
Term mean_term(const internal::MeanQuery& q, const LevelView& level, std::int32_t c, double weight,
               double beta) {
  const double variance = weight * internal::sigma_of(level, c);
  return {.logit = level.ln_count[c] + internal::cluster_dot(q, level, c, beta) +
                   std::min(variance, static_cast<double>(kTermVarianceCap)),
          .vector = value_mean(level, c),
          .tail = true,
          .drift = std::min(2 * variance, static_cast<double>(kTermDriftCap))};
}

// Terms of a segment of which no token was ranked: of its clusters, or of its lists, whose drift
// nobody knows.
void add_level_terms(const float* q, const LevelView& level, Accounting by, double beta, bool fault,
                     std::vector<Term>& terms) {
  const internal::MeanQuery rounded(q, level.d_k);
  const double weight = internal::variance_weight(q, level, beta);
  for (std::int32_t c = 0; c < level.count; ++c) {
    Term term = mean_term(rounded, level, c, weight, beta);
    term.fault = fault;
    if (by == Accounting::kLists) term.drift = 0;
    terms.push_back(std::move(term));
  }
}

// Where a segment's clusters and rows begin in the group's arrays.
struct Place {
  std::int32_t segment = 0;
  std::int32_t first_cluster = 0;
  std::int32_t first_row = 0;
};

// Terms of a segment that was ranked: the rests of its candidates, means for the others.
void add_ranked_terms(const AttendGroup& group, const HeadShape& shape, std::int32_t h,
                      const Place& place, bool fault,
                      const std::map<std::pair<std::int32_t, std::int32_t>, const Bf16*>& selected,
                      std::vector<Term>& terms) {
  const HeadIndex& segment = group.segments[place.segment];
  const TableSize size = table_size(group.segments, group.segment_count);
  const float* q = group.q + static_cast<std::int64_t>(h) * shape.d_k;
  const internal::MeanQuery rounded(q, shape.d_k);
  const double weight = internal::variance_weight(q, segment.clusters, shape.beta);
  for (std::int32_t c = 0; c < segment.clusters.count; ++c) {
    if (group.candidate[place.first_cluster + c] == 0) {
      terms.push_back(mean_term(rounded, segment.clusters, c, weight, shape.beta));
      terms.back().fault = fault;
      continue;
    }
    const std::vector<double> mean = value_mean(segment.clusters, c);
    const double mean_logit =
        group.cluster_logit[static_cast<std::int64_t>(h) * size.clusters + place.first_cluster + c];
    const std::int32_t first = segment.clusters.first_row[c];
    const std::int32_t count = segment.clusters.token_count[c];
    std::vector<Term> rest;
    std::vector<double> selected_mean(mean.size(), 0.0);
    double selected_logit = 0;  // its mean, in the end
    std::int32_t selected_count = 0;
    for (std::int32_t row = first; row < first + count; ++row) {
      const double logit =
          group.token_logit[static_cast<std::int64_t>(h) * size.rows + place.first_row + row];
      const auto found = selected.find({place.segment, row});
      if (found == selected.end()) {
        rest.push_back({.logit = logit, .vector = {}, .drift = logit - mean_logit});
        continue;
      }
      ++selected_count;
      selected_logit += (logit - selected_logit) / selected_count;
      const std::vector<double> value = value_of(found->second, shape);
      for (std::size_t j = 0; j < mean.size(); ++j) selected_mean[j] += value[j];
    }
    if (rest.empty()) continue;
    const Sum sum = sum_terms(rest, 0);
    Term term{.logit = sum.lse, .vector = mean, .tail = true, .drift = sum.drift};
    term.fault = fault || (group.faulty != nullptr && group.faulty[place.first_cluster + c] != 0);
    const double gain = static_cast<double>(selected_count) / (count - selected_count);
    if (selected_count > 0) term.drift -= gain * (mean_logit - selected_logit);
    for (std::size_t j = 0; selected_count > 0 && j < mean.size(); ++j) {
      term.vector[j] = mean[j] + gain * (mean[j] - selected_mean[j] / selected_count);
    }
    terms.push_back(std::move(term));
  }
}

}  // namespace

void attend_reference(const AttendArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) {
    const AttendGroup& group = args.groups[g];
    const std::vector<const Bf16*> rows = exact_rows(group, args.shape);
    std::map<std::pair<std::int32_t, std::int32_t>, const Bf16*> selected;
    for (std::int32_t i = 0; i < group.selected_count; ++i) {
      selected[{group.selected[i].segment, group.selected[i].row}] =
          rows[static_cast<std::size_t>(i)];
    }
    for (std::int32_t h = 0; h < group.row_count; ++h) {
      const float* q = group.q + static_cast<std::int64_t>(h) * args.shape.d_k;
      std::vector<Term> terms;
      const std::size_t seen =
          rows.size() - static_cast<std::size_t>(group.hidden == nullptr ? 0 : group.hidden[h]);
      for (std::size_t i = 0; i < seen; ++i) {
        double logit = 0;
        for (std::int32_t j = 0; j < args.shape.d_k; ++j) {
          logit += static_cast<double>(q[j]) * bf16_to_float(rows[i][j]);
        }
        terms.push_back({.logit = logit * static_cast<double>(args.shape.beta),
                         .vector = value_of(rows[i], args.shape)});
      }
      Place place;
      for (; place.segment < group.segment_count; ++place.segment) {
        const HeadIndex& segment = group.segments[place.segment];
        const SegmentAccount account =
            group.accounts == nullptr ? SegmentAccount() : group.accounts[place.segment];
        switch (account.by) {
          case Accounting::kTokens:
            add_ranked_terms(group, args.shape, h, place, account.fault, selected, terms);
            break;
          case Accounting::kClusters:
            add_level_terms(q, segment.clusters, account.by, args.shape.beta, account.fault, terms);
            break;
          case Accounting::kLists:
            add_level_terms(q, segment.lists, account.by, args.shape.beta, account.fault, terms);
            break;
        }
        place.first_cluster += segment.clusters.count;
        place.first_row += segment.codes.row_count;
      }
      write(sum_terms(terms, args.shape.d_v), h, group.result);
    }
  }
}

void merge_reference(const MergeArgs& args) {
  for (std::int32_t h = 0; h < args.row_count; ++h) {
    std::vector<Term> terms;
    double tail = 0;
    double fault = 0;
    double drift = 0;
    for (std::int32_t p = 0; p < args.part_count; ++p) {
      const Partial& part = args.parts[p];
      const float* out = part.out + static_cast<std::int64_t>(h) * args.d_v;
      terms.push_back({.logit = part.lse[h], .vector = std::vector<double>(out, out + args.d_v)});
    }
    Sum sum = sum_terms(terms, args.d_v);
    for (std::int32_t p = 0; p < args.part_count && sum.lse != kMinusInfinity; ++p) {
      const double weight = std::exp(static_cast<double>(args.parts[p].lse[h]) - sum.lse);
      tail += weight * static_cast<double>(args.parts[p].tail[h]);
      fault += weight * static_cast<double>(args.parts[p].fault[h]);
      drift += weight * static_cast<double>(args.parts[p].drift[h]);
    }
    sum.tail = tail;
    sum.fault = fault;
    sum.drift = drift;
    write(sum, h, args.result);
  }
}

}  // namespace icefield
