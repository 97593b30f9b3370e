// Clustering and description on the CPU. Bound: the dot products of the list assignment, about
// (6 × 32 + 64) centroid distances per token in a segment of 4096.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/segment_build_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <numeric>
#include <span>
#include <vector>

#include "hwy/highway.h"
#include "kernels/cluster_plan.h"
#include "kernels/rotation.h"
#include "kernels/segment_build.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
Status partition_target(const PartitionArgs& args, Partition& out) {
  return partition_reference(args, out);
}
void describe_target(const DescribeArgs& args) { describe_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

using Tokens = std::vector<std::int32_t>;
using Floats = std::vector<float, AlignedAllocator<float> >;

// Keys as floats, by token: [token_count, d].
struct Keys {
  std::int32_t d = 0;
  Floats values;
  const float* operator[](std::int32_t token) const {
    return values.data() + static_cast<std::int64_t>(token) * d;
  }
};

// Centroids side by side: dimension j of centroid c at [j * width + c].
struct Centroids {
  std::int32_t count = 0;
  std::int32_t width = 0;  // count rounded up to whole vectors
  Floats transposed;
  Floats half_norm;  // [width] ‖c‖²/2, +inf in the padding

  void reset(std::int32_t k, std::int32_t d) {
    count = k;
    width =
        static_cast<std::int32_t>(round_up(k, static_cast<std::int64_t>(hn::Lanes(FloatTag()))));
    transposed.assign(static_cast<std::size_t>(width) * static_cast<std::size_t>(d), 0.0f);
    half_norm.assign(static_cast<std::size_t>(width), HUGE_VALF);
  }
  void set(std::int32_t c, const float* centroid, std::int32_t d) {
    float norm = 0;
    for (std::int32_t j = 0; j < d; ++j) {
      transposed[static_cast<std::size_t>(j) * static_cast<std::size_t>(width) +
                 static_cast<std::size_t>(c)] = centroid[j];
      norm += centroid[j] * centroid[j];
    }
    half_norm[static_cast<std::size_t>(c)] = norm * 0.5f;
  }
};

// Everything k-means needs again and again.
struct Workspace {
  Keys keys;
  Centroids centroids;
  Floats sums;                       // [k, d]
  std::vector<std::int32_t> counts;  // [k]
  std::vector<std::int32_t> nearest;
};

// The nearest centroid of each of kTokens keys: the least ‖c‖²/2 - k·c, ties to the lower index.
template <int kTokens>
HWY_INLINE void nearest_of(const float* const* keys, std::int32_t d_k, const Centroids& centroids,
                           std::int32_t* out) {
  const FloatTag d;
  const IntTag di;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  FloatVec best[kTokens];
  hn::Vec<IntTag> best_at[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    best[t] = hn::Set(d, HUGE_VALF);
    best_at[t] = hn::Zero(di);
  }
  for (std::int32_t c = 0; c < centroids.width; c += lanes) {
    FloatVec distance[kTokens];
    for (FloatVec& v : distance) v = hn::LoadU(d, centroids.half_norm.data() + c);
    const float* at = centroids.transposed.data() + c;
    for (std::int32_t j = 0; j < d_k; ++j, at += centroids.width) {
      const FloatVec x = hn::LoadU(d, at);
      for (int t = 0; t < kTokens; ++t) {
        distance[t] = hn::NegMulAdd(hn::Set(d, keys[t][j]), x, distance[t]);
      }
    }
    const auto index = hn::Iota(di, c);
    for (int t = 0; t < kTokens; ++t) {
      const auto closer = hn::Lt(distance[t], best[t]);
      best[t] = hn::IfThenElse(closer, distance[t], best[t]);
      best_at[t] = hn::IfThenElse(hn::RebindMask(di, closer), index, best_at[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const FloatVec least = hn::MinOfLanes(d, best[t]);
    const auto is_least = hn::RebindMask(di, hn::Eq(best[t], least));
    const auto candidates = hn::IfThenElse(is_least, best_at[t], hn::Set(di, centroids.width));
    out[t] = std::min(hn::GetLane(hn::MinOfLanes(di, candidates)), centroids.count - 1);
  }
}

void assign(const Keys& keys, std::span<const std::int32_t> tokens, const Centroids& centroids,
            std::vector<std::int32_t>& out) {
  constexpr std::size_t kTokens = 4;
  out.resize(tokens.size());
  std::size_t i = 0;
  for (; i + kTokens <= tokens.size(); i += kTokens) {
    const float* four[kTokens] = {keys[tokens[i]], keys[tokens[i + 1]], keys[tokens[i + 2]],
                                  keys[tokens[i + 3]]};
    nearest_of<kTokens>(four, keys.d, centroids, &out[i]);
  }
  for (; i < tokens.size(); ++i) {
    const float* one[1] = {keys[tokens[i]]};
    nearest_of<1>(one, keys.d, centroids, &out[i]);
  }
}

// One Lloyd step on `sample`. An empty centroid restarts at a strided token of the sample.
void improve(Workspace& work, std::span<const std::int32_t> sample) {
  const std::int32_t d = work.keys.d;
  const std::int32_t k = work.centroids.count;
  assign(work.keys, sample, work.centroids, work.nearest);
  work.sums.assign(static_cast<std::size_t>(k) * static_cast<std::size_t>(d), 0.0f);
  work.counts.assign(static_cast<std::size_t>(k), 0);
  for (std::size_t i = 0; i < sample.size(); ++i) {
    const float* key = work.keys[sample[i]];
    const auto c = static_cast<std::size_t>(work.nearest[i]);
    float* sum = work.sums.data() + c * static_cast<std::size_t>(d);
    for (std::int32_t j = 0; j < d; ++j) sum[j] += key[j];
    ++work.counts[c];
  }
  for (std::int32_t c = 0; c < k; ++c) {
    float* sum = work.sums.data() + static_cast<std::int64_t>(c) * d;
    const std::int32_t count = work.counts[static_cast<std::size_t>(c)];
    if (count == 0) {
      const std::int32_t at = internal::strided(c, k, static_cast<std::int32_t>(sample.size()));
      work.centroids.set(c, work.keys[sample[static_cast<std::size_t>(at)]], d);
      continue;
    }
    const float inverse = 1.0f / static_cast<float>(count);
    for (std::int32_t j = 0; j < d; ++j) sum[j] *= inverse;
    work.centroids.set(c, sum, d);
  }
}

// See the reference. The groups are appended to `order`, their sizes to `sizes`; empty ones are
// dropped.
void k_means(Workspace& work, std::span<const std::int32_t> tokens,
             std::span<const std::int32_t> sample, std::int32_t k, int iterations, Tokens& order,
             std::vector<std::int32_t>& sizes) {
  const auto total = static_cast<std::int32_t>(tokens.size());
  work.centroids.reset(k, work.keys.d);
  for (std::int32_t c = 0; c < k; ++c) {
    const auto at = static_cast<std::size_t>(internal::strided(c, k, total));
    work.centroids.set(c, work.keys[tokens[at]], work.keys.d);
  }
  if (k > 1) {
    for (int iteration = 0; iteration < iterations; ++iteration) improve(work, sample);
  }
  assign(work.keys, tokens, work.centroids, work.nearest);
  work.counts.assign(static_cast<std::size_t>(k), 0);
  for (const std::int32_t c : work.nearest) ++work.counts[static_cast<std::size_t>(c)];
  // A counting sort keeps tokens in their order.
  std::vector<std::size_t> at(static_cast<std::size_t>(k));
  std::size_t next = order.size();
  for (std::size_t c = 0; c < at.size(); ++c) {
    at[c] = next;
    next += static_cast<std::size_t>(work.counts[c]);
    if (work.counts[c] > 0) sizes.push_back(work.counts[c]);
  }
  order.resize(next);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    order[at[static_cast<std::size_t>(work.nearest[i])]++] = tokens[i];
  }
}

float squared_distance(const float* a, const float* b, std::int32_t d) {
  float sum = 0;
  for (std::int32_t j = 0; j < d; ++j) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return sum;
}

// Halves across the line through the token farthest from the mean, until no group is too large.
void bisect(const Keys& keys, std::span<std::int32_t> group, std::vector<std::uint16_t>& sizes) {
  if (group.size() <= static_cast<std::size_t>(kMaxClusterTokens)) {
    sizes.push_back(static_cast<std::uint16_t>(group.size()));
    return;
  }
  std::vector<float> mean(static_cast<std::size_t>(keys.d), 0.0f);
  for (const std::int32_t token : group) {
    for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += keys[token][j];
  }
  for (float& value : mean) value /= static_cast<float>(group.size());
  const float* farthest = keys[group[0]];
  float largest = 0;
  for (const std::int32_t token : group) {
    const float distance = squared_distance(keys[token], mean.data(), keys.d);
    if (distance > largest) {
      largest = distance;
      farthest = keys[token];
    }
  }
  std::vector<std::pair<float, std::int32_t> > projected;
  for (const std::int32_t token : group) {
    float sum = 0;
    for (std::size_t j = 0; j < mean.size(); ++j) sum += keys[token][j] * (farthest[j] - mean[j]);
    projected.emplace_back(sum, token);
  }
  std::sort(projected.begin(), projected.end());
  for (std::size_t i = 0; i < group.size(); ++i) group[i] = projected[i].second;
  const std::size_t middle = group.size() / 2;
  for (const std::span<std::int32_t> half : {group.first(middle), group.subspan(middle)}) {
    std::sort(half.begin(), half.end());
    bisect(keys, half, sizes);
  }
}

void partition_run(Workspace& work, std::int32_t begin, std::int32_t end, std::int32_t segment_rows,
                   Partition& out) {
  Tokens tokens(static_cast<std::size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  const std::int32_t list_count = internal::planned_lists(end - begin, segment_rows);
  const std::int32_t sample_count = std::min(end - begin, list_count * internal::kSamplePerList);
  Tokens sample;
  for (std::int32_t i = 0; i < sample_count; ++i) {
    sample.push_back(begin + internal::strided(i, sample_count, end - begin));
  }
  Tokens by_list;
  std::vector<std::int32_t> list_sizes;
  k_means(work, tokens, sample, list_count, internal::kListIterations, by_list, list_sizes);
  std::span<const std::int32_t> rest = by_list;
  Tokens by_cluster;
  std::vector<std::int32_t> cluster_sizes;
  for (const std::int32_t list_rows : list_sizes) {
    const auto list = rest.first(static_cast<std::size_t>(list_rows));
    rest = rest.subspan(list.size());
    by_cluster.clear();
    cluster_sizes.clear();
    k_means(work, list, list, internal::planned_clusters(list_rows), internal::kClusterIterations,
            by_cluster, cluster_sizes);
    std::span<std::int32_t> groups = by_cluster;
    for (const std::int32_t rows : cluster_sizes) {
      bisect(work.keys, groups.first(static_cast<std::size_t>(rows)), out.cluster_rows);
      groups = groups.subspan(static_cast<std::size_t>(rows));
    }
    out.list_rows.push_back(static_cast<std::uint16_t>(list_rows));
    for (const std::int32_t token : by_cluster) {
      out.order.push_back(static_cast<std::uint16_t>(token));
    }
  }
}

Status load_keys(const PartitionArgs& args, Keys& keys) {
  keys.d = args.d_k;
  keys.values.resize(static_cast<std::size_t>(args.row_count) * static_cast<std::size_t>(args.d_k));
  for (std::int32_t i = 0; i < args.row_count; ++i) {
    const Bf16* row = args.rows + static_cast<std::int64_t>(i) * (args.d_k + args.d_v);
    bool finite = true;
    for (std::int32_t j = 0; j < args.d_k + args.d_v; ++j) finite &= (row[j] & 0x7f80u) != 0x7f80u;
    if (!finite) {
      return Status(Code::kInvalidArgument,
                    "key or value of token " + std::to_string(i) + " of the segment is not finite");
    }
    float* key = keys.values.data() + static_cast<std::int64_t>(i) * args.d_k;
    for (std::int32_t j = 0; j < args.d_k; ++j) key[j] = bf16_to_float(row[j]);
  }
  return Status();
}

// ------------------------------------------------------------------------------------- describe

// Quantises mean[d] to int8 with one scale and leaves the dequantised mean in its place.
float quantise_mean(float* mean, std::int32_t d, std::int8_t* out) {
  float largest = 0;
  for (std::int32_t j = 0; j < d; ++j) largest = std::max(largest, std::abs(mean[j]));
  const float scale = largest / 127;
  for (std::int32_t j = 0; j < d; ++j) {
    const float level = scale == 0 ? 0 : std::nearbyint(mean[j] / scale);
    out[j] = static_cast<std::int8_t>(std::clamp(level, -127.0f, 127.0f));
    mean[j] = scale * static_cast<float>(out[j]);
  }
  return scale;
}

void describe_level(const DescribeArgs& args, std::span<const std::uint16_t> run_rows,
                    const MutableLevelView& level, float* means) {
  const std::int64_t width = args.d_k + args.d_v;
  std::vector<float> key_mean(static_cast<std::size_t>(args.d_k));
  std::vector<float> value_mean(static_cast<std::size_t>(args.d_v));
  std::vector<std::int8_t> key_codes(static_cast<std::size_t>(args.d_k));
  std::vector<float> squares(static_cast<std::size_t>(args.d_k));
  std::vector<float> spread(run_rows.size());  // Σ_j n_c var_cj
  // Sums over thousands of rows: in double.
  std::vector<double> shape(static_cast<std::size_t>(args.d_k), 0.0);
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < run_rows.size(); ++c) {
    const std::int32_t count = run_rows[c];
    const Bf16* rows = args.rows + row * width;
    std::fill(key_mean.begin(), key_mean.end(), 0.0f);
    std::fill(value_mean.begin(), value_mean.end(), 0.0f);
    for (std::int32_t i = 0; i < count; ++i) {
      const Bf16* at = rows + i * width;
      for (std::int32_t j = 0; j < args.d_k; ++j) {
        key_mean[static_cast<std::size_t>(j)] += bf16_to_float(at[j]);
      }
      for (std::int32_t j = 0; j < args.d_v; ++j) {
        value_mean[static_cast<std::size_t>(j)] += bf16_to_float(at[args.d_k + j]);
      }
    }
    const float inverse = 1.0f / static_cast<float>(count);
    for (float& value : key_mean) value *= inverse;
    for (float& value : value_mean) value *= inverse;
    level.key_scale[c] = quantise_mean(key_mean.data(), args.d_k, key_codes.data());
    level.value_scale[c] = quantise_mean(
        value_mean.data(), args.d_v, level.value_means + static_cast<std::int64_t>(c) * args.d_v);
    for (std::int32_t j = 0; j < args.d_k; ++j) {
      level.key_means[level.key_mean_at(static_cast<std::int32_t>(c), j)] =
          key_codes[static_cast<std::size_t>(j)];
    }
    std::fill(squares.begin(), squares.end(), 0.0f);
    for (std::int32_t i = 0; i < count; ++i) {
      for (std::int32_t j = 0; j < args.d_k; ++j) {
        const float difference =
            bf16_to_float(rows[i * width + j]) - key_mean[static_cast<std::size_t>(j)];
        squares[static_cast<std::size_t>(j)] += difference * difference;
      }
    }
    spread[c] = 0;
    for (std::size_t j = 0; j < squares.size(); ++j) {
      spread[c] += squares[j];
      shape[j] += static_cast<double>(squares[j]);
    }
    if (means != nullptr) {
      std::copy(key_mean.begin(), key_mean.end(), means + static_cast<std::int64_t>(c) * args.d_k);
    }
    level.ln_count[c] = std::log(static_cast<float>(count));
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
    const double variance = static_cast<double>(spread[c]) / run_rows[c];
    const double sigma = total == 0 ? 0 : std::min(variance / total, 65504.0);
    level.sigma[c] = float_to_fp16(static_cast<float>(sigma));
  }
}

// The scale of least squared error of codes for residual[d]. For every scale the dimensions beyond
// the threshold take the outer level, and for every set of those the best scale is known; iterating
// the two (Lloyd) ends in a local minimum. From a few starts around the scale of a normal variable
// the best of them is within 0.05 % of the error that the reference's full search finds.
float code_scale(const float* residual, std::int32_t d_k) {
  const FloatTag d;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  constexpr float kInner = code_level(2);
  constexpr float kOuter = code_level(3);
  FloatVec power = hn::Zero(d);
  FloatVec sum = hn::Zero(d);
  for (std::int32_t j = 0; j < d_k; j += lanes) {
    const FloatVec x = hn::Abs(hn::LoadU(d, residual + j));
    power = hn::MulAdd(x, x, power);
    sum = hn::Add(sum, x);
  }
  const float all = sum_lanes(d, sum);
  const float deviation = std::sqrt(sum_lanes(d, power) / static_cast<float>(d_k));
  float best = deviation;
  float best_gain = 0;
  for (const float start : {0.7f, 0.85f, 1.0f, 1.15f, 1.35f}) {
    float scale = start * deviation;
    float gain = 0;  // how much of the power this scale explains; it only grows
    constexpr int kMaxIterations = 16;
    for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
      const FloatVec threshold = hn::Set(d, scale * kCodeThreshold);
      FloatVec large = hn::Zero(d);
      std::size_t outer = 0;
      for (std::int32_t j = 0; j < d_k; j += lanes) {
        const FloatVec x = hn::Abs(hn::LoadU(d, residual + j));
        const auto is_outer = hn::Gt(x, threshold);
        large = hn::Add(large, hn::IfThenElseZero(is_outer, x));
        outer += hn::CountTrue(d, is_outer);
      }
      const float dot = kInner * all + (kOuter - kInner) * sum_lanes(d, large);
      const float norm = kInner * kInner * static_cast<float>(d_k) +
                         (kOuter * kOuter - kInner * kInner) * static_cast<float>(outer);
      if (dot * dot <= gain * norm) break;
      gain = dot * dot / norm;
      scale = dot / norm;
    }
    if (gain > best_gain) {
      best_gain = gain;
      best = scale;
    }
  }
  return best;
}

void encode_row(const float* residual, const MutableCodesView& codes, std::int32_t row) {
  codes.scale[row] = float_to_fp16(std::min(code_scale(residual, codes.d_k), 65504.0f));
  const float threshold = fp16_to_float(codes.scale[row]) * kCodeThreshold;
  for (std::int32_t j = 0; j < codes.d_k; ++j) {
    // 0 and 1 are the negative levels from the outside in, 2 and 3 the positive ones outwards.
    const std::uint32_t outer = std::abs(residual[j]) > threshold ? 1 : 0;
    codes.code_word(row, j) |= (residual[j] < 0 ? 1 - outer : 2 + outer)
                               << MutableCodesView::code_shift(j);
  }
}

void describe(const DescribeArgs& args) {
  const std::vector<std::uint16_t>& cluster_rows = args.partition->cluster_rows;
  Floats means(cluster_rows.size() * static_cast<std::size_t>(args.d_k));
  describe_level(args, args.partition->list_rows, args.lists, nullptr);
  describe_level(args, cluster_rows, args.clusters, means.data());
  Floats residual(static_cast<std::size_t>(args.d_k));
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < cluster_rows.size(); ++c) {
    const float* mean = means.data() + c * static_cast<std::size_t>(args.d_k);
    for (const std::int32_t end = row + cluster_rows[c]; row < end; ++row) {
      const Bf16* key = args.rows + static_cast<std::int64_t>(row) * (args.d_k + args.d_v);
      for (std::int32_t j = 0; j < args.d_k; ++j) {
        residual[static_cast<std::size_t>(j)] = bf16_to_float(key[j]) - mean[j];
      }
      rotate(residual.data(), 1, args.d_k, residual.data());
      encode_row(residual.data(), args.codes, row);
    }
  }
}

}  // namespace

Status partition_target(const PartitionArgs& args, Partition& out) {
  Workspace work;
  ICE_TRY(load_keys(args, work.keys));
  out = {};
  out.order.resize(static_cast<std::size_t>(args.first_indexed_row));
  std::iota(out.order.begin(), out.order.end(), static_cast<std::uint16_t>(0));
  const std::int32_t last_extent = args.row_count - kExtentRows;
  if (last_extent > args.first_indexed_row) {
    partition_run(work, args.first_indexed_row, last_extent, args.row_count, out);
  }
  partition_run(work, std::max(last_extent, args.first_indexed_row), args.row_count, args.row_count,
                out);
  return Status();
}

void describe_target(const DescribeArgs& args) { describe(args); }

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(partition_target);
HWY_EXPORT(describe_target);

Status partition_cpu(const PartitionArgs& args, Partition& out) {
  return HWY_DYNAMIC_DISPATCH(partition_target)(args, out);
}
void describe_cpu(const DescribeArgs& args) { HWY_DYNAMIC_DISPATCH(describe_target)(args); }

}  // namespace icefield
#endif
