// bench/support/method.h — one way to find and attend the tokens that matter, as a benchmark
// compares it with others.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/support/key_set.h"
#include "kernels/attend.h"

namespace icefield {

// One decoding step of a group of query rows.
struct MethodQuery {
  const float* q = nullptr;          // [group, d_k]
  const float* exact_lse = nullptr;  // [group] LSE of the logits of what is attended exactly
  std::int32_t budget = 0;           // tokens to select
};

// What the last step moved.
struct MethodCost {
  std::int64_t pages = 0;             // pieces of K/V, each contiguous
  std::int64_t page_bytes = 0;        // all together
  std::int64_t index_bytes_read = 0;  // by select() and by the tail in attend()
  std::int64_t rows_ranked = 0;       // by codes; 0 where there are none
};

// Works on one KeySet, which outlives it. select() and attend() are what is timed: after the first
// call with a budget they allocate nothing that matters.
class Method {
 public:
  virtual ~Method() = default;

  // Everything from rows in token order to the first query; timed as well. May be repeated.
  virtual void build() = 0;
  virtual void select(const MethodQuery& query) = 0;
  // Of what select() chose and, where the method has one, the tail of all other indexed tokens.
  virtual void attend(const MethodQuery& query, Partial result) = 0;

  virtual std::vector<std::int32_t> selected() const = 0;  // tokens, in any order
  virtual MethodCost cost() const = 0;
  virtual std::int64_t index_bytes() const = 0;  // kept beside the K/V
};

}  // namespace icefield
