// engine/dense_attention.h — full causal attention of many new tokens at once, for prefill.
#pragma once

#include <cstdint>

#include "common/thread_pool.h"
#include "worker/context.h"

namespace icefield {

struct DenseAttentionArgs {
  const Context* context = nullptr;  // dense; holds the rows of the new tokens already
  std::int32_t layer = 0;
  std::int64_t first_position = 0;  // of the new tokens
  std::int64_t token_count = 0;
  std::int32_t kv_heads = 0;
  std::int32_t query_group = 0;  // query heads per KV head
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  float softmax_scale = 0;
  const float* q = nullptr;  // [tokens, query heads, d_k]
  float* out = nullptr;      // [tokens, query heads, d_v]
};

// Blocked online softmax in fp32 over bf16 rows. Tiles are fixed, so the result does not depend on
// the number of threads.
void dense_attention(const DenseAttentionArgs& args, ThreadPool& pool);

}  // namespace icefield
