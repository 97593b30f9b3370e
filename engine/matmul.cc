// Bound: one token reads every weight once (98 MB for the default model), so the packed bytes are
// decoded in registers; many tokens are bound by arithmetic and go through BLAS.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/matmul.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: the code below needs the target.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/check.h"
#include "common/float_bits.h"
#include "engine/matmul.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::CappedTag<float, 16>;
using FloatVec = hn::Vec<FloatTag>;

constexpr std::int64_t kBlock = 32;  // weights that share a scale

// The 32 weights of a packed block, as integers: f(vector, first index). Weight = scale × integer
// + offset.
struct BlockScale {
  float scale;
  float offset;
};

template <class F>
HWY_INLINE void nibbles(const std::byte* packed, F&& f) {
  const FloatTag d;
  const hn::Rebind<std::int32_t, FloatTag> di;
  const hn::Rebind<std::uint8_t, FloatTag> d8;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < kBlock / 2; i += lanes) {
    const auto both =
        hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(packed) + i));
    f(hn::ConvertTo(d, hn::And(both, hn::Set(di, 15))), i);
    f(hn::ConvertTo(d, hn::ShiftRight<4>(both)), i + kBlock / 2);
  }
}

struct Q4_0 {
  static constexpr std::int64_t kBytes = 18;
  static BlockScale scale(const std::byte* block) {
    const float d = fp16_to_float(load<Fp16>(block));
    return {d, -8 * d};
  }
  template <class F>
  static HWY_INLINE void integers(const std::byte* block, F&& f) {
    nibbles(block + 2, std::forward<F>(f));
  }
};

struct Q4_1 {
  static constexpr std::int64_t kBytes = 20;
  static BlockScale scale(const std::byte* block) {
    return {fp16_to_float(load<Fp16>(block)), fp16_to_float(load<Fp16>(block + 2))};
  }
  template <class F>
  static HWY_INLINE void integers(const std::byte* block, F&& f) {
    nibbles(block + 4, std::forward<F>(f));
  }
};

struct Q8_0 {
  static constexpr std::int64_t kBytes = 34;
  static BlockScale scale(const std::byte* block) { return {fp16_to_float(load<Fp16>(block)), 0}; }
  template <class F>
  static HWY_INLINE void integers(const std::byte* block, F&& f) {
    const FloatTag d;
    const hn::Rebind<std::int32_t, FloatTag> di;
    const hn::Rebind<std::int8_t, FloatTag> d8;
    for (std::int64_t i = 0; i < kBlock; i += static_cast<std::int64_t>(hn::Lanes(d))) {
      const auto* at = reinterpret_cast<const std::int8_t*>(block + 2) + i;
      f(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, at))), i);
    }
  }
};

template <class Format>
void decode_packed(const std::byte* row, std::int64_t cols, float* out) {
  const FloatTag d;
  for (std::int64_t c = 0; c < cols; c += kBlock, row += Format::kBytes, out += kBlock) {
    const BlockScale s = Format::scale(row);
    Format::integers(row, [&](FloatVec q, std::int64_t i) HWY_ATTR {
      // Two roundings, as the format defines the weights.
      hn::StoreU(hn::Add(hn::Mul(q, hn::Set(d, s.scale)), hn::Set(d, s.offset)), d, out + i);
    });
  }
}

// Σ_c w_c x_c, where block_sums[b] = Σ of x over block b.
template <class Format>
HWY_INLINE float dot_packed(const std::byte* row, std::int64_t cols, const float* x,
                            const float* block_sums) {
  const FloatTag d;
  FloatVec sum = hn::Zero(d);
  float offsets = 0;
  for (std::int64_t b = 0; b < cols / kBlock; ++b, row += Format::kBytes, x += kBlock) {
    const BlockScale s = Format::scale(row);
    FloatVec block = hn::Zero(d);
    Format::integers(row, [&](FloatVec q, std::int64_t i)
                              HWY_ATTR { block = hn::MulAdd(q, hn::LoadU(d, x + i), block); });
    sum = hn::MulAdd(block, hn::Set(d, s.scale), sum);
    offsets += s.offset * block_sums[b];
  }
  return hn::GetLane(hn::SumOfLanes(d, sum)) + offsets;
}

