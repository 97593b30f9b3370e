// bench/support/key_set.h — keys, values and queries of one (layer, KV head): what a benchmark of
// indexes works on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/float_bits.h"

namespace icefield {

struct KeySet {
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::int32_t group = 0;  // query rows of a step, which share a selection
  float beta = 0;          // softmax scale

  // Tokens [first_indexed, end_indexed) are indexed; what is before (sink) and behind (window) is
  // attended exactly by every method.
  std::int32_t first_indexed = 0;
  std::int32_t end_indexed = 0;
  std::vector<Bf16> rows;      // [tokens, d_k + d_v] K then V, in token order
  std::vector<float> queries;  // [steps, group, d_k]
  // What a step attends to beyond these rows, exactly, with every method; both empty: nothing.
  std::vector<float> own_lse;  // [steps, group] LSE of the logits
  std::vector<float> own_out;  // [steps, group, d_v] the values under softmax

  std::int32_t width() const { return d_k + d_v; }
  std::int32_t tokens() const { return static_cast<std::int32_t>(rows.size()) / width(); }
  std::int32_t indexed() const { return end_indexed - first_indexed; }
  std::int32_t steps() const { return static_cast<std::int32_t>(queries.size()) / (group * d_k); }
  const Bf16* row(std::int32_t token) const {
    return rows.data() + static_cast<std::int64_t>(token) * width();
  }
  const float* query(std::int32_t step) const {
    return queries.data() + static_cast<std::int64_t>(step) * group * d_k;
  }
};

}  // namespace icefield
