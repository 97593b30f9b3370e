// The second-order tail: the SIMD kernel against the reference, the mean over segments, and that
// it does what it is for.
#include "kernels/slope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"

namespace icefield {
namespace {

// Rows whose values follow their keys: v = A k and a little noise.
std::vector<Bf16> following_rows(Rng& rng, std::int32_t rows, std::int32_t d) {
  std::vector<Bf16> out = random_rows(rng, rows, d, d);
  std::vector<float> a(static_cast<std::size_t>(d * d));
  for (float& value : a) value = normal(rng) / std::sqrt(static_cast<float>(d));
  for (std::int32_t i = 0; i < rows; ++i) {
    Bf16* row = out.data() + static_cast<std::int64_t>(i) * 2 * d;
    for (std::int32_t j = 0; j < d; ++j) {
      float value = 0.2f * normal(rng);
      for (std::int32_t k = 0; k < d; ++k)
        value += a[static_cast<std::size_t>(j * d + k)] * bf16_to_float(row[k]);
      row[d + j] = float_to_bf16(value);
    }
  }
  return out;
}

double error_of(std::span<const float> out, std::span<const float> truth) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    difference += std::pow(static_cast<double>(out[i]) - static_cast<double>(truth[i]), 2);
    norm += std::pow(static_cast<double>(truth[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// The error of the row in the middle: a few rows miss a token that matters, which no tail mends.
double median_error(const std::vector<float>& out, const std::vector<float>& truth,
                    std::size_t d_v) {
  std::vector<double> errors;
  for (std::size_t at = 0; at < out.size(); at += d_v) {
    errors.push_back(error_of(std::span(out).subspan(at, d_v), std::span(truth).subspan(at, d_v)));
  }
  std::nth_element(errors.begin(), errors.begin() + std::ssize(errors) / 2, errors.end());
  return errors[errors.size() / 2];
}

TEST(Slope, SimdAgreesWithTheReference) {
  SeededRng rng(3);
  for (const std::int32_t d : {16, 64, 80, 96, 128, 256}) {
    for (const std::int32_t rows : {1, 3, 4, 8, 17}) {
      const std::int32_t d_v = rows == 3 ? 48 : d;
      const auto random = [&](std::int32_t count) {
        std::vector<float> values(static_cast<std::size_t>(count));
        for (float& value : values) value = normal(rng);
        return values;
      };
      std::vector<float> gamma = random(d);
      for (float& value : gamma) value *= value;
      const std::vector<float> scale = random(d);
      const std::vector<float> q = random(rows * d);
      const std::vector<float> drift = random(rows);
      std::vector<std::int8_t> slope(static_cast<std::size_t>(d * d_v));
      for (std::int8_t& value : slope)
        value = static_cast<std::int8_t>(static_cast<int>(rng.below(255)) - 127);
      const std::vector<float> before = random(rows * d_v);
      std::vector<float> outs[2] = {before, before};
      for (int i = 0; i < 2; ++i) {
        const Kernels& kernels = i == 0 ? cpu_kernels() : reference_kernels();
        kernels.add_slope({.shape = {.d_k = d, .d_v = d_v, .beta = 0.2f},
                           .slope = {gamma.data(), slope.data(), scale.data()},
                           .row_count = rows,
                           .q = q.data(),
                           .drift = drift.data(),
                           .out = outs[i].data()});
      }
      EXPECT_LT(error_of(outs[0], outs[1]), 1e-5) << d << " " << rows;
    }
  }
}

TEST(Slope, WithoutVarianceNothingMoves) {
  const std::vector<float> zero(64, 0.0f);
  const std::vector<float> one(64, 1.0f);
  const std::vector<std::int8_t> slope(64 * 64, 100);
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    std::vector<float> out = one;
    kernels->add_slope({.shape = {.d_k = 64, .d_v = 64, .beta = 1},
                        .slope = {zero.data(), slope.data(), one.data()},
                        .row_count = 1,
                        .q = one.data(),
                        .drift = one.data(),
                        .out = out.data()});
    EXPECT_EQ(out, one);
  }
}

TEST(Slope, MeanIsOverTheSegmentsThatCarryOne) {
  SeededRng rng(4);
  const auto build = [&](std::int32_t rows) {
    return HeadFixture::make(cpu_kernels(), following_rows(rng, rows, 64), 64, 64, 0);
  };
  const auto first = build(kSlopeTokens);
  const auto small = build(1024);
  const auto second = build(kSlopeTokens);
  EXPECT_EQ(small->index.clusters.slope, nullptr);
  EXPECT_TRUE(mean_slope(std::vector{small->index}).empty());
  const HeadSlope alone = mean_slope(std::vector{first->index, small->index});
  const HeadSlope mean = mean_slope(std::vector{first->index, small->index, second->index});
  for (std::size_t k = 0; k < 64; ++k) {
    EXPECT_FLOAT_EQ(alone.gamma[k], first->index.clusters.gamma[k]);
    EXPECT_NEAR(mean.gamma[k],
                (first->index.clusters.gamma[k] + second->index.clusters.gamma[k]) / 2, 1e-5f);
    for (std::size_t j = 0; j < 64; ++j) {
      const auto entry = [&](const LevelView& level) {
        return level.slope_scale[k] * static_cast<float>(level.slope[k * 64 + j]);
      };
      const float expected = (entry(first->index.clusters) + entry(second->index.clusters)) / 2;
      EXPECT_NEAR(mean.scale[k] * static_cast<float>(mean.slope[k * 64 + j]), expected,
                  0.51f * mean.scale[k]);
      EXPECT_EQ(alone.slope[k * 64 + j], first->index.clusters.slope[k * 64 + j]);
    }
  }
}

// What it is for: where values follow keys the error falls, whether tokens were ranked or not; with
// everything selected nothing drifts.
TEST(Slope, ErrorFallsWhereValuesFollowKeys) {
  SeededRng rng(5);
  constexpr std::int32_t kDim = 64;
  const auto head =
      HeadFixture::make(cpu_kernels(), following_rows(rng, kSlopeTokens, kDim), kDim, kDim, 0);
  const HeadShape shape{.d_k = kDim, .d_v = kDim, .beta = 1 / std::sqrt(64.0f)};
  std::vector<float> q(12 * kDim);  // that look for nothing, so that the tail has most of the mass
  for (float& value : q) value = 1.5f * normal(rng);
  const PartialBuffer full = attend_rows(cpu_kernels(), shape, q, head->rows.data(), kSlopeTokens);
  const HeadSlope slope = mean_slope(std::vector{head->index});
  for (const Kernels* kernels : {&cpu_kernels(), &reference_kernels()}) {
    for (const std::int32_t breadth : {1, 16, kAllClusters}) {
      for (const std::int32_t budget : {64, 256, kSlopeTokens}) {
        GroupFixture group(*kernels, shape, {head->index}, {head->stored_rows.data()}, q,
                           std::vector<float>(12, -HUGE_VALF));
        group.select({.budget = budget, .breadth = breadth});
        PartialBuffer result = group.attend();
        const double first_order = median_error(result.out, full.out, kDim);
        kernels->add_slope({.shape = shape,
                            .slope = slope.view(),
                            .row_count = 12,
                            .q = q.data(),
                            .drift = result.drift.data(),
                            .out = result.out.data()});
        const double second_order = median_error(result.out, full.out, kDim);
        if (budget == kSlopeTokens) {
          EXPECT_EQ(result.drift, std::vector<float>(12, 0.0f));
          EXPECT_LT(second_order, 1e-4);
        } else {
          EXPECT_LT(second_order, 0.6 * first_order) << breadth << " " << budget;
        }
      }
    }
  }
}

}  // namespace
}  // namespace icefield
