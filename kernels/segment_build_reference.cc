#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cluster_plan.h"
#include "kernels/rotation.h"
#include "kernels/segment_build.h"

namespace icefield {
namespace {

using Tokens = std::vector<std::int32_t>;

// Keys as doubles, by token.
class Keys {
 public:
  explicit Keys(const PartitionArgs& args) : d_(args.d_k) {
    for (std::int32_t i = 0; i < args.row_count; ++i) {
      const Bf16* row = args.rows + static_cast<std::int64_t>(i) * (args.d_k + args.d_v);
      for (std::int32_t j = 0; j < args.d_k; ++j) values_.push_back(bf16_to_float(row[j]));
    }
  }
  std::int32_t dim() const { return d_; }
  const double* operator[](std::int32_t token) const {
    return values_.data() + static_cast<std::int64_t>(token) * d_;
  }

 private:
  std::int32_t d_;
  std::vector<double> values_;
};

double squared_distance(const double* a, const double* b, std::int32_t d) {
  double sum = 0;
  for (std::int32_t j = 0; j < d; ++j) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return sum;
}

std::size_t nearest(const double* key, const std::vector<std::vector<double>>& centroids) {
  std::size_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (std::size_t c = 0; c < centroids.size(); ++c) {
    const double distance =
        squared_distance(key, centroids[c].data(), static_cast<std::int32_t>(centroids[c].size()));
    if (distance < best_distance) {
      best_distance = distance;
      best = c;
    }
  }
  return best;
}

// Lloyd iterations on `sample`, then every token of `tokens` goes to its nearest centroid. Empty
// groups are dropped. An empty centroid restarts at a strided token of the sample.
std::vector<Tokens> k_means(const Keys& keys, const Tokens& tokens, const Tokens& sample,
                            std::int32_t k, int iterations) {
  std::vector<std::vector<double>> centroids;
  const auto total = static_cast<std::int32_t>(tokens.size());
  for (std::int32_t c = 0; c < k; ++c) {
    const double* key = keys[tokens[static_cast<std::size_t>(internal::strided(c, k, total))]];
    centroids.emplace_back(key, key + keys.dim());
  }
  for (int iteration = 0; iteration < iterations; ++iteration) {
    std::vector<std::vector<double>> sums(static_cast<std::size_t>(k),
                                          std::vector<double>(centroids[0].size(), 0.0));
    std::vector<std::int32_t> counts(static_cast<std::size_t>(k), 0);
    for (const std::int32_t token : sample) {
      const std::size_t c = nearest(keys[token], centroids);
      ++counts[c];
      for (std::size_t j = 0; j < sums[c].size(); ++j) sums[c][j] += keys[token][j];
    }
    for (std::size_t c = 0; c < centroids.size(); ++c) {
      if (counts[c] == 0) {
        const auto at = static_cast<std::size_t>(internal::strided(
            static_cast<std::int32_t>(c), k, static_cast<std::int32_t>(sample.size())));
        centroids[c].assign(keys[sample[at]], keys[sample[at]] + keys.dim());
      } else {
        for (std::size_t j = 0; j < sums[c].size(); ++j) centroids[c][j] = sums[c][j] / counts[c];
      }
    }
  }
  std::vector<Tokens> groups(static_cast<std::size_t>(k));
  for (const std::int32_t token : tokens) {
    groups[nearest(keys[token], centroids)].push_back(token);
  }
  std::erase_if(groups, [](const Tokens& group) { return group.empty(); });
  return groups;
}

// Tokens [begin, end) of an order, on their way to becoming a cluster.
struct Group {
  std::size_t begin = 0;
  std::size_t end = 0;
  double spread = 0;         // Σ ‖k - mean‖²; infinite where there are too many tokens
  std::size_t farthest = 0;  // from the mean: where in the order
};

Group measure(const Keys& keys, const Tokens& order, std::size_t begin, std::size_t end) {
  std::vector<double> mean(static_cast<std::size_t>(keys.dim()), 0.0);
  for (std::size_t i = begin; i < end; ++i) {
    for (std::size_t j = 0; j < mean.size(); ++j) {
      mean[j] += keys[order[i]][j] / static_cast<double>(end - begin);
    }
  }
  Group group{.begin = begin, .end = end, .spread = 0, .farthest = begin};
  double largest = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const double distance = squared_distance(keys[order[i]], mean.data(), keys.dim());
    group.spread += distance;
    if (distance > largest) {
      largest = distance;
      group.farthest = i;
    }
  }
  if (end - begin > static_cast<std::size_t>(kMaxClusterTokens)) {
    group.spread = std::numeric_limits<double>::infinity();
  }
  return group;
}

// Parts the tokens of a group between two centroids that start at the token farthest from the mean
// and the one farthest from that; returns where the second part begins. Equal tokens are halved.
std::size_t split(const Keys& keys, const Group& group, Tokens& order) {
  std::vector<std::vector<double>> centroids;
  std::size_t second = group.begin;
  const double* first_key = keys[order[group.farthest]];
  for (std::size_t i = group.begin; i < group.end; ++i) {
    if (squared_distance(keys[order[i]], first_key, keys.dim()) >
        squared_distance(keys[order[second]], first_key, keys.dim())) {
      second = i;
    }
  }
  for (const std::size_t i : {group.farthest, second}) {
    centroids.emplace_back(keys[order[i]], keys[order[i]] + keys.dim());
  }
  std::array<Tokens, 2> parts;
  for (int iteration = 0; iteration <= internal::kSplitIterations; ++iteration) {
    for (std::size_t c = 0; iteration > 0 && c < parts.size(); ++c) {
      std::fill(centroids[c].begin(), centroids[c].end(), 0.0);
      for (const std::int32_t token : parts[c]) {
        for (std::size_t j = 0; j < centroids[c].size(); ++j) {
          centroids[c][j] += keys[token][j] / static_cast<double>(parts[c].size());
        }
      }
    }
    for (Tokens& part : parts) part.clear();
    for (std::size_t i = group.begin; i < group.end; ++i) {
      parts[nearest(keys[order[i]], centroids)].push_back(order[i]);
    }
    if (parts[0].empty() || parts[1].empty()) return group.begin + (group.end - group.begin) / 2;
  }
  std::copy(parts[0].begin(), parts[0].end(),
            order.begin() + static_cast<std::ptrdiff_t>(group.begin));
  std::copy(parts[1].begin(), parts[1].end(),
            order.begin() + static_cast<std::ptrdiff_t>(group.begin + parts[0].size()));
  return group.begin + parts[0].size();
}

// Splits the loosest group again and again, from the lists down, until there are `wanted` clusters
// and none is too large.
std::vector<Group> split_loosest(const Keys& keys, std::vector<Group> groups, std::int32_t wanted,
                                 Tokens& order) {
  for (;;) {
    const auto loosest =
        std::max_element(groups.begin(), groups.end(),
                         [](const Group& a, const Group& b) { return a.spread < b.spread; });
    const bool too_large = std::isinf(loosest->spread);
    if (loosest->spread == 0 || (!too_large && std::ssize(groups) >= wanted)) return groups;
    const Group group = *loosest;
    const std::size_t middle = split(keys, group, order);
    *loosest = measure(keys, order, group.begin, middle);
    groups.insert(loosest + 1, measure(keys, order, middle, group.end));
  }
}

// Lists and clusters of the tokens [begin, end), appended to `out`.
void partition_run(const Keys& keys, std::int32_t begin, std::int32_t end,
                   std::int32_t segment_rows, Partition& out) {
  Tokens tokens(static_cast<std::size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  const std::int32_t list_count = internal::planned_lists(end - begin, segment_rows);
  const std::int32_t sample_count = std::min(end - begin, list_count * internal::kSamplePerList);
  Tokens sample;
  for (std::int32_t i = 0; i < sample_count; ++i) {
    sample.push_back(begin + internal::strided(i, sample_count, end - begin));
  }
  Tokens order;
  std::vector<Group> groups;
  for (const Tokens& list : k_means(keys, tokens, sample, list_count, internal::kListIterations)) {
    out.list_rows.push_back(static_cast<std::uint16_t>(list.size()));
    order.insert(order.end(), list.begin(), list.end());
    groups.push_back(measure(keys, order, order.size() - list.size(), order.size()));
  }
  groups = split_loosest(keys, std::move(groups), internal::planned_clusters(end - begin), order);
  for (const Group& group : groups) {
    out.cluster_rows.push_back(static_cast<std::uint16_t>(group.end - group.begin));
  }
  for (const std::int32_t token : order) out.order.push_back(static_cast<std::uint16_t>(token));
}

// ------------------------------------------------------------------------------------- describe

void quantise_mean(const std::vector<double>& mean, std::int8_t* out, std::int64_t stride,
                   float& scale, std::vector<double>& dequantised) {
  double largest = 0;
  for (const double value : mean) largest = std::max(largest, std::abs(value));
  scale = static_cast<float>(largest / 127);
  dequantised.assign(mean.size(), 0.0);
  for (std::size_t j = 0; j < mean.size(); ++j) {
    const double level = scale == 0 ? 0 : std::nearbyint(mean[j] / static_cast<double>(scale));
    const auto quantised = static_cast<std::int8_t>(std::clamp(level, -127.0, 127.0));
    out[static_cast<std::int64_t>(j) * stride] = quantised;
    dequantised[j] = static_cast<double>(scale) * quantised;
  }
}

std::vector<double> mean_of(const DescribeArgs& args, std::int32_t first_row, std::int32_t count,
                            std::int32_t first_dim, std::int32_t d) {
  std::vector<double> mean(static_cast<std::size_t>(d), 0.0);
  for (std::int32_t row = first_row; row < first_row + count; ++row) {
    const Bf16* at = args.rows + static_cast<std::int64_t>(row) * (args.d_k + args.d_v) + first_dim;
    for (std::int32_t j = 0; j < d; ++j) {
      mean[static_cast<std::size_t>(j)] += bf16_to_float(at[j]) / static_cast<double>(count);
    }
  }
  return mean;
}

// Fills `level` for the runs given; returns the dequantised key mean of each.
std::vector<std::vector<double>> describe_level(const DescribeArgs& args,
                                                const std::vector<std::uint16_t>& run_rows,
                                                const MutableLevelView& level) {
  std::vector<std::vector<double>> means;
  std::vector<double> spread;                                          // Σ_j n_c var_cj per run
  std::vector<double> shape(static_cast<std::size_t>(args.d_k), 0.0);  // Σ_c n_c var_cj per dim
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < run_rows.size(); ++c) {
    const std::int32_t count = run_rows[c];
    std::vector<double> key_mean;
    std::vector<double> value_mean;
    std::vector<std::int8_t> key_codes(static_cast<std::size_t>(args.d_k));
    quantise_mean(mean_of(args, row, count, 0, args.d_k), key_codes.data(), 1, level.key_scale[c],
                  key_mean);
    for (std::int32_t j = 0; j < args.d_k; ++j) {
      level.key_means[level.key_mean_at(static_cast<std::int32_t>(c), j)] =
          key_codes[static_cast<std::size_t>(j)];
    }
    quantise_mean(mean_of(args, row, count, args.d_k, args.d_v),
                  level.value_means + static_cast<std::int64_t>(c) * args.d_v, 1,
                  level.value_scale[c], value_mean);
    double sum = 0;
    for (std::int32_t i = row; i < row + count; ++i) {
      const Bf16* key = args.rows + static_cast<std::int64_t>(i) * (args.d_k + args.d_v);
      for (std::size_t j = 0; j < key_mean.size(); ++j) {
        const double difference = bf16_to_float(key[j]) - key_mean[j];
        shape[j] += difference * difference;
        sum += difference * difference;
      }
    }
    spread.push_back(sum);
    means.push_back(std::move(key_mean));
    level.ln_count[c] = static_cast<float>(std::log(count));
    level.token_count[c] = static_cast<std::uint16_t>(count);
    level.first_row[c] = static_cast<std::uint16_t>(row);
    row += count;
  }
  const double rows = row - args.first_indexed_row;
  double total = 0;
  for (std::size_t j = 0; j < shape.size(); ++j) {
    level.gamma[j] = static_cast<float>(shape[j] / rows);
    total += shape[j] / rows;
  }
  for (std::size_t c = 0; c < run_rows.size(); ++c) {
    const double sigma = total == 0 ? 0 : spread[c] / run_rows[c] / total;
    level.sigma[c] = float_to_fp16(static_cast<float>(std::min(sigma, 65504.0)));
  }
  return means;
}

// M = (s/n) Σ (k - μ)(v - ν)ᵀ over every kSlopeStride-th stored row, means as stored.
void describe_slope(const DescribeArgs& args, const std::vector<std::vector<double>>& means) {
  const MutableLevelView& level = args.clusters;
  const auto d_v = static_cast<std::size_t>(args.d_v);
  std::vector<double> slope(static_cast<std::size_t>(args.d_k) * d_v, 0.0);
  double keys = 0;
  double values = 0;
  std::int32_t count = 0;
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < means.size(); ++c) {
    for (const std::int32_t end = row + args.partition->cluster_rows[c]; row < end; ++row) {
      if (row % internal::kSlopeStride != 0) continue;
      ++count;
      const Bf16* key = args.rows + static_cast<std::int64_t>(row) * (args.d_k + args.d_v);
      for (std::size_t j = 0; j < d_v; ++j) {
        const double mean =
            static_cast<double>(level.value_scale[c]) * level.value_means[c * d_v + j];
        const double value = bf16_to_float(key[static_cast<std::size_t>(args.d_k) + j]) - mean;
        for (std::size_t k = 0; k < means[c].size(); ++k) {
          slope[k * d_v + j] += (bf16_to_float(key[k]) - means[c][k]) * value;
        }
        values += value * value;
      }
      for (std::size_t k = 0; k < means[c].size(); ++k) {
        keys += (bf16_to_float(key[k]) - means[c][k]) * (bf16_to_float(key[k]) - means[c][k]);
      }
    }
  }
  const double sums = std::inner_product(slope.begin(), slope.end(), slope.begin(), 0.0);
  const double factor = internal::slope_share(keys, values, sums, count) / count;
  for (std::size_t k = 0; k < static_cast<std::size_t>(args.d_k); ++k) {
    level.slope_scale[k] =
        internal::quantise_slope(slope.data() + k * d_v, args.d_v, factor, level.slope + k * d_v);
  }
}

