#include "engine/decoder.h"

#include <algorithm>

#include "engine/dense_attention.h"
#include "engine/matmul.h"

namespace icefield {
namespace {

std::vector<float> decoded(const Tensor& vector) {
  std::vector<float> values(static_cast<std::size_t>(vector.cols));
  decode_row(vector, 0, values.data());
  return values;
}

void fit(std::vector<float>& values, std::int64_t count) {
  values.resize(static_cast<std::size_t>(count));
}

}  // namespace

Decoder::Decoder(const Model& model, Worker& worker, ThreadPool& threads)
    : model_(model), worker_(worker), threads_(threads) {
  for (const LayerWeights& layer : model.layers()) {
    norms_.push_back(decoded(layer.attention_norm));
    norms_.push_back(decoded(layer.ffn_norm));
  }
  norms_.push_back(decoded(model.output_norm()));
}

// Rows in pieces that are worth a thread's while.
template <class Body>
void Decoder::for_each_row(std::int64_t rows, Body body) {
  constexpr std::int64_t kGrain = 16;
  threads_.parallel_for(ceil_div(rows, kGrain), [&](std::int64_t piece) {
    for (std::int64_t row = piece * kGrain; row < std::min(rows, (piece + 1) * kGrain); ++row) {
      body(row);
    }
  });
}

Status Decoder::check(const Context& context, std::span<const TokenId> tokens) const {
  const ModelConfig& config = model_.config();
  const std::int64_t end = context.token_count() + static_cast<std::int64_t>(tokens.size());
  if (tokens.empty()) return Status(Code::kInvalidArgument, "no tokens to compute");
  if (end > config.max_positions) {
    return Status(Code::kInvalidArgument, std::to_string(end) + " tokens, but the model has " +
                                              std::to_string(config.max_positions) +
                                              " positions; shorten the text");
  }
  for (const TokenId token : tokens) {
    if (static_cast<std::int64_t>(token) >= config.vocabulary) {
      return Status(Code::kInvalidArgument, "token " + std::to_string(token) +
                                                " is not in the vocabulary of " +
                                                std::to_string(config.vocabulary));
    }
  }
  return Status();
}

Status Decoder::prefill(Context& context, std::span<const TokenId> tokens,
                        const std::function<void(std::int64_t)>& progress) {
  ICE_TRY(check(context, tokens));
  ICE_CHECK(context.dense());
  std::int64_t done = 0;
  while (!tokens.empty()) {
    const std::size_t count = std::min<std::size_t>(kChunkTokens, tokens.size());
    ICE_TRY(run_step(context, tokens.first(count), {}, nullptr));
    tokens = tokens.subspan(count);
    done += static_cast<std::int64_t>(count);
    if (progress) progress(done);
  }
  return Status();
}

Result<std::span<const float>> Decoder::forward(Context& context, std::span<const TokenId> tokens,
                                                const ForwardOptions& options) {
  ICE_TRY(check(context, tokens));
  if (options.group_tokens < 1 || options.group_tokens > kMaxQueryTokens) {
    return Status(Code::kInvalidArgument, "groups of " + std::to_string(options.group_tokens) +
                                              " tokens, expected 1 to " +
                                              std::to_string(kMaxQueryTokens));
  }
  const std::int64_t hidden = model_.config().hidden;
  const std::int64_t vocabulary = model_.config().vocabulary;
  const auto count = static_cast<std::int64_t>(tokens.size());
  const bool all = options.logits == Logits::kAll;
  fit(logits_, vocabulary * (all ? count : 1));
  for (std::int64_t first = 0; first < count; first += options.group_tokens) {
    const std::int64_t group = std::min<std::int64_t>(options.group_tokens, count - first);
    ICE_TRY(run_step(
        context, tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(group)),
        options.attend, options.observer));
    const bool last = first + group == count;
    if (options.logits == Logits::kNone || (!all && !last)) continue;
    // All rows of the group, or the last one only.
    const std::int64_t row = all ? 0 : group - 1;
    const std::int64_t rows = group - row;
    fit(normed_, rows * hidden);
    for (std::int64_t r = 0; r < rows; ++r) {
      rms_norm(x_.data() + (row + r) * hidden, norms_.back().data(), hidden,
               model_.config().norm_epsilon, normed_.data() + r * hidden);
    }
    const Product product{.weights = &model_.head(),
                          .y = logits_.data() + (all ? first * vocabulary : 0)};
    multiply(std::span(&product, 1), normed_.data(), rows, threads_);
  }
  if (options.logits == Logits::kNone) return std::span<const float>();
  return std::span<const float>(logits_);
}

