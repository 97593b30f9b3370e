// bench/baselines/scan_kernels.h — what the baselines are made of: scans of whole vectors, softmax
// votes, the best of many scores, nearest centroids. SIMD, one thread.
//
// Each in the best layout we know for it, so that a comparison with it means something: panels of
// 64 vectors side by side, read once, in order, for all query rows; int8 through VNNI where the CPU
// has it. The plain loops of the same name in namespace `plain` say what is computed; CPUs without
// our vector instructions run them.
#pragma once

#include <cstdint>
#include <vector>

#include "common/bytes.h"
#include "common/float_bits.h"

namespace icefield {

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

constexpr std::int32_t kScanPanel = 64;  // vectors side by side
inline std::int32_t scan_padded(std::int32_t count) {
  return static_cast<std::int32_t>(round_up(count, kScanPanel));
}

// int8 × one scale per vector. Dimension 4 g + b of vector p of a panel: byte [g][p][b], plus 128.
struct Int8Vectors {
  std::int32_t count = 0;
  std::int32_t d = 0;
  AlignedVector<std::uint8_t> panels;  // [⌈count/64⌉, d/4, 64, 4]
  AlignedVector<float> scale;          // [padded], 0 in the padding

  // vectors [count, d], d a multiple of 4; rounded to nearest, the largest becomes 127.
  static Int8Vectors make(const float* vectors, std::int32_t count, std::int32_t d);
  std::int64_t bytes() const {
    return static_cast<std::int64_t>(count) * (d + static_cast<std::int32_t>(sizeof(float)));
  }
};

// bf16: dimension j of vector p of a panel at [j][p].
struct Bf16Vectors {
  std::int32_t count = 0;
  std::int32_t d = 0;
  AlignedVector<Bf16> panels;  // [⌈count/64⌉, d, 64], 0 in the padding

  // rows [count] of `stride` values each, of which the first d count.
  static Bf16Vectors make(const Bf16* rows, std::int64_t stride, std::int32_t count,
                          std::int32_t d);
  std::int64_t bytes() const {
    return static_cast<std::int64_t>(count) * d * static_cast<std::int64_t>(sizeof(Bf16));
  }
};

// Centroids for k-means. Dimension j of centroid p of a panel of 32 at [j][p].
struct Centroids {
  static constexpr std::int32_t kPanel = 32;
  std::int32_t count = 0;
  std::int32_t d = 0;
  AlignedVector<float> panels;  // [⌈count/32⌉, d, 32]
  AlignedVector<float> bias;    // [padded to 32] taken off the dot product; +inf in the padding

  static Centroids make(std::int32_t count, std::int32_t d);
  void set(std::int32_t index, const float* centroid, float bias_in);
};

struct Scored {
  float score = 0;
  std::int32_t index = 0;
};

// out[r * stride + i] = factor q_r·vector_i for i < padded count; stride at least that. The int8
// scan rounds q to int8 first, with one scale per row.
void scan(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride);
void scan(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride);

// vote[i] = Σ_r softmax_r(logits)[i], i < count: how much of the rows' attention i would get;
// logits [rows, stride], scratch [count]. exact_lse [rows]: the LSE of logits that are not among
// these and take their part; null: none. One row: any increasing function of the logit will do, so
// vote = logit.
void softmax_votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
                   const float* exact_lse, float* scratch, float* vote);

// The `wanted` (at most count) largest of score[count] into best, in no order; ties to the lower
// index. `best` has room for top_room(wanted).
void top_scores(const float* score, std::int32_t count, std::int32_t wanted, Scored* best);
constexpr std::int64_t top_room(std::int32_t wanted) {
  return 2 * static_cast<std::int64_t>(wanted) + 256;
}

// out[i] = factor q·row_i; row i starts at rows + i * stride.
void dot_rows(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d,
              const float* q, float factor, float* out);

// nearest[i] = the centroid with the largest centroid·x - bias, ties to the lower index; x at
// points + i * d. With bias ‖c‖²/2 that is the closest one, with 0 the one of the largest cosine.
void nearest_centroids(const float* points, std::int32_t count, const Centroids& centroids,
                       std::int32_t* nearest);

namespace plain {
void scan(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride);
void scan(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride);
void softmax_votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
                   const float* exact_lse, float* scratch, float* vote);
void top_scores(const float* score, std::int32_t count, std::int32_t wanted, Scored* best);
void dot_rows(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d,
              const float* q, float factor, float* out);
void nearest_centroids(const float* points, std::int32_t count, const Centroids& centroids,
                       std::int32_t* nearest);
}  // namespace plain

// Int8 values and scale of one query row, as the int8 scan rounds it.
struct RoundedQuery {
  AlignedVector<std::int8_t> values;  // [rows, d]
  std::vector<float> scale;           // [rows]
  std::vector<std::int32_t> offset;   // [rows] 128 Σ values: what the +128 of the vectors adds
};
RoundedQuery round_query(const float* q, std::int32_t rows, std::int32_t d);

}  // namespace icefield