void decode_plain(const Tensor& weights, const std::byte* row, float* out) {
  for (std::int64_t c = 0; c < weights.cols; ++c) {
    switch (weights.type) {
      case TensorType::kF32: out[c] = load<float>(row + c * 4); break;
      case TensorType::kF16: out[c] = fp16_to_float(load<Fp16>(row + c * 2)); break;
      default: out[c] = bf16_to_float(load<Bf16>(row + c * 2)); break;
    }
  }
}

HWY_INLINE float dot(const float* a, const float* b, std::int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  FloatVec sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

template <class Format>
void dot_rows_packed(const Tensor& weights, std::int64_t first, std::int64_t count, const float* x,
                     const float* block_sums, float* y) {
  const std::int64_t row_bytes = weights.row_bytes();
  for (std::int64_t r = first; r < first + count; ++r) {
    y[r] = dot_packed<Format>(weights.data + r * row_bytes, weights.cols, x, block_sums);
  }
}

}  // namespace

void decode_row_target(const Tensor& weights, std::int64_t row, float* out) {
  const std::byte* at = weights.data + row * weights.row_bytes();
  switch (weights.type) {
    case TensorType::kQ4_0: decode_packed<Q4_0>(at, weights.cols, out); break;
    case TensorType::kQ4_1: decode_packed<Q4_1>(at, weights.cols, out); break;
    case TensorType::kQ8_0: decode_packed<Q8_0>(at, weights.cols, out); break;
    default: decode_plain(weights, at, out); break;
  }
}

// y[first, first + count) of one token.
void dot_rows_target(const Tensor& weights, std::int64_t first, std::int64_t count, const float* x,
                     const float* block_sums, float* y) {
  switch (weights.type) {
    case TensorType::kQ4_0: dot_rows_packed<Q4_0>(weights, first, count, x, block_sums, y); break;
    case TensorType::kQ4_1: dot_rows_packed<Q4_1>(weights, first, count, x, block_sums, y); break;
    case TensorType::kQ8_0: dot_rows_packed<Q8_0>(weights, first, count, x, block_sums, y); break;
    default: {
      std::vector<float> row(static_cast<std::size_t>(weights.cols));
      for (std::int64_t r = first; r < first + count; ++r) {
        decode_row_target(weights, r, row.data());
        y[r] = dot(row.data(), x, weights.cols);
      }
    }
  }
}

