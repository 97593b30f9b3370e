// The SIMD loops of the baselines against the plain ones, over random shapes.
#include "bench/baselines/scan_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/support/head_fixture.h"

namespace icefield {
namespace {

std::vector<float> normals(Rng& rng, std::int64_t count, float scale = 1) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = scale * normal(rng);
  return values;
}

std::vector<Bf16> bf16_of(const std::vector<float>& values) {
  std::vector<Bf16> out;
  for (const float value : values) out.push_back(float_to_bf16(value));
  return out;
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i], b[i], tolerance * (1 + std::fabs(b[i]))) << "at " << i;
  }
}

struct Shape {
  std::int32_t count, d, rows;
};
const Shape kShapes[] = {{1, 16, 1},    {63, 64, 2},    {64, 80, 3},   {200, 96, 4},
                         {129, 128, 5}, {1000, 128, 8}, {513, 256, 15}};

TEST(ScanKernels, Int8ScanIsThatOfPlainLoopsAndCloseToTheExactProduct) {
  SeededRng rng(1);
  for (const auto& [count, d, rows] : kShapes) {
    const std::vector<float> keys = normals(rng, static_cast<std::int64_t>(count) * d, 3);
    const std::vector<float> q = normals(rng, static_cast<std::int64_t>(rows) * d);
    const Int8Vectors vectors = Int8Vectors::make(keys.data(), count, d);
    const std::int32_t stride = scan_padded(count) + 64;
    std::vector<float> got(static_cast<std::size_t>(rows * stride), 0.0f);
    std::vector<float> wanted = got;
    scan(vectors, q.data(), rows, 0.5f, got.data(), stride);
    plain::scan(vectors, q.data(), rows, 0.5f, wanted.data(), stride);
    expect_near(got, wanted, 1e-6f);
    for (std::int32_t r = 0; r < rows; ++r) {
      for (std::int32_t i = 0; i < count; ++i) {
        double exact = 0;
        for (std::int32_t j = 0; j < d; ++j) {
          exact += 0.5 * static_cast<double>(q[static_cast<std::size_t>(r * d + j)]) *
                   static_cast<double>(keys[static_cast<std::size_t>(i * d + j)]);
        }
        // Rounding of both sides: a step is 1/127 of the largest value.
        const double noise = 0.08 * std::sqrt(static_cast<double>(d));
        ASSERT_NEAR(got[static_cast<std::size_t>(r * stride + i)], exact, noise);
      }
    }
  }
}

TEST(ScanKernels, Int8TakesTheLargestValuesOfEitherSign) {
  std::vector<float> keys(16, 1.0f);
  std::vector<float> q(16, -1.0f);
  keys[3] = q[5] = 0.0f;
  const Int8Vectors vectors = Int8Vectors::make(keys.data(), 1, 16);
  std::vector<float> out(64);
  scan(vectors, q.data(), 1, 1, out.data(), 64);
  EXPECT_NEAR(out[0], -14.0f, 1e-4f);
  EXPECT_EQ(out[1], 0.0f);  // padding
}

TEST(ScanKernels, Bf16ScanIsThatOfPlainLoops) {
  SeededRng rng(2);
  for (const auto& [count, d, rows] : kShapes) {
    const std::int32_t width = 2 * d;
    const std::vector<Bf16> keys = bf16_of(normals(rng, static_cast<std::int64_t>(count) * width));
    const std::vector<float> q = normals(rng, static_cast<std::int64_t>(rows) * d);
    const Bf16Vectors vectors = Bf16Vectors::make(keys.data(), width, count, d);
    const std::int32_t stride = scan_padded(count);
    std::vector<float> got(static_cast<std::size_t>(rows * stride));
    std::vector<float> wanted = got;
    scan(vectors, q.data(), rows, 0.1f, got.data(), stride);
    plain::scan(vectors, q.data(), rows, 0.1f, wanted.data(), stride);
    expect_near(got, wanted, 1e-5f);
    std::vector<float> dots(static_cast<std::size_t>(count));
    dot_rows(keys.data(), width, count, d, q.data(), 0.1f, dots.data());
    wanted.resize(dots.size());
    expect_near(dots, wanted, 1e-5f);
  }
}

