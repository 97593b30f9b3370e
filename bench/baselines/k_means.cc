#include "bench/baselines/k_means.h"

#include <cmath>

#include "bench/baselines/scan_kernels.h"

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

float length_of(const float* x, std::int32_t d) {
  float sum = 0;
  for (std::int32_t j = 0; j < d; ++j) sum += x[j] * x[j];
  return std::sqrt(sum);
}

// Sets every centroid to the mean of its points, or of their directions.
void update(const float* points, const std::vector<std::int32_t>& cluster, bool spherical,
            Centroids& centroids) {
  const std::int32_t d = centroids.d;
  std::vector<float> sums(at(static_cast<std::int64_t>(centroids.count) * d), 0.0f);
  std::vector<std::int32_t> counts(at(centroids.count), 0);
  for (std::size_t i = 0; i < cluster.size(); ++i) {
    const float* x = points + static_cast<std::int64_t>(i) * d;
    float* sum = sums.data() + static_cast<std::int64_t>(cluster[i]) * d;
    for (std::int32_t j = 0; j < d; ++j) sum[j] += x[j];
    ++counts[at(cluster[i])];
  }
  for (std::int32_t c = 0; c < centroids.count; ++c) {
    float* mean = sums.data() + static_cast<std::int64_t>(c) * d;
    if (counts[at(c)] == 0) {
      const std::int64_t from = static_cast<std::int64_t>(c) * std::ssize(cluster);
      const float* x = points + from / centroids.count * d;
      std::copy_n(x, d, mean);
    }
    const float norm = length_of(mean, d);
    float factor = 1;
    if (spherical) {
      factor = norm > 0 ? 1 / norm : 1;
    } else if (counts[at(c)] > 0) {
      factor = 1 / static_cast<float>(counts[at(c)]);
    }
    for (std::int32_t j = 0; j < d; ++j) mean[j] *= factor;
    centroids.set(c, mean, spherical ? 0 : norm * factor * norm * factor / 2);
  }
}

}  // namespace

std::vector<std::int32_t> k_means(const float* points, std::int32_t count, std::int32_t d,
                                  const KMeansOptions& options) {
  std::vector<float> directions;
  const float* trained = points;
  if (options.spherical) {
    directions.assign(points, points + static_cast<std::int64_t>(count) * d);
    for (std::int32_t i = 0; i < count; ++i) {
      float* x = directions.data() + static_cast<std::int64_t>(i) * d;
      const float norm = length_of(x, d);
      for (std::int32_t j = 0; j < d; ++j) x[j] /= norm > 0 ? norm : 1;
    }
    trained = directions.data();
  }
  Centroids centroids = Centroids::make(options.clusters, d);
  for (std::int32_t c = 0; c < options.clusters; ++c) {
    const float* x = trained + static_cast<std::int64_t>(c) * count / options.clusters * d;
    const float norm = length_of(x, d);
    centroids.set(c, x, options.spherical ? 0 : norm * norm / 2);
  }
  std::vector<std::int32_t> nearest(at(count));
  for (std::int32_t i = 0; i < options.iterations; ++i) {
    nearest_centroids(trained, count, centroids, nearest.data());
    update(trained, nearest, options.spherical, centroids);
  }
  if (options.spherical) update(points, nearest, false, centroids);
  nearest_centroids(points, count, centroids, nearest.data());
  return nearest;
}

std::vector<std::vector<std::int32_t>> members_of(const std::vector<std::int32_t>& cluster,
                                                  std::int32_t clusters) {
  std::vector<std::vector<std::int32_t>> members(at(clusters));
  for (std::size_t i = 0; i < cluster.size(); ++i) {
    members[at(cluster[i])].push_back(static_cast<std::int32_t>(i));
  }
  std::erase_if(members, [](const auto& some) { return some.empty(); });
  return members;
}

}  // namespace icefield