StepReport Decoder::take_report() { return std::exchange(report_, {}); }

Status Decoder::run_step(Context& context, std::span<const TokenId> tokens,
                         const AttendOptions& attend, AttentionObserver* observer) {
  const ModelConfig& config = model_.config();
  const auto count = static_cast<std::int64_t>(tokens.size());
  std::vector<StepItem> items;
  items.push_back({.context = &context,
                   .tokens = std::vector<std::uint32_t>(tokens.begin(), tokens.end()),
                   .options = attend});
  ICE_TRY(Step step, worker_.begin_step(std::move(items)));
  fit(x_, count * config.hidden);
  rope_.resize(tokens.size());
  for_each_row(count, [&](std::int64_t t) {
    const auto at = static_cast<std::size_t>(t);
    decode_row(model_.embedding(), tokens[at], x_.data() + t * config.hidden);
    rope_[at] = rope_row(context.token_count() + t, config.kv.d_k, config.rope_base);
  });
  for (std::int32_t layer = 0; layer < config.kv.layer_count; ++layer) {
    ICE_TRY(run_layer(layer, context, step, count, observer));
  }
  ICE_TRY(const StepReport done, step.finish());
  report_.add(done);
  return Status();
}

// x_ += weights · x.
void Decoder::add_product(const Tensor& weights, const std::vector<float>& x, std::int64_t tokens) {
  fit(product_, tokens * weights.rows);
  const Product product{.weights = &weights, .y = product_.data()};
  multiply(std::span(&product, 1), x.data(), tokens, threads_);
  for_each_row(tokens, [&](std::int64_t t) {
    add(x_.data() + t * weights.rows, product_.data() + t * weights.rows, weights.rows);
  });
}

Status Decoder::run_layer(std::int32_t layer, Context& context, Step& step, std::int64_t tokens,
                          AttentionObserver* observer) {
  const ModelConfig& config = model_.config();
  const LayerWeights& weights = model_.layers()[static_cast<std::size_t>(layer)];
  const std::int64_t hidden = config.hidden;
  const auto norm = [&](std::size_t which) {
    fit(normed_, tokens * hidden);
    for_each_row(tokens, [&](std::int64_t t) {
      rms_norm(x_.data() + t * hidden, norms_[2 * static_cast<std::size_t>(layer) + which].data(),
               hidden, config.norm_epsilon, normed_.data() + t * hidden);
    });
  };
  norm(0);
  fit(q_, tokens * weights.q.rows);
  fit(k_, tokens * weights.k.rows);
  fit(v_, tokens * weights.v.rows);
  const Product qkv[] = {{&weights.q, q_.data()}, {&weights.k, k_.data()}, {&weights.v, v_.data()}};
  multiply(qkv, normed_.data(), tokens, threads_);
  for_each_row(tokens, [&](std::int64_t t) {
    const RopeRow& row = rope_[static_cast<std::size_t>(t)];
    apply_rope(row, config.query_heads, config.kv.d_k, q_.data() + t * weights.q.rows);
    apply_rope(row, config.kv.kv_head_count, config.kv.d_k, k_.data() + t * weights.k.rows);
  });
  step.append(layer, k_.data(), v_.data());
  if (observer != nullptr) {
    ICE_TRY(observer->on_attention(layer, q_.data(), k_.data(), v_.data()));
  }
  fit(attended_, tokens * weights.q.rows);
  if (tokens > kMaxQueryTokens) {
    dense_attention({.context = &context,
                     .layer = layer,
                     .first_position = context.token_count(),
                     .token_count = tokens,
                     .kv_heads = config.kv.kv_head_count,
                     .query_group = config.query_group(),
                     .d_k = config.kv.d_k,
                     .d_v = config.kv.d_v,
                     .softmax_scale = model_.softmax_scale(),
                     .q = q_.data(),
                     .out = attended_.data()},
                    threads_);
  } else {
    ICE_TRY(step.attend(layer, q_.data(), attended_.data()));
  }
  add_product(weights.output, attended_, tokens);

  norm(1);
  fit(gate_, tokens * config.ffn);
  fit(up_, tokens * config.ffn);
  const Product gate_up[] = {{&weights.gate, gate_.data()}, {&weights.up, up_.data()}};
  multiply(gate_up, normed_.data(), tokens, threads_);
  for_each_row(tokens, [&](std::int64_t t) {
    silu_multiply(gate_.data() + t * config.ffn, up_.data() + t * config.ffn, config.ffn);
  });
  add_product(weights.down, gate_, tokens);
  return Status();
}

}  // namespace icefield
