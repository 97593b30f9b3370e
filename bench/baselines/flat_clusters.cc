#include "bench/baselines/flat_clusters.h"

#include <algorithm>
#include <cmath>

#include "bench/baselines/k_means.h"
#include "common/check.h"

namespace icefield {
namespace {

constexpr std::int32_t kSegment = 8192;
constexpr std::int32_t kTokensPerCluster = 16;
constexpr std::int32_t kIterations = 10;
constexpr std::int32_t kMovedTokens = 8;  // clusters are stored and moved in blocks of as many

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

FlatClusters::FlatClusters(const Kernels& kernels, const KeySet& set)
    : kernels_(kernels), set_(set) {}

void FlatClusters::build() {
  cluster_keys();
  describe();
  const auto g = static_cast<std::int64_t>(set_.group);
  const auto pieces = static_cast<std::int64_t>(pieces_.size());
  dot_.resize(at(g * scan_padded(means_.count)));
  logit_.resize(dot_.size());
  vote_.resize(clusters_.size());
  scratch_.resize(clusters_.size());
  piece_dot_.resize(at(g * pieces));
  candidate_.assign(at(pieces), 0);
  const TableSize size = table_size(segments_.data(), static_cast<std::int32_t>(segments_.size()));
  // Never looked at: chosen clusters are chosen whole.
  token_logit_.assign(at(g * size.rows), 0.0f);
}

void FlatClusters::cluster_keys() {
  const std::int32_t d = set_.d_k;
  order_.clear();
  clusters_.clear();
  std::vector<float> keys;
  for (std::int32_t begin = set_.first_indexed; begin < set_.end_indexed; begin += kSegment) {
    const std::int32_t count = std::min(kSegment, set_.end_indexed - begin);
    keys.clear();
    std::vector<float> mean(at(d), 0.0f);
    for (std::int32_t i = begin; i < begin + count; ++i) {
      for (std::int32_t j = 0; j < d; ++j) {
        keys.push_back(bf16_to_float(set_.row(i)[j]));
        mean[at(j)] += keys.back();
      }
    }
    for (float& x : mean) x /= static_cast<float>(count);
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] -= mean[i % mean.size()];
    const std::int32_t clusters = std::max(1, count / kTokensPerCluster);
    const std::vector<std::int32_t> nearest =
        k_means(keys.data(), count, d,
                {.clusters = clusters, .iterations = kIterations, .spherical = true});
    for (const std::vector<std::int32_t>& members : members_of(nearest, clusters)) {
      clusters_.push_back(
          {static_cast<std::int32_t>(order_.size()), static_cast<std::int32_t>(members.size())});
      for (const std::int32_t i : members) order_.push_back(begin + i);
    }
  }
  rows_.clear();
  rows_.reserve(at(static_cast<std::int64_t>(set_.indexed()) * set_.width()));
  for (const std::int32_t token : order_) {
    rows_.insert(rows_.end(), set_.row(token), set_.row(token) + set_.width());
  }
}

// Means, and the views that the attend kernel gets.
void FlatClusters::describe() {
  const std::int32_t width = set_.width();
  std::vector<float> key_means;
  std::vector<float> value_means;
  std::vector<float> sum(at(width));
  ln_count_.clear();
  pieces_.clear();
  cluster_of_.clear();
  for (std::size_t c = 0; c < clusters_.size(); ++c) {
    const Page& cluster = clusters_[c];
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::int32_t r = cluster.first; r < cluster.first + cluster.count; ++r) {
      const Bf16* row = rows_.data() + static_cast<std::int64_t>(r) * width;
      for (std::int32_t j = 0; j < width; ++j) sum[at(j)] += bf16_to_float(row[j]);
    }
    for (float& x : sum) x /= static_cast<float>(cluster.count);
    key_means.insert(key_means.end(), sum.begin(), sum.begin() + set_.d_k);
    value_means.insert(value_means.end(), sum.begin() + set_.d_k, sum.end());
    ln_count_.push_back(std::log(static_cast<float>(cluster.count)));
    for (std::int32_t first = 0; first < cluster.count; first += kMaxClusterTokens) {
      pieces_.push_back(
          {cluster.first + first, std::min(kMaxClusterTokens, cluster.count - first)});
      cluster_of_.push_back(static_cast<std::int32_t>(c));
    }
  }
  means_ =
      Int8Vectors::make(key_means.data(), static_cast<std::int32_t>(clusters_.size()), set_.d_k);
  views_.clear();
  for (std::size_t begin = 0; begin < pieces_.size();) {
    std::size_t end = begin;
    std::int32_t rows = 0;
    while (end < pieces_.size() && rows + pieces_[end].count <= kMaxSegmentTokens) {
      rows += pieces_[end++].count;
    }
    add_view(begin, end, value_means);
    begin = end;
  }
  segments_.clear();
  for (const View& view : views_) segments_.push_back(view.index);
}

