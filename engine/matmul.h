// engine/matmul.h — products with weight matrices as they stand in the model's file.
#pragma once

#include <cstdint>
#include <span>

#include "common/thread_pool.h"
#include "engine/gguf.h"

namespace icefield {

// One product y = x Wᵀ, y [tokens, W.rows].
struct Product {
  const Tensor* weights = nullptr;
  float* y = nullptr;
};

// All products with the same x [tokens, cols], W.cols = cols for each. One token reads the packed
// weights once and computes in place; many tokens decode tiles of weights and call BLAS on them.
// The result depends on `tokens`' size class (1, up to kFewTokens, more), not on the threads.
// Threads  One call at a time per pool.
void multiply(std::span<const Product> products, const float* x, std::int64_t tokens,
              ThreadPool& pool);
constexpr std::int64_t kFewTokens = 32;

// Row `row` of a matrix as floats, exactly as the file format defines it: out [cols].
void decode_row(const Tensor& weights, std::int64_t row, float* out);

// C [m, n] (+)= A [m, k] B [k, n], or B [n, k] transposed; row-major with leading dimensions, on
// the calling thread only. The engine's one door to BLAS.
struct Sgemm {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  bool b_transposed = false;
  float* c = nullptr;
  std::int64_t ldc = 0;
  bool accumulate = false;
};
void sgemm(const Sgemm& args);

}  // namespace icefield
