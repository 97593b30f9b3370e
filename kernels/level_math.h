// kernels/level_math.h — the contract's quantities in float64, one at a time: what the reference
// kernels are made of.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/head_index.h"
#include "kernels/rounded_query.h"

namespace icefield::internal {

// A query row as means see it.
struct MeanQuery {
  MeanQuery(const float* q, std::int32_t d)
      : step(static_cast<double>(round_query(q, d, kMeanQueryLimit, levels.data()))) {}

  std::array<std::int16_t, kMaxHeadDim> levels;
  double step;
};

// A rotated query row as codes see it.
struct CodeQuery {
  CodeQuery(const float* q_rotated, std::int32_t d)
      : step(static_cast<double>(round_query(q_rotated, d, kCodeQueryLimit, levels.data()))) {}

  std::array<std::int8_t, kMaxHeadDim> levels;
  double step;
};

// β q·μ of cluster (or list) `index`, q and μ as stored.
inline double cluster_dot(const MeanQuery& q, const LevelView& level, std::int32_t index,
                          double beta) {
  std::int64_t sum = 0;
  for (std::int32_t j = 0; j < level.d_k; ++j) {
    sum += static_cast<std::int64_t>(q.levels[static_cast<std::size_t>(j)]) *
           level.key_means[level.key_mean_at(index, j)];
  }
  return beta * q.step * static_cast<double>(level.key_scale[index]) * static_cast<double>(sum);
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
inline double code_dot(const CodeQuery& q, const CodesView& codes, std::int32_t row, double beta) {
  std::int64_t sum = 0;
  for (std::int32_t j = 0; j < codes.d_k; ++j) {
    sum += q.levels[static_cast<std::size_t>(j)] * code_level(codes.code(row, j));
  }
  return beta * q.step * static_cast<double>(fp16_to_float(codes.scale[row])) *
         static_cast<double>(sum);
}

}  // namespace icefield::internal
