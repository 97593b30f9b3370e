// Products with packed weights against float64 over the decoded ones, and BLAS against loops.
#include "engine/matmul.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bench/support/head_fixture.h"
#include "tests/support/gguf_writer.h"

namespace icefield {
namespace {

class Matmul : public testing::TestWithParam<TensorType> {};

TEST_P(Matmul, AgreesWithFloat64OverDecodedWeightsForAnyTokenCount) {
  SeededRng rng(1);
  ThreadPool pool(2);
  constexpr std::int64_t kRows = 200, kCols = 192;
  const Bytes data = random_weights(rng, static_cast<std::uint32_t>(GetParam()), kRows * kCols);
  const Tensor weights{.type = GetParam(), .rows = kRows, .cols = kCols, .data = data.data()};
  std::vector<float> decoded(kRows * kCols);
  for (std::int64_t r = 0; r < kRows; ++r) decode_row(weights, r, decoded.data() + r * kCols);
  for (const std::int64_t tokens : {1, 2, 16, 32, 33, 70}) {
    std::vector<float> x(static_cast<std::size_t>(tokens * kCols));
    for (float& value : x) value = normal(rng);
    std::vector<float> y(static_cast<std::size_t>(tokens * kRows), NAN);
    std::vector<float> again(y);
    const Product products[] = {{&weights, y.data()}, {&weights, again.data()}};
    multiply(products, x.data(), tokens, pool);
    EXPECT_EQ(y, again) << "the same product twice in one call";
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t r = 0; r < kRows; ++r) {
        double sum = 0;
        double magnitude = 0;
        for (std::int64_t c = 0; c < kCols; ++c) {
          const double term =
              static_cast<double>(decoded[static_cast<std::size_t>(r * kCols + c)]) *
              static_cast<double>(x[static_cast<std::size_t>(t * kCols + c)]);
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[static_cast<std::size_t>(t * kRows + r)], sum, 1e-6 * magnitude + 1e-6)
            << tokens << " tokens, row " << r;
      }
    }
  }
}

TEST_P(Matmul, DoesNotDependOnTheThreads) {
  SeededRng rng(2);
  constexpr std::int64_t kRows = 300, kCols = 64;
  const Bytes data = random_weights(rng, static_cast<std::uint32_t>(GetParam()), kRows * kCols);
  const Tensor weights{.type = GetParam(), .rows = kRows, .cols = kCols, .data = data.data()};
  for (const std::int64_t tokens : {1, 8, 100}) {
    std::vector<float> x(static_cast<std::size_t>(tokens * kCols));
    for (float& value : x) value = normal(rng);
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      results.emplace_back(static_cast<std::size_t>(tokens * kRows));
      const Product product{&weights, results.back().data()};
      multiply(std::span(&product, 1), x.data(), tokens, pool);
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Matmul,
                         testing::Values(TensorType::kF32, TensorType::kF16, TensorType::kBF16,
                                         TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ8_0),
                         [](const auto& param) {
                           return tensor_type_name(static_cast<std::uint32_t>(param.param));
                         });

// The formats as their definition says, value by value.
TEST(DecodeRow, FollowsTheFormats) {
  Bytes data;
  ByteWriter writer(data);
  writer.put(float_to_fp16(0.5f));
  writer.put(float_to_fp16(-2.0f));
  for (std::uint32_t i = 0; i < 16; ++i) writer.put(static_cast<std::uint8_t>(i | ((15 - i) << 4)));
  std::vector<float> out(32);
  decode_row({.type = TensorType::kQ4_1, .rows = 1, .cols = 32, .data = data.data()}, 0,
             out.data());
  for (std::size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(out[i], 0.5f * static_cast<float>(i) - 2.0f);
    EXPECT_EQ(out[i + 16], 0.5f * static_cast<float>(15 - i) - 2.0f);
  }
  data.erase(data.begin() + 2, data.begin() + 4);
  decode_row({.type = TensorType::kQ4_0, .rows = 1, .cols = 32, .data = data.data()}, 0,
             out.data());
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(out[i], 0.5f * (static_cast<float>(i) - 8.0f));
  data.resize(2);
  for (int i = 0; i < 32; ++i) ByteWriter(data).put(static_cast<std::int8_t>(i - 16));
  decode_row({.type = TensorType::kQ8_0, .rows = 1, .cols = 32, .data = data.data()}, 0,
             out.data());
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(out[i], 0.5f * (static_cast<float>(i) - 16.0f));
}

TEST(Sgemm, MultipliesTransposesAndAccumulates) {
  SeededRng rng(3);
  constexpr std::int64_t m = 5, n = 7, k = 9;
  std::vector<float> a(m * k), b(k * n), transposed(n * k), c(m * n, 1.0f);
  for (float& value : a) value = normal(rng);
  for (float& value : b) value = normal(rng);
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = 0; j < n; ++j)
      transposed[static_cast<std::size_t>(j * k + i)] = b[static_cast<std::size_t>(i * n + j)];
  }
  std::vector<float> d = c;
  sgemm({.m = m,
         .n = n,
         .k = k,
         .a = a.data(),
         .lda = k,
         .b = b.data(),
         .ldb = n,
         .c = c.data(),
         .ldc = n,
         .accumulate = true});
  sgemm({.m = m,
         .n = n,
         .k = k,
         .a = a.data(),
         .lda = k,
         .b = transposed.data(),
         .ldb = k,
         .b_transposed = true,
         .c = d.data(),
         .ldc = n});
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (std::int64_t x = 0; x < k; ++x)
        sum += a[static_cast<std::size_t>(i * k + x)] * b[static_cast<std::size_t>(x * n + j)];
      EXPECT_NEAR(c[static_cast<std::size_t>(i * n + j)], sum + 1, 1e-5);
      EXPECT_NEAR(d[static_cast<std::size_t>(i * n + j)], sum, 1e-5);
    }
  }
}

}  // namespace
}  // namespace icefield
