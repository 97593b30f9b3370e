// kernels/slope.h — the second-order tail: values follow logits inside clusters, so the tail's mean
// values are moved along the slope of the context (docs/formats/attention.md step 7).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/head_index.h"

namespace icefield {

// How values follow keys inside the clusters of a context, of one (layer, KV head).
struct SlopeView {
  const float* gamma = nullptr;        // [d_k] variance shape
  const std::int8_t* slope = nullptr;  // [d_k, d_v]
  const float* slope_scale = nullptr;  // [d_k]
};

struct AddSlopeArgs {
  HeadShape shape;
  SlopeView slope;
  std::int32_t row_count = 0;    // G
  const float* q = nullptr;      // [G, d_k]
  const float* drift = nullptr;  // [G] of the merged result
  float* out = nullptr;          // [G, d_v] in and out
};

// out += drift β Mᵀq / 2w, w = (β²/2) Σ_j q_j² γ_j; nothing where w is 0.
void add_slope_reference(const AddSlopeArgs& args);
void add_slope_cpu(const AddSlopeArgs& args);

// The mean of the slopes and variance shapes of a segment table, weighted with the rows of the
// segments that carry one; empty where none does. Allocates: for when a table is made.
struct HeadSlope {
  std::vector<float> gamma, scale;
  std::vector<std::int8_t> slope;

  bool empty() const { return slope.empty(); }
  SlopeView view() const { return {gamma.data(), slope.data(), scale.data()}; }
  std::int64_t bytes() const {
    return static_cast<std::int64_t>(slope.size() + 4 * (gamma.size() + scale.size()));
  }
};
HeadSlope mean_slope(std::span<const HeadIndex> segments);

}  // namespace icefield