TEST(ScanKernels, VotesAddUpToTheNumberOfRows) {
  SeededRng rng(3);
  for (const std::int32_t count : {1, 5, 64, 1000}) {
    for (const std::int32_t rows : {1, 2, 8}) {
      const std::int32_t stride = scan_padded(count);
      std::vector<float> logits = normals(rng, static_cast<std::int64_t>(rows) * stride, 4);
      if (count > 4) logits[2] = -HUGE_VALF;
      std::vector<float> scratch(static_cast<std::size_t>(count));
      std::vector<float> got(scratch.size());
      std::vector<float> wanted(scratch.size());
      const std::vector<float> lse = normals(rng, rows, 4);
      softmax_votes(logits.data(), rows, count, stride, nullptr, scratch.data(), got.data());
      plain::softmax_votes(logits.data(), rows, count, stride, nullptr, scratch.data(),
                           wanted.data());
      if (rows == 1) {
        EXPECT_EQ(got, wanted);
        continue;
      }
      expect_near(got, wanted, 1e-5f);
      double sum = 0;
      for (const float vote : got) sum += static_cast<double>(vote);
      EXPECT_NEAR(sum, rows, 1e-4);
      softmax_votes(logits.data(), rows, count, stride, lse.data(), scratch.data(), got.data());
      plain::softmax_votes(logits.data(), rows, count, stride, lse.data(), scratch.data(),
                           wanted.data());
      expect_near(got, wanted, 1e-5f);
    }
  }
}

TEST(ScanKernels, TopScoresAreTheLargestWithTiesToTheLowerIndex) {
  SeededRng rng(4);
  for (const std::int32_t count : {1, 7, 64, 3000}) {
    for (const std::int32_t wanted : {0, 1, 5, 64, 256}) {
      if (wanted > count) continue;
      std::vector<float> scores;
      for (std::int32_t i = 0; i < count; ++i) scores.push_back(static_cast<float>(rng.below(50)));
      std::vector<Scored> got(static_cast<std::size_t>(top_room(wanted)));
      std::vector<Scored> best = got;
      top_scores(scores.data(), count, wanted, got.data());
      plain::top_scores(scores.data(), count, wanted, best.data());
      const auto indices = [&](const std::vector<Scored>& from) {
        std::vector<std::int32_t> out;
        for (std::int32_t i = 0; i < wanted; ++i) {
          out.push_back(from[static_cast<std::size_t>(i)].index);
        }
        std::sort(out.begin(), out.end());
        return out;
      };
      EXPECT_EQ(indices(got), indices(best)) << count << " " << wanted;
    }
  }
}

TEST(ScanKernels, NearestCentroidIsThatOfPlainLoops) {
  SeededRng rng(5);
  for (const auto& [points, d, clusters] :
       {Shape{1, 16, 1}, {37, 64, 3}, {100, 80, 31}, {333, 128, 100}, {50, 256, 64}}) {
    const std::vector<float> x = normals(rng, static_cast<std::int64_t>(points) * d);
    Centroids centroids = Centroids::make(clusters, d);
    for (std::int32_t c = 0; c < clusters; ++c) {
      const std::vector<float> centroid = normals(rng, d);
      float norm = 0;
      for (const float value : centroid) norm += value * value;
      centroids.set(c, centroid.data(), norm / 2);
    }
    std::vector<std::int32_t> got(static_cast<std::size_t>(points));
    std::vector<std::int32_t> wanted = got;
    nearest_centroids(x.data(), points, centroids, got.data());
    plain::nearest_centroids(x.data(), points, centroids, wanted.data());
    EXPECT_EQ(got, wanted);
  }
}

}  // namespace
}  // namespace icefield
