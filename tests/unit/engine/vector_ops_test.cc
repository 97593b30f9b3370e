// Element-wise operations against float64, for whole vectors and for what is left over.
#include "engine/vector_ops.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/rng.h"

namespace icefield {
namespace {

std::vector<float> random_values(std::uint64_t seed, std::int64_t count, double scale) {
  SeededRng rng(seed);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>((2 * rng.unit() - 1) * scale));
  }
  return values;
}

TEST(VectorOps, RmsNormIsThatOfFloat64) {
  for (const std::int64_t count : {1, 7, 16, 31, 64, 576, 577}) {
    const std::vector<float> x = random_values(1, count, 3);
    const std::vector<float> weight = random_values(2, count, 2);
    double squares = 0;
    for (const float value : x) squares += std::pow(static_cast<double>(value), 2);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(count) + 1e-5);
    std::vector<float> out(x.size(), NAN);
    rms_norm(x.data(), weight.data(), count, 1e-5f, out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]);
      EXPECT_NEAR(out[i], expected, 2e-6 * (1 + std::abs(expected))) << i << " of " << count;
    }
  }
}

TEST(VectorOps, SiluIsThatOfFloat64AlsoFarFromZero) {
  for (const std::int64_t count : {1, 15, 16, 17, 1536}) {
    std::vector<float> gate = random_values(3, count, 10);
    gate[0] = count % 2 == 0 ? -200.0f : 200.0f;
    const std::vector<float> up = random_values(4, count, 2);
    const std::vector<float> before = gate;
    silu_multiply(gate.data(), up.data(), count);
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const auto x = static_cast<double>(before[i]);
      const double expected = x / (1 + std::exp(-x)) * static_cast<double>(up[i]);
      EXPECT_NEAR(gate[i], expected, 2e-6 * (1 + std::abs(expected))) << i << " of " << count;
    }
  }
}

// A rotation: q·k depends on the distance of the two positions only.
TEST(VectorOps, RopeMakesProductsDependOnTheDistance) {
  constexpr std::int32_t d = 64;
  const std::vector<float> q = random_values(5, d, 1);
  const std::vector<float> k = random_values(6, d, 1);
  const auto product = [&](std::int64_t q_position, std::int64_t k_position) {
    std::vector<float> a = q;
    std::vector<float> b = k;
    apply_rope(rope_row(q_position, d, 10000), 1, d, a.data());
    apply_rope(rope_row(k_position, d, 10000), 1, d, b.data());
    double sum = 0;
    for (std::size_t j = 0; j < d; ++j) {
      sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
    }
    return sum;
  };
  EXPECT_NEAR(product(907, 900), product(7, 0), 1e-3);
  EXPECT_GT(std::abs(product(907, 900) - product(907, 800)), 1e-2);
  std::vector<float> unmoved = q;
  apply_rope(rope_row(0, d, 10000), 1, d, unmoved.data());
  EXPECT_EQ(unmoved, q) << "position 0";
}

}  // namespace
}  // namespace icefield
