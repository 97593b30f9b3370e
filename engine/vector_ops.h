// engine/vector_ops.h — the element-wise parts of a decoder layer, on one row at a time.
#pragma once

#include <cstdint>
#include <vector>

namespace icefield {

// out = x / rms(x) · weight, rms over all of x [count].
void rms_norm(const float* x, const float* weight, std::int64_t count, float epsilon, float* out);

// gate = silu(gate) · up, in place.
void silu_multiply(float* gate, const float* up, std::int64_t count);

// x += y.
void add(float* x, const float* y, std::int64_t count);

// Cosines and sines of one position: [d / 2] pairs, angles in fp32 as trained models have them.
struct RopeRow {
  std::vector<float> cosine, sine;
};
RopeRow rope_row(std::int64_t position, std::int32_t d, double base);

// Rotates the pairs (2i, 2i + 1) of each of `heads` vectors x [heads, d].
void apply_rope(const RopeRow& row, std::int32_t heads, std::int32_t d, float* x);

}  // namespace icefield