// The scale of least squared error: for every number of dimensions that take the outer level (the
// largest ones, for any scale) the best scale is known in closed form.
double best_scale(std::vector<double> magnitudes) {
  constexpr double inner = code_level(2);
  constexpr double outer = code_level(3);
  std::sort(magnitudes.begin(), magnitudes.end(), std::greater<>());
  double dot = inner * std::accumulate(magnitudes.begin(), magnitudes.end(), 0.0);
  double norm = inner * inner * static_cast<double>(magnitudes.size());
  double best = dot / norm;
  double best_gain = dot * dot / norm;
  for (const double magnitude : magnitudes) {
    dot += (outer - inner) * magnitude;
    norm += outer * outer - inner * inner;
    if (dot * dot / norm > best_gain) {
      best_gain = dot * dot / norm;
      best = dot / norm;
    }
  }
  return best;
}

void encode_row(const std::vector<double>& residual, const MutableCodesView& codes,
                std::int32_t row) {
  std::vector<double> magnitudes;
  for (const double value : residual) magnitudes.push_back(std::abs(value));
  codes.scale[row] = float_to_fp16(static_cast<float>(std::min(best_scale(magnitudes), 65504.0)));
  const double scale = fp16_to_float(codes.scale[row]);
  for (std::int32_t j = 0; j < codes.d_k; ++j) {
    const double value = residual[static_cast<std::size_t>(j)];
    const bool outer = std::abs(value) > scale * static_cast<double>(kCodeThreshold);
    const std::uint32_t code = value < 0 ? (outer ? 0u : 1u) : (outer ? 3u : 2u);
    codes.code_word(row, j) |= code << MutableCodesView::code_shift(j);
  }
}