void FlatClusters::add_view(std::size_t begin, std::size_t end,
                            const std::vector<float>& value_means) {
  const auto count = static_cast<std::int32_t>(end - begin);
  const std::int32_t first_row = pieces_[begin].first;
  const std::int32_t rows = pieces_[end - 1].first + pieces_[end - 1].count - first_row;
  const PartShape shape{.kv_head_count = 1, .d_k = set_.d_k, .d_v = set_.d_v, .row_count = rows};
  views_.push_back({.part = make_level_part(PartKind::kClusters, shape, std::span(&count, 1)),
                    .first_piece = static_cast<std::int32_t>(begin),
                    .first_row = first_row});
  View& view = views_.back();
  const MutableLevelView level = mutable_level(view.part, 0);
  std::fill_n(level.gamma, set_.d_k, 0.0f);
  for (std::int32_t i = 0; i < count; ++i) {
    const Page& piece = pieces_[begin + at(i)];
    const float* mean =
        value_means.data() + static_cast<std::int64_t>(cluster_of_[begin + at(i)]) * set_.d_v;
    float largest = 0;
    for (std::int32_t j = 0; j < set_.d_v; ++j) largest = std::max(largest, std::fabs(mean[j]));
    const float scale = largest > 0 ? largest / 127 : 1;
    for (std::int32_t j = 0; j < set_.d_v; ++j) {
      level.value_means[static_cast<std::int64_t>(i) * set_.d_v + j] =
          static_cast<std::int8_t>(std::nearbyint(mean[j] / scale));
    }
    level.key_scale[i] = 0;  // dots come from our own scan
    level.value_scale[i] = scale;
    level.ln_count[i] = std::log(static_cast<float>(piece.count));
    level.sigma[i] = 0;
    level.token_count[i] = static_cast<std::uint16_t>(piece.count);
    level.first_row[i] = static_cast<std::uint16_t>(piece.first - first_row);
  }
  view.index.clusters = {.count = level.count,
                         .stored_count = level.stored_count,
                         .d_k = level.d_k,
                         .d_v = level.d_v,
                         .key_means = level.key_means,
                         .value_means = level.value_means,
                         .key_scale = level.key_scale,
                         .value_scale = level.value_scale,
                         .ln_count = level.ln_count,
                         .sigma = level.sigma,
                         .token_count = level.token_count,
                         .first_row = level.first_row,
                         .gamma = level.gamma};
  view.index.lists.d_k = set_.d_k;
  view.index.lists.d_v = set_.d_v;
  view.index.codes.row_count = rows;
  view.index.end_row = rows;
}

