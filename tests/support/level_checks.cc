#include "tests/support/level_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "kernels/rotation.h"

namespace icefield {
namespace {

// Where fp32 ends: what is smaller is as good as zero.
constexpr float kLeast = 1e-35f;

// What fp32 may make of the square of a difference that is zero.
float noise_of(const LevelView& level) {
  float largest = 0;  // key mean
  for (std::int32_t i = 0; i < level.count; ++i) {
    largest = std::max(largest, 127 * level.key_scale[i]);
  }
  return kLeast + 1e-13f * largest * largest;
}

// Of squared error: a local maximum of what codes explain, so it says little of few dimensions.
double worst_codes(std::int32_t d_k) { return d_k < 64 ? 1.01 : 1.002; }

void expect_same_slope(const LevelView& ours, const LevelView& theirs) {
  ASSERT_EQ(ours.slope != nullptr, theirs.slope != nullptr);
  for (std::int32_t k = 0; ours.slope != nullptr && k < ours.d_k; ++k) {
    EXPECT_NEAR(ours.slope_scale[k], theirs.slope_scale[k], 2e-2f * theirs.slope_scale[k]);
    for (std::int32_t j = 0; j < ours.d_v; ++j) {
      const std::int64_t at = static_cast<std::int64_t>(k) * ours.d_v + j;
      ASSERT_LE(std::abs(ours.slope[at] - theirs.slope[at]), 2) << k << " " << j;
    }
  }
}

void expect_same_means(const LevelView& ours, const LevelView& theirs) {
  int differences = 0;
  for (std::int32_t i = 0; i < ours.count; ++i) {
    for (std::int32_t j = 0; j < ours.d_k; ++j) {
      const std::int64_t at = ours.key_mean_at(i, j);
      ASSERT_LE(std::abs(ours.key_means[at] - theirs.key_means[at]), 1) << "cluster " << i;
      differences += ours.key_means[at] != theirs.key_means[at];
    }
    for (std::int32_t j = 0; j < ours.d_v; ++j) {
      const std::int64_t at = static_cast<std::int64_t>(i) * ours.d_v + j;
      ASSERT_LE(std::abs(ours.value_means[at] - theirs.value_means[at]), 1) << "cluster " << i;
      differences += ours.value_means[at] != theirs.value_means[at];
    }
  }
  EXPECT_LE(differences, ours.count * (ours.d_k + ours.d_v) / 200);
}

// Calls f(row, its cluster) for all rows of the clusters.
template <class F>
void for_rows(const LevelView& clusters, F&& f) {
  for (std::int32_t c = 0; c < clusters.count; ++c) {
    for (std::int32_t i = 0; i < clusters.token_count[c]; ++i) f(clusters.first_row[c] + i, c);
  }
}

float residual(const LevelView& clusters, std::int32_t c, const Bf16* key, std::int32_t j) {
  return bf16_to_float(key[j]) -
         clusters.key_scale[c] * static_cast<float>(clusters.key_means[clusters.key_mean_at(c, j)]);
}

}  // namespace

void expect_same_index(const HeadFixture& head) {
  HeadParts reference;
  reference.describe(reference_kernels(),
                     {.kv_head_count = 1,
                      .d_k = head.d_k,
                      .d_v = head.d_v,
                      .row_count = head.index.end_row,
                      .first_indexed_row = head.index.first_row},
                     head.partition, head.stored_rows.data());
  expect_same_level(head.index.lists, reference.index.lists);
  expect_same_level(head.index.clusters, reference.index.clusters);
  // Both sets of codes are of what the head's means leave.
  const LevelView& clusters = head.index.clusters;
  const CodeError ours = code_error(clusters, head.index.codes, head.stored_rows.data());
  const CodeError theirs = code_error(clusters, reference.index.codes, head.stored_rows.data());
  const double noise = static_cast<double>(noise_of(clusters)) * head.index.end_row * head.d_k;
  EXPECT_LE(ours.error, worst_codes(head.d_k) * theirs.error + noise);
}

void expect_same_level(const LevelView& ours, const LevelView& theirs) {
  ASSERT_EQ(ours.count, theirs.count);
  const float noise = noise_of(theirs);
  const float variance = std::accumulate(theirs.gamma, theirs.gamma + theirs.d_k, 0.0f);
  for (std::int32_t i = 0; i < ours.count; ++i) {
    EXPECT_EQ(ours.token_count[i], theirs.token_count[i]);
    EXPECT_EQ(ours.first_row[i], theirs.first_row[i]);
    EXPECT_NEAR(ours.key_scale[i], theirs.key_scale[i], kLeast + 1e-5f * theirs.key_scale[i]);
    EXPECT_NEAR(ours.value_scale[i], theirs.value_scale[i], kLeast + 1e-5f * theirs.value_scale[i]);
    EXPECT_NEAR(ours.ln_count[i], theirs.ln_count[i], 1e-6f);
    if (variance <= noise * static_cast<float>(theirs.d_k)) continue;  // shares of nothing
    const float sigma = fp16_to_float(theirs.sigma[i]);
    EXPECT_NEAR(fp16_to_float(ours.sigma[i]), sigma, 2e-3f * sigma + 1e-6f) << "cluster " << i;
  }
  expect_same_means(ours, theirs);
  for (std::int32_t j = 0; j < ours.d_k; ++j) {
    EXPECT_NEAR(ours.gamma[j], theirs.gamma[j], 1e-3f * theirs.gamma[j] + noise) << "dim " << j;
  }
  expect_same_slope(ours, theirs);
}

double squared_error(const LevelView& clusters, const Bf16* rows) {
  double sum = 0;
  for_rows(clusters, [&](std::int32_t row, std::int32_t c) {
    const Bf16* key = rows + static_cast<std::int64_t>(row) * (clusters.d_k + clusters.d_v);
    for (std::int32_t j = 0; j < clusters.d_k; ++j) {
      sum += std::pow(static_cast<double>(residual(clusters, c, key, j)), 2);
    }
  });
  return sum;
}

CodeError code_error(const LevelView& clusters, const CodesView& codes, const Bf16* rows) {
  CodeError sum;
  std::vector<float> rotated(static_cast<std::size_t>(clusters.d_k));
  for_rows(clusters, [&](std::int32_t row, std::int32_t c) {
    const Bf16* key = rows + static_cast<std::int64_t>(row) * (clusters.d_k + clusters.d_v);
    for (std::int32_t j = 0; j < clusters.d_k; ++j) {
      rotated[static_cast<std::size_t>(j)] = residual(clusters, c, key, j);
    }
    rotate(rotated.data(), 1, clusters.d_k, rotated.data());
    for (std::int32_t j = 0; j < clusters.d_k; ++j) {
      const auto x = static_cast<double>(rotated[static_cast<std::size_t>(j)]);
      const float decoded =
          fp16_to_float(codes.scale[row]) * static_cast<float>(code_level(codes.code(row, j)));
      sum.error += std::pow(x - static_cast<double>(decoded), 2);
      sum.power += x * x;
    }
  });
  return sum;
}

}  // namespace icefield