// The same for a few tokens: each row is decoded once.
void dot_rows_few_target(const Tensor& weights, std::int64_t first, std::int64_t count,
                         const float* x, std::int64_t tokens, float* y) {
  std::vector<float> row(static_cast<std::size_t>(weights.cols));
  for (std::int64_t r = first; r < first + count; ++r) {
    decode_row_target(weights, r, row.data());
    for (std::int64_t t = 0; t < tokens; ++t) {
      y[t * weights.rows + r] = dot(row.data(), x + t * weights.cols, weights.cols);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <dnnl.h>
#include <omp.h>

namespace icefield {

HWY_EXPORT(decode_row_target);
HWY_EXPORT(dot_rows_target);
HWY_EXPORT(dot_rows_few_target);

namespace {

constexpr std::int64_t kDotRows = 64;   // rows of one piece of work for few tokens
constexpr std::int64_t kTileRows = 96;  // for many: a tile of decoded weights stays in the L2 cache

// Pieces of `grain` rows of all products, in order.
struct Piece {
  const Product* product;
  std::int64_t first;
  std::int64_t count;
};

Piece piece_at(std::span<const Product> products, std::int64_t grain, std::int64_t index) {
  for (const Product& product : products) {
    const std::int64_t pieces = ceil_div(product.weights->rows, grain);
    if (index < pieces) {
      const std::int64_t first = index * grain;
      return {&product, first, std::min(grain, product.weights->rows - first)};
    }
    index -= pieces;
  }
  internal::check_failed("piece exists", __FILE__, __LINE__);
}

std::int64_t piece_count(std::span<const Product> products, std::int64_t grain) {
  std::int64_t count = 0;
  for (const Product& product : products) count += ceil_div(product.weights->rows, grain);
  return count;
}

// Decodes rows [first, first + count) into tile [cols, count].
void decode_tile(const Piece& piece, std::vector<float>& row, std::vector<float>& tile) {
  const Tensor& weights = *piece.product->weights;
  row.resize(static_cast<std::size_t>(weights.cols));
  tile.resize(static_cast<std::size_t>(weights.cols * piece.count));
  for (std::int64_t r = 0; r < piece.count; ++r) {
    decode_row(weights, piece.first + r, row.data());
    for (std::int64_t c = 0; c < weights.cols; ++c) {
      tile[static_cast<std::size_t>(c * piece.count + r)] = row[static_cast<std::size_t>(c)];
    }
  }
}

void multiply_tile(const Piece& piece, const float* x, std::int64_t tokens) {
  thread_local std::vector<float> row;
  thread_local std::vector<float> tile;
  decode_tile(piece, row, tile);
  const Tensor& weights = *piece.product->weights;
  sgemm({.m = tokens,
         .n = piece.count,
         .k = weights.cols,
         .a = x,
         .lda = weights.cols,
         .b = tile.data(),
         .ldb = piece.count,
         .c = piece.product->y + piece.first,
         .ldc = weights.rows});
}

}  // namespace

void decode_row(const Tensor& weights, std::int64_t row, float* out) {
  HWY_DYNAMIC_DISPATCH(decode_row_target)(weights, row, out);
}

void multiply(std::span<const Product> products, const float* x, std::int64_t tokens,
              ThreadPool& pool) {
  const std::int64_t cols = products[0].weights->cols;
  for (const Product& product : products) ICE_CHECK(product.weights->cols == cols);
  if (tokens > kFewTokens) {
    pool.parallel_for(piece_count(products, kTileRows), [&](std::int64_t index) {
      multiply_tile(piece_at(products, kTileRows, index), x, tokens);
    });
    return;
  }
  constexpr std::int64_t kBlock = 32;
  std::vector<float> block_sums;
  for (std::int64_t c = 0; tokens == 1 && c < cols; c += kBlock) {
    float sum = 0;
    for (std::int64_t i = c; i < std::min(c + kBlock, cols); ++i) sum += x[i];
    block_sums.push_back(sum);
  }
  pool.parallel_for(piece_count(products, kDotRows), [&](std::int64_t index) {
    const Piece piece = piece_at(products, kDotRows, index);
    if (tokens == 1) {
      HWY_DYNAMIC_DISPATCH(dot_rows_target)
      (*piece.product->weights, piece.first, piece.count, x, block_sums.data(), piece.product->y);
    } else {
      HWY_DYNAMIC_DISPATCH(dot_rows_few_target)
      (*piece.product->weights, piece.first, piece.count, x, tokens, piece.product->y);
    }
  });
}

void sgemm(const Sgemm& args) {
  // oneDNN would start OpenMP threads of its own; ours are the thread pool's.
  thread_local const bool one_thread = [] {
    omp_set_num_threads(1);
    return true;
  }();
  ICE_CHECK(one_thread);
  const dnnl_status_t status =
      dnnl_sgemm('N', args.b_transposed ? 'T' : 'N', args.m, args.n, args.k, 1.0f, args.a, args.lda,
                 args.b, args.ldb, args.accumulate ? 1.0f : 0.0f, args.c, args.ldc);
  ICE_CHECK(status == dnnl_success);
}

}  // namespace icefield
#endif
