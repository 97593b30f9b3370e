// bench/baselines/k_means.h — flat k-means, as published methods build their index.
#pragma once

#include <cstdint>
#include <vector>

namespace icefield {

struct KMeansOptions {
  std::int32_t clusters = 1;
  std::int32_t iterations = 5;
  // Points count by their direction, centroids are unit vectors while they are trained; the last
  // assignment is to the nearest mean all the same.
  bool spherical = false;
};

// The cluster of each of points [count, d]; some may be empty. First centroids and those that lost
// all their points are points at even distances, so the result depends on nothing else.
std::vector<std::int32_t> k_means(const float* points, std::int32_t count, std::int32_t d,
                                  const KMeansOptions& options);

// Points of each cluster, in order; empty clusters are left out.
std::vector<std::vector<std::int32_t>> members_of(const std::vector<std::int32_t>& cluster,
                                                  std::int32_t clusters);

}  // namespace icefield
