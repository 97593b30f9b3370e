// engine/decoder.h — a minimal Llama decoder: tokens in, logits out, K/V in a worker's context.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "common/thread_pool.h"
#include "engine/model.h"
#include "engine/vector_ops.h"
#include "worker/worker.h"

namespace icefield {

// Of which tokens of a call the product with the vocabulary is wanted.
enum class Logits : std::uint8_t { kNone, kLast, kAll };

// Sees what every layer attends, for measurements. The arrays are [tokens, heads, d].
class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;
  // q, k (post-RoPE) and v of a layer; the context holds the new rows already.
  virtual Status on_attention(std::int32_t layer, const float* q, const float* k,
                              const float* v) = 0;
};

// Threads  One call at a time. Results do not depend on the size of the thread pool.
// Errors   Those of the worker; kInvalidArgument when a context would grow beyond the positions
//          that the model was trained for, or for a token that is not in the vocabulary.
class Decoder {
 public:
  // Tokens that prefill computes together.
  static constexpr std::int64_t kChunkTokens = 512;

  Decoder(const Model& model, Worker& worker, ThreadPool& threads);

  const Model& model() const { return model_; }
  Worker& worker() { return worker_; }

  // Computes `tokens` with dense attention into a dense context. `progress(done)` is called after
  // each chunk.
  Status prefill(Context& context, std::span<const TokenId> tokens,
                 const std::function<void(std::int64_t)>& progress = {});

  // Computes `tokens` into any context; those of a group of `group_tokens` share a selection. The
  // logits that are wanted, of the last token [vocabulary] or of all of them [tokens, vocabulary],
  // stay valid until the next call.
  struct ForwardOptions {
    AttendOptions attend;
    std::int32_t group_tokens = 1;  // 1 to kMaxQueryTokens
    Logits logits = Logits::kLast;
    AttentionObserver* observer = nullptr;
  };
  Result<std::span<const float>> forward(Context& context, std::span<const TokenId> tokens,
                                         const ForwardOptions& options);

  // What the steps since the last call to it did.
  StepReport take_report();

 private:
  Status check(const Context& context, std::span<const TokenId> tokens) const;
  // Hidden states of `tokens` after the last layer, in x_.
  Status run_step(Context& context, std::span<const TokenId> tokens, const AttendOptions& attend,
                  AttentionObserver* observer);
  Status run_layer(std::int32_t layer, Context& context, Step& step, std::int64_t tokens,
                   AttentionObserver* observer);
  void add_product(const Tensor& weights, const std::vector<float>& x, std::int64_t tokens);
  template <class Body>
  void for_each_row(std::int64_t rows, Body body);

  const Model& model_;
  Worker& worker_;
  ThreadPool& threads_;
  std::vector<std::vector<float>>
      norms_;  // decoded: attention and ffn norm of each layer, the last

  std::vector<float> x_, normed_, q_, k_, v_, attended_, gate_, up_, product_, logits_;
  std::vector<RopeRow> rope_;
  StepReport report_;
};

}  // namespace icefield