void FlatClusters::select(const MethodQuery& query) {
  const auto count = static_cast<std::int32_t>(clusters_.size());
  const std::int32_t stride = scan_padded(count);
  scan(means_, query.q, set_.group, set_.beta, dot_.data(), stride);
  for (std::int32_t h = 0; h < set_.group; ++h) {
    const float* dot = dot_.data() + static_cast<std::int64_t>(h) * stride;
    float* logit = logit_.data() + static_cast<std::int64_t>(h) * stride;
    for (std::int32_t c = 0; c < count; ++c) logit[c] = dot[c] + ln_count_[at(c)];
  }
  softmax_votes(logit_.data(), set_.group, count, stride, query.exact_lse, scratch_.data(),
                vote_.data());
  // Clusters hold 16 tokens on average; where the best ones are smaller, more are taken.
  chosen_.clear();
  for (std::int32_t wanted = std::min(count, query.budget / kTokensPerCluster * 2 + 8);;
       wanted = std::min(count, 2 * wanted)) {
    best_.resize(at(top_room(wanted)));
    top_scores(vote_.data(), count, wanted, best_.data());
    std::sort(best_.begin(), best_.begin() + wanted, [](const Scored& a, const Scored& b) {
      return a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    std::int32_t tokens = 0;
    chosen_.clear();
    for (std::int32_t i = 0; i < wanted && tokens < query.budget; ++i) {
      chosen_.push_back(best_[at(i)].index);
      tokens += clusters_[at(chosen_.back())].count;
    }
    if (tokens >= query.budget || wanted == count) break;
  }
  std::sort(chosen_.begin(), chosen_.end());
}

void FlatClusters::attend(const MethodQuery& query, Partial result) {
  const auto pieces = static_cast<std::int32_t>(pieces_.size());
  const std::int32_t stride = scan_padded(means_.count);
  for (std::int32_t h = 0; h < set_.group; ++h) {
    const float* dot = dot_.data() + static_cast<std::int64_t>(h) * stride;
    float* to = piece_dot_.data() + static_cast<std::int64_t>(h) * pieces;
    for (std::int32_t p = 0; p < pieces; ++p) to[p] = dot[cluster_of_[at(p)]];
  }
  runs_.clear();
  selected_.clear();
  std::fill(candidate_.begin(), candidate_.end(), std::uint8_t{0});
  std::size_t view = 0;
  std::size_t p = 0;
  for (const std::int32_t c : chosen_) {
    while (cluster_of_[p] < c) ++p;
    for (; p < pieces_.size() && cluster_of_[p] == c; ++p) {
      const Page& piece = pieces_[p];
      candidate_[p] = 1;
      while (view + 1 < views_.size() && views_[view + 1].first_row <= piece.first) ++view;
      runs_.push_back({.rows = rows_.data() + static_cast<std::int64_t>(piece.first) * set_.width(),
                       .mask = (std::uint64_t{1} << piece.count) - 1});
      for (std::int32_t r = 0; r < piece.count; ++r) {
        selected_.push_back(
            {static_cast<std::int32_t>(view), piece.first + r - views_[view].first_row});
      }
    }
  }
  const TableSize size = table_size(segments_.data(), static_cast<std::int32_t>(segments_.size()));
  attend_scratch_.resize(
      at(attend_scratch_floats(set_.group, size, static_cast<std::int32_t>(selected_.size()))));
  const AttendGroup group{.row_count = set_.group,
                          .q = query.q,
                          .run_count = static_cast<std::int32_t>(runs_.size()),
                          .runs = runs_.data(),
                          .segment_count = static_cast<std::int32_t>(segments_.size()),
                          .segments = segments_.data(),
                          .cluster_logit = piece_dot_.data(),
                          .candidate = candidate_.data(),
                          .token_logit = token_logit_.data(),
                          .selected_count = static_cast<std::int32_t>(selected_.size()),
                          .selected = selected_.data(),
                          .scratch = attend_scratch_.data(),
                          .result = result};
  const HeadShape shape{.d_k = set_.d_k, .d_v = set_.d_v, .beta = set_.beta};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &group});
}

std::vector<std::int32_t> FlatClusters::selected() const {
  std::vector<std::int32_t> tokens;
  for (const std::int32_t c : chosen_) {
    const Page& cluster = clusters_[at(c)];
    for (std::int32_t i = 0; i < cluster.count; ++i) {
      tokens.push_back(order_[at(cluster.first + i)]);
    }
  }
  return tokens;
}

MethodCost FlatClusters::cost() const {
  MethodCost cost;
  for (const std::int32_t c : chosen_) {
    const std::int32_t tokens = clusters_[at(c)].count;
    cost.pages += ceil_div(tokens, kMovedTokens);
    cost.page_bytes +=
        static_cast<std::int64_t>(tokens) * set_.width() * static_cast<std::int64_t>(sizeof(Bf16));
  }
  cost.index_bytes_read = index_bytes();  // the estimate reads every cluster's mean value
  return cost;
}

std::int64_t FlatClusters::index_bytes() const {
  constexpr std::int64_t kScaleAndCount = 4 + 4;
  return means_.bytes() + std::ssize(clusters_) * (set_.d_v + kScaleAndCount);
}

}  // namespace icefield
