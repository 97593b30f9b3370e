#include "bench/baselines/pages.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/baselines/k_means.h"

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

constexpr std::int32_t kListMembers = 33;  // IceCache's promotion ratio 0.03
constexpr double kVisitedShare = 0.0015;   // of the tokens: lists that a query row visits
constexpr std::int32_t kLeastVisited = 30;
constexpr std::int32_t kSegment = 8192;  // k-means is run on as many tokens at a time
constexpr int kPowerIterations = 8;

std::int32_t pages_of(std::int32_t budget) { return (budget + kPageTokens - 1) / kPageTokens; }

// The first principal direction of keys of `members`, by power iteration from their spread.
std::vector<float> principal_direction(const std::vector<std::int32_t>& members,
                                       const std::vector<float>& keys, std::int32_t d) {
  std::vector<float> mean(at(d), 0.0f);
  for (const std::int32_t i : members) {
    for (std::int32_t j = 0; j < d; ++j)
      mean[at(j)] += keys[at(static_cast<std::int64_t>(i) * d + j)];
  }
  for (float& x : mean) x /= static_cast<float>(members.size());
  std::vector<float> direction(at(d), 1.0f);
  std::vector<float> next(at(d));
  for (int iteration = 0; iteration < kPowerIterations; ++iteration) {
    std::fill(next.begin(), next.end(), 0.0f);
    for (const std::int32_t i : members) {
      const float* key = keys.data() + static_cast<std::int64_t>(i) * d;
      float dot = 0;
      for (std::int32_t j = 0; j < d; ++j) dot += (key[j] - mean[at(j)]) * direction[at(j)];
      for (std::int32_t j = 0; j < d; ++j) next[at(j)] += dot * (key[j] - mean[at(j)]);
    }
    const float norm = std::sqrt(std::inner_product(next.begin(), next.end(), next.begin(), 0.0f));
    if (norm == 0) break;
    for (std::int32_t j = 0; j < d; ++j) direction[at(j)] = next[at(j)] / norm;
  }
  return direction;
}

}  // namespace

// --------------------------------------------------------------------------------------- reading

void PageReader::attend(const float* q, const std::vector<std::int32_t>& chosen, Partial result) {
  runs_.clear();
  for (const std::int32_t p : chosen) {
    const Page& page = (*pages_)[at(p)];
    runs_.push_back({.rows = rows_ + static_cast<std::int64_t>(page.first) * set_.width(),
                     .mask = (std::uint64_t{1} << page.count) - 1});
  }
  const AttendGroup group{.row_count = set_.group,
                          .q = q,
                          .run_count = static_cast<std::int32_t>(runs_.size()),
                          .runs = runs_.data(),
                          .result = result};
  const HeadShape shape{.d_k = set_.d_k, .d_v = set_.d_v, .beta = set_.beta};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &group});
}

MethodCost PageReader::cost(const std::vector<std::int32_t>& chosen) const {
  std::int64_t rows = 0;
  for (const std::int32_t p : chosen) rows += (*pages_)[at(p)].count;
  return {.pages = std::ssize(chosen),
          .page_bytes = rows * set_.width() * static_cast<std::int64_t>(sizeof(Bf16))};
}

// ------------------------------------------------------------------------------------ positional

PositionalPages::PositionalPages(const Kernels& kernels, const KeySet& set, Rule rule)
    : set_(set), rule_(rule), reader_(kernels, set) {}

void PositionalPages::build() {
  const std::int32_t d = set_.d_k;
  pages_.clear();
  std::vector<float> digests;
  std::vector<float> low(at(d)), high(at(d)), sum(at(d));
  for (std::int32_t first = set_.first_indexed; first < set_.end_indexed; first += kPageTokens) {
    const Page page{first, std::min(kPageTokens, set_.end_indexed - first)};
    pages_.push_back(page);
    std::fill(low.begin(), low.end(), HUGE_VALF);
    std::fill(high.begin(), high.end(), -HUGE_VALF);
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::int32_t i = first; i < first + page.count; ++i) {
      const Bf16* key = set_.row(i);
      for (std::int32_t j = 0; j < d; ++j) {
        const float x = bf16_to_float(key[j]);
        low[at(j)] = std::min(low[at(j)], x);
        high[at(j)] = std::max(high[at(j)], x);
        sum[at(j)] += x;
      }
    }
    if (rule_ == Rule::kMean) {
      for (const float x : sum) digests.push_back(x / static_cast<float>(page.count));
    } else {
      digests.insert(digests.end(), high.begin(), high.end());
      digests.insert(digests.end(), low.begin(), low.end());
    }
  }
  const auto count = static_cast<std::int32_t>(pages_.size());
  const std::int32_t width = rule_ == Rule::kMean ? d : 2 * d;
  digests_ = Int8Vectors::make(digests.data(), count, width);
  q_.resize(at(set_.group * width));
  logit_.resize(at(static_cast<std::int64_t>(set_.group) * scan_padded(count)));
  vote_.resize(at(count));
  scratch_.resize(at(count));
  reader_.reset(set_.rows.data(), &pages_);
}

