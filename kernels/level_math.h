// kernels/level_math.h — the contract's quantities in float64, one at a time: what the reference
// kernels are made of.
#pragma once

#include <cstdint>

#include "kernels/head_index.h"

namespace icefield::internal {

// β q·μ of cluster (or list) `index`, μ as stored.
inline double cluster_dot(const float* q, const LevelView& level, std::int32_t index, double beta) {
  double sum = 0;
  for (std::int32_t j = 0; j < level.d_k; ++j) {
    sum += static_cast<double>(q[j]) * level.key_means[level.key_mean_at(index, j)];
  }
  return beta * sum * static_cast<double>(level.key_scale[index]);
}

// w = (β²/2) Σ_j q_j² γ_j.
inline double variance_weight(const float* q, const LevelView& level, double beta) {
  double sum = 0;
  for (std::int32_t j = 0; j < level.d_k; ++j) {
    sum +=
        static_cast<double>(q[j]) * static_cast<double>(q[j]) * static_cast<double>(level.gamma[j]);
  }
  return beta * beta / 2 * sum;
}

inline double sigma_of(const LevelView& level, std::int32_t index) {
  return static_cast<double>(fp16_to_float(level.sigma[index]));
}

// β rotate(q)·decode(code of `row`).
inline double code_dot(const float* q_rotated, const CodesView& codes, std::int32_t row,
                       double beta) {
  double sum = 0;
  for (std::int32_t j = 0; j < codes.d_k; ++j) {
    sum += static_cast<double>(q_rotated[j]) * static_cast<double>(kCodeLevels[codes.code(row, j)]);
  }
  return beta * sum * static_cast<double>(fp16_to_float(codes.scale[row]));
}

}  // namespace icefield::internal