// rotate() in float64.
std::vector<double> rotate_exactly(const std::vector<double>& x) {
  const std::size_t block = x.size() & (~x.size() + 1);
  std::vector<double> out(x.size(), 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = i / block * block; j < (i / block + 1) * block; ++j) {
      const bool negative = (__builtin_popcountll((i % block) & (j % block)) & 1) != 0;
      const double term = x[j] * static_cast<double>(rotation_sign(static_cast<std::int32_t>(j)));
      out[i] += negative ? -term : term;
    }
    out[i] /= std::sqrt(static_cast<double>(block));
  }
  return out;
}

}  // namespace

Status partition_reference(const PartitionArgs& args, Partition& out) {
  ICE_TRY(internal::validate(args));
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(args.row_count) * (args.d_k + args.d_v);
       ++i) {
    if (!(std::abs(bf16_to_float(args.rows[i])) < internal::kMagnitudeLimit)) {
      return internal::bad_value(i / (args.d_k + args.d_v));
    }
  }
  const Keys keys(args);
  out = {};
  for (std::int32_t i = 0; i < args.first_indexed_row; ++i) {
    out.order.push_back(static_cast<std::uint16_t>(i));
  }
  const std::int32_t last_extent = args.row_count - kExtentRows;
  if (last_extent > args.first_indexed_row) {
    partition_run(keys, args.first_indexed_row, last_extent, args.row_count, out);
  }
  partition_run(keys, std::max(last_extent, args.first_indexed_row), args.row_count, args.row_count,
                out);
  return Status();
}

void describe_reference(const DescribeArgs& args) {
  describe_level(args, args.partition->list_rows, args.lists);
  const std::vector<std::vector<double>> means =
      describe_level(args, args.partition->cluster_rows, args.clusters);
  if (args.clusters.slope != nullptr) describe_slope(args, means);
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < means.size(); ++c) {
    for (const std::int32_t end = row + args.partition->cluster_rows[c]; row < end; ++row) {
      const Bf16* key = args.rows + static_cast<std::int64_t>(row) * (args.d_k + args.d_v);
      std::vector<double> residual;
      for (std::size_t j = 0; j < means[c].size(); ++j) {
        residual.push_back(bf16_to_float(key[j]) - means[c][j]);
      }
      encode_row(rotate_exactly(residual), args.codes, row);
    }
  }
}

}  // namespace icefield
