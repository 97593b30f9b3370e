// worker/step.h — one step of the engine over a batch of contexts: append, attend, commit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/layer_attention.h"

namespace icefield {

class Worker;

// append() and attend() for each layer in order, then finish(). A step that is dropped before
// finish() leaves its contexts as they were.
//
// Threads  One at a time, the worker's caller.
class Step {
 public:
  Step(Step&& other) noexcept;
  Step& operator=(Step&&) = delete;
  ~Step();

  // New tokens of all items together.
  std::int64_t token_count() const { return token_count_; }

  // Stores k [tokens, KV heads, d_k] and v [tokens, KV heads, d_v] of a layer, rounded to bf16.
  void append(std::int32_t layer, const float* k, const float* v);

  // Attention of q [tokens, query heads, d_k] over each item's context and its own tokens up to
  // each one; out [tokens, query heads, d_v]. kUnavailable below an item's coverage floor.
  Status attend(std::int32_t layer, const float* q, float* out);

  // Commits the tokens. Windows that advance seal what has left them; when that fails, the rows
  // stay in the window and are sealed by a later step.
  Result<StepReport> finish();

  // S of the last attend(): rows of `item`'s segment table for one KV head.
  std::span<const TableRow> selected(std::size_t item, std::int32_t kv_head) const;

 private:
  friend class Worker;
  Step(Worker& worker, std::vector<StepItem> items);

  std::size_t group_count() const;
  std::span<LayerGroup> set_groups(std::int32_t layer);
  Status add_to_report(std::int32_t layer);

  Worker* worker_;
  std::vector<StepItem> items_;
  std::vector<std::int64_t> first_token_;  // of each item in the packed batch
  std::int64_t token_count_ = 0;
  std::vector<bool> approximate_;  // items that attended less than everything
  StepReport report_;
};

}  // namespace icefield