void PositionalPages::select(const MethodQuery& query) {
  const std::int32_t d = set_.d_k;
  if (rule_ == Rule::kMean) {
    std::copy_n(query.q, q_.size(), q_.data());
  } else {
    for (std::int32_t h = 0; h < set_.group; ++h) {
      const float* q = query.q + static_cast<std::int64_t>(h) * d;
      float* both = q_.data() + static_cast<std::int64_t>(h) * 2 * d;
      for (std::int32_t j = 0; j < d; ++j) {
        both[j] = std::max(q[j], 0.0f);
        both[d + j] = std::min(q[j], 0.0f);
      }
    }
  }
  const auto count = static_cast<std::int32_t>(pages_.size());
  scan(digests_, q_.data(), set_.group, set_.beta, logit_.data(), scan_padded(count));
  softmax_votes(logit_.data(), set_.group, count, scan_padded(count), nullptr, scratch_.data(),
                vote_.data());
  const std::int32_t wanted = std::min(pages_of(query.budget), count);
  best_.resize(at(top_room(wanted)));
  top_scores(vote_.data(), count, wanted, best_.data());
  chosen_.clear();
  for (std::int32_t i = 0; i < wanted; ++i) chosen_.push_back(best_[at(i)].index);
  std::sort(chosen_.begin(), chosen_.end());
}

void PositionalPages::attend(const MethodQuery& query, Partial result) {
  reader_.attend(query.q, chosen_, result);
}

std::vector<std::int32_t> PositionalPages::selected() const {
  std::vector<std::int32_t> tokens;
  for (const std::int32_t p : chosen_) {
    const Page& page = pages_[at(p)];
    for (std::int32_t i = 0; i < page.count; ++i) tokens.push_back(page.first + i);
  }
  return tokens;
}

MethodCost PositionalPages::cost() const {
  MethodCost cost = reader_.cost(chosen_);
  cost.index_bytes_read = digests_.bytes();
  return cost;
}

// -------------------------------------------------------------------------------------- IceCache

PrincipalPages::PrincipalPages(const Kernels& kernels, const KeySet& set)
    : set_(set), reader_(kernels, set) {}

void PrincipalPages::cut_list(std::vector<std::int32_t>& list, const std::vector<float>& keys) {
  const std::int32_t d = set_.d_k;
  const std::vector<float> direction = principal_direction(list, keys, d);
  std::vector<std::pair<float, std::int32_t>> projected;
  for (const std::int32_t i : list) {
    const float* key = keys.data() + static_cast<std::int64_t>(i) * d;
    float dot = 0;
    for (std::int32_t j = 0; j < d; ++j) dot += key[j] * direction[at(j)];
    projected.emplace_back(dot, i);
  }
  std::sort(projected.begin(), projected.end());
  for (std::size_t i = 0; i < list.size(); ++i) list[i] = projected[i].second;
  const auto count = static_cast<std::int32_t>(list.size());
  const std::int32_t pages = pages_of(count);
  const auto stored = static_cast<std::int32_t>(order_.size());
  lists_.push_back({static_cast<std::int32_t>(pages_.size()), pages});
  for (std::int32_t p = 0; p < pages; ++p) {
    const std::int32_t begin = p * count / pages;
    pages_.push_back({stored + begin, (p + 1) * count / pages - begin});
  }
}

void PrincipalPages::build() {
  const std::int32_t d = set_.d_k;
  order_.clear();
  lists_.clear();
  pages_.clear();
  std::vector<float> means;
  std::vector<float> keys;
  for (std::int32_t begin = set_.first_indexed; begin < set_.end_indexed; begin += kSegment) {
    const std::int32_t count = std::min(kSegment, set_.end_indexed - begin);
    keys.clear();
    for (std::int32_t i = begin; i < begin + count; ++i) {
      for (std::int32_t j = 0; j < d; ++j) keys.push_back(bf16_to_float(set_.row(i)[j]));
    }
    const std::int32_t lists = std::max(1, count / kListMembers);
    auto members = members_of(k_means(keys.data(), count, d, {.clusters = lists}), lists);
    for (std::vector<std::int32_t>& list : members) {
      cut_list(list, keys);
      const std::size_t first = means.size();
      means.resize(first + at(d), 0.0f);
      for (const std::int32_t i : list) {
        const float* key = keys.data() + static_cast<std::int64_t>(i) * d;
        for (std::int32_t j = 0; j < d; ++j) means[first + at(j)] += key[j];
        order_.push_back(begin + i);
      }
      for (std::size_t j = first; j < means.size(); ++j)
        means[j] /= static_cast<float>(list.size());
    }
  }
  rows_.clear();
  rows_.reserve(at(static_cast<std::int64_t>(set_.indexed()) * set_.width()));
  for (const std::int32_t token : order_) {
    rows_.insert(rows_.end(), set_.row(token), set_.row(token) + set_.width());
  }
  means_ = Int8Vectors::make(means.data(), static_cast<std::int32_t>(lists_.size()), d);
  logit_.resize(at(static_cast<std::int64_t>(set_.group) * scan_padded(means_.count)));
  taken_.assign(pages_.size(), 0);
  rankings_.resize(at(set_.group));
  reader_.reset(rows_.data(), &pages_);
}

