#include "kernels/slope.h"

#include <algorithm>
#include <cmath>

#include "kernels/cluster_plan.h"
#include "kernels/level_math.h"

namespace icefield {

void add_slope_reference(const AddSlopeArgs& args) {
  for (std::int32_t h = 0; h < args.row_count; ++h) {
    const float* q = args.q + static_cast<std::int64_t>(h) * args.shape.d_k;
    float* out = args.out + static_cast<std::int64_t>(h) * args.shape.d_v;
    LevelView shape;
    shape.d_k = args.shape.d_k;
    shape.gamma = args.slope.gamma;
    const double weight = internal::variance_weight(q, shape, args.shape.beta);
    if (weight == 0) continue;
    const double factor = static_cast<double>(args.drift[h]) * args.shape.beta / (2 * weight);
    for (std::int32_t j = 0; j < args.shape.d_v; ++j) {
      double sum = 0;
      for (std::int32_t k = 0; k < args.shape.d_k; ++k) {
        sum += static_cast<double>(q[k]) * static_cast<double>(args.slope.slope_scale[k]) *
               args.slope.slope[static_cast<std::int64_t>(k) * args.shape.d_v + j];
      }
      out[j] = static_cast<float>(static_cast<double>(out[j]) + factor * sum);
    }
  }
}

HeadSlope mean_slope(std::span<const HeadIndex> segments) {
  HeadSlope mean;
  double rows = 0;
  std::vector<double> gamma, slope;
  for (const HeadIndex& segment : segments) {
    const LevelView& level = segment.clusters;
    if (level.slope == nullptr) continue;
    const auto d_k = static_cast<std::size_t>(level.d_k);
    const auto d_v = static_cast<std::size_t>(level.d_v);
    const double weight = segment.codes.row_count;
    rows += weight;
    gamma.resize(d_k);
    slope.resize(d_k * d_v);
    for (std::size_t k = 0; k < d_k; ++k) {
      gamma[k] += weight * static_cast<double>(level.gamma[k]);
      const double scale = weight * static_cast<double>(level.slope_scale[k]);
      for (std::size_t j = 0; j < d_v; ++j) slope[k * d_v + j] += scale * level.slope[k * d_v + j];
    }
  }
  if (rows == 0) return mean;
  const std::size_t d_v = slope.size() / gamma.size();
  mean.slope.resize(slope.size());
  for (std::size_t k = 0; k < gamma.size(); ++k) {
    mean.gamma.push_back(static_cast<float>(gamma[k] / rows));
    mean.scale.push_back(internal::quantise_slope(slope.data() + k * d_v,
                                                  static_cast<std::int32_t>(d_v), 1 / rows,
                                                  mean.slope.data() + k * d_v));
  }
  return mean;
}

}  // namespace icefield