void PrincipalPages::rank_pages(const float* q, const float* list_logit, std::int32_t wanted) {
  const auto lists = static_cast<std::int32_t>(lists_.size());
  const std::int32_t visited = std::min(
      lists, std::max(kLeastVisited, static_cast<std::int32_t>(kVisitedShare * set_.indexed())));
  best_.resize(at(top_room(visited)));
  top_scores(list_logit, lists, visited, best_.data());
  ranking_.clear();
  for (std::int32_t v = 0; v < visited; ++v) {
    const Page& list = lists_[at(best_[at(v)].index)];
    for (std::int32_t p = list.first; p < list.first + list.count; ++p) {
      const Page& page = pages_[at(p)];
      token_logit_.resize(kPageTokens);
      dot_rows(rows_.data() + static_cast<std::int64_t>(page.first) * set_.width(), set_.width(),
               page.count, set_.d_k, q, set_.beta, token_logit_.data());
      ranking_.push_back(
          {*std::max_element(token_logit_.begin(), token_logit_.begin() + page.count), p});
      scored_tokens_ += page.count;
    }
  }
  const auto kept = std::min<std::ptrdiff_t>(wanted, std::ssize(ranking_));
  std::partial_sort(ranking_.begin(), ranking_.begin() + kept, ranking_.end(),
                    [](const Scored& a, const Scored& b) {
                      return a.score != b.score ? a.score > b.score : a.index < b.index;
                    });
  ranking_.resize(at(kept));
}

void PrincipalPages::select(const MethodQuery& query) {
  const std::int32_t stride = scan_padded(means_.count);
  const std::int32_t wanted =
      std::min(pages_of(query.budget), static_cast<std::int32_t>(pages_.size()));
  scan(means_, query.q, set_.group, set_.beta, logit_.data(), stride);
  scored_tokens_ = 0;
  for (std::int32_t h = 0; h < set_.group; ++h) {
    rank_pages(query.q + static_cast<std::int64_t>(h) * set_.d_k,
               logit_.data() + static_cast<std::int64_t>(h) * stride, wanted);
    rankings_[at(h)].clear();
    for (const Scored& page : ranking_) rankings_[at(h)].push_back(page.index);
  }
  chosen_.clear();
  for (std::int32_t rank = 0; rank < wanted && std::ssize(chosen_) < wanted; ++rank) {
    for (const std::vector<std::int32_t>& ranking : rankings_) {
      if (rank >= std::ssize(ranking) || std::ssize(chosen_) == wanted) continue;
      const std::int32_t page = ranking[at(rank)];
      if (taken_[at(page)] != 0) continue;
      taken_[at(page)] = 1;
      chosen_.push_back(page);
    }
  }
  for (const std::int32_t page : chosen_) taken_[at(page)] = 0;
  std::sort(chosen_.begin(), chosen_.end());
}

void PrincipalPages::attend(const MethodQuery& query, Partial result) {
  reader_.attend(query.q, chosen_, result);
}

std::vector<std::int32_t> PrincipalPages::selected() const {
  std::vector<std::int32_t> tokens;
  for (const std::int32_t p : chosen_) {
    const Page& page = pages_[at(p)];
    for (std::int32_t i = 0; i < page.count; ++i) tokens.push_back(order_[at(page.first + i)]);
  }
  return tokens;
}

MethodCost PrincipalPages::cost() const {
  MethodCost cost = reader_.cost(chosen_);
  // Rows of a group may visit the same tokens; each reads them.
  cost.index_bytes_read =
      means_.bytes() + scored_tokens_ * set_.d_k * static_cast<std::int64_t>(sizeof(Bf16));
  return cost;
}

std::int64_t PrincipalPages::index_bytes() const {
  return means_.bytes() +
         static_cast<std::int64_t>((pages_.size() + lists_.size()) * sizeof(Page)) +
         static_cast<std::int64_t>(order_.size() * sizeof(std::int32_t));
}

}  // namespace icefield
