#include "engine/model.h"

#include <algorithm>
#include <cmath>

namespace icefield {

Result<std::unique_ptr<Model>> Model::load(const std::string& path) {
  std::unique_ptr<Model> model(new Model());
  ICE_TRY(model->file_, GgufFile::open(path));
  ICE_TRY(model->read_config());
  ICE_TRY(model->read_weights());
  ICE_TRY(model->tokenizer_, Tokenizer::load(*model->file_));
  if (model->tokenizer_->size() != model->config_.vocabulary) {
    return Status(Code::kInvalidArgument,
                  "model " + path + ": " + std::to_string(model->tokenizer_->size()) +
                      " tokens for a vocabulary of " + std::to_string(model->config_.vocabulary));
  }
  return model;
}

// What would give NaN for every token is refused here.
Status Model::read_numbers() {
  ICE_TRY(const double epsilon, file_->number("llama.attention.layer_norm_rms_epsilon"));
  if (!(epsilon >= 0 && epsilon < 1)) {
    return Status(Code::kInvalidArgument, "model " + file_->path() + ": a norm epsilon of " +
                                              std::to_string(epsilon) + " in its metadata");
  }
  config_.norm_epsilon = static_cast<float>(epsilon);
  config_.rope_base = 10000;
  if (file_->has("llama.rope.freq_base")) {
    ICE_TRY(config_.rope_base, file_->number("llama.rope.freq_base"));
  }
  if (!(config_.rope_base > 0 && std::isfinite(config_.rope_base))) {
    return Status(Code::kInvalidArgument, "model " + file_->path() + ": a RoPE base of " +
                                              std::to_string(config_.rope_base) +
                                              " in its metadata");
  }
  return Status();
}

Status Model::read_config() {
  const auto refuse = [this](const std::string& what) {
    return Status(Code::kUnimplemented, "model " + file_->path() + ": " + what);
  };
  ICE_TRY(const std::string_view architecture, file_->text("general.architecture"));
  if (architecture != "llama") {
    return refuse("architecture \"" + std::string(architecture) +
                  "\"; only \"llama\" is supported");
  }
  if (file_->has("llama.rope.scaling.type")) {
    ICE_TRY(const std::string_view scaling, file_->text("llama.rope.scaling.type"));
    if (scaling != "none") {
      return refuse("RoPE scaling \"" + std::string(scaling) + "\" is not supported");
    }
  }
  if (file_->has("general.name")) {
    ICE_TRY(const std::string_view name, file_->text("general.name"));
    config_.name = name;
  }
  ICE_TRY(const std::int64_t layers, file_->integer("llama.block_count"));
  ICE_TRY(const std::int64_t heads, file_->integer("llama.attention.head_count"));
  ICE_TRY(const std::int64_t kv_heads, file_->integer("llama.attention.head_count_kv"));
  ICE_TRY(config_.hidden, file_->integer("llama.embedding_length"));
  ICE_TRY(config_.ffn, file_->integer("llama.feed_forward_length"));
  ICE_TRY(config_.max_positions, file_->integer("llama.context_length"));
  ICE_TRY(read_numbers());
  constexpr std::int64_t kMost = 1 << 20;
  for (const std::int64_t value :
       {layers, heads, kv_heads, config_.hidden, config_.ffn, config_.max_positions}) {
    if (value < 1 || value > kMost) {
      return Status(Code::kInvalidArgument, "model " + file_->path() + ": a size of " +
                                                std::to_string(value) + " in its metadata");
    }
  }
  if (heads % kv_heads != 0 || config_.hidden % heads != 0) {
    return Status(Code::kInvalidArgument, "model " + file_->path() + ": " + std::to_string(heads) +
                                              " heads over " + std::to_string(kv_heads) +
                                              " KV heads and a width of " +
                                              std::to_string(config_.hidden) + " do not divide");
  }
  std::int64_t head_dim = config_.hidden / heads;
  if (file_->has("llama.attention.key_length")) {
    ICE_TRY(head_dim, file_->integer("llama.attention.key_length"));
  }
  if (file_->has("llama.rope.dimension_count")) {
    ICE_TRY(const std::int64_t rotated, file_->integer("llama.rope.dimension_count"));
    if (rotated != head_dim) return refuse("RoPE over part of the head dimension");
  }
  config_.query_heads = static_cast<std::int32_t>(heads);
  config_.kv = {.layer_count = static_cast<std::int32_t>(layers),
                .kv_head_count = static_cast<std::int32_t>(kv_heads),
                .d_k = static_cast<std::int32_t>(head_dim),
                .d_v = static_cast<std::int32_t>(head_dim)};
  ICE_TRY(validate(config_.kv).with_context("model " + file_->path()));
  ICE_TRY(const auto tokens, file_->texts("tokenizer.ggml.tokens"));
  config_.vocabulary = static_cast<std::int64_t>(tokens.size());
  return Status();
}

// Biases, norms of queries, experts: a tensor that is not computed with would be a wrong answer.
Status Model::check_tensors() const {
  constexpr std::string_view kLayer[] = {"attn_norm", "attn_q",      "attn_k",
                                         "attn_v",    "attn_output", "ffn_norm",
                                         "ffn_gate",  "ffn_up",      "ffn_down"};
  for (const std::string_view name : file_->tensor_names()) {
    bool known =
        name == "token_embd.weight" || name == "output_norm.weight" || name == "output.weight";
    if (name.starts_with("blk.") && name.ends_with(".weight")) {
      const std::size_t dot = std::min(name.find('.', 4), name.size() - 7);
      const std::string_view part = name.substr(dot + 1, name.size() - 7 - (dot + 1));
      known = std::find(std::begin(kLayer), std::end(kLayer), part) != std::end(kLayer);
    }
    if (known) continue;
    return Status(Code::kUnimplemented, "model " + file_->path() + ": tensor \"" +
                                            std::string(name) + "\" is not supported");
  }
  return Status();
}

Status Model::read_weights() {
  ICE_TRY(check_tensors());
  const std::int64_t hidden = config_.hidden;
  const std::int64_t q_rows = static_cast<std::int64_t>(config_.query_heads) * config_.kv.d_k;
  const std::int64_t kv_rows = static_cast<std::int64_t>(config_.kv.kv_head_count) * config_.kv.d_k;
  ICE_TRY(embedding_, file_->tensor("token_embd.weight", config_.vocabulary, hidden));
  ICE_TRY(output_norm_, file_->tensor("output_norm.weight", 1, hidden));
  head_ = embedding_;
  if (file_->has_tensor("output.weight")) {
    ICE_TRY(head_, file_->tensor("output.weight", config_.vocabulary, hidden));
  }
  for (std::int32_t i = 0; i < config_.kv.layer_count; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    LayerWeights layer;
    ICE_TRY(layer.attention_norm, file_->tensor(prefix + "attn_norm.weight", 1, hidden));
    ICE_TRY(layer.q, file_->tensor(prefix + "attn_q.weight", q_rows, hidden));
    ICE_TRY(layer.k, file_->tensor(prefix + "attn_k.weight", kv_rows, hidden));
    ICE_TRY(layer.v, file_->tensor(prefix + "attn_v.weight", kv_rows, hidden));
    ICE_TRY(layer.output, file_->tensor(prefix + "attn_output.weight", hidden, q_rows));
    ICE_TRY(layer.ffn_norm, file_->tensor(prefix + "ffn_norm.weight", 1, hidden));
    ICE_TRY(layer.gate, file_->tensor(prefix + "ffn_gate.weight", config_.ffn, hidden));
    ICE_TRY(layer.up, file_->tensor(prefix + "ffn_up.weight", config_.ffn, hidden));
    ICE_TRY(layer.down, file_->tensor(prefix + "ffn_down.weight", hidden, config_.ffn));
    layers_.push_back(layer);
  }
  return Status();
}

float Model::softmax_scale() const { return 1.0f / std::sqrt(static_cast<float>(config_.kv.d_k)); }

ModelFingerprint Model::fingerprint() const {
  Sha256 sha;
  sha.update(file_->bytes());
  ModelFingerprint fingerprint{.model_name = config_.name,
                               .weight_revision = to_hex(sha.finish()),
                               .sink_tokens = kSinkTokens,
                               .layout_version = kLayoutVersion};
  for (std::int32_t i = 0; i < config_.kv.layer_count; ++i) {
    fingerprint.layers.push_back({.kv_heads = config_.kv.kv_head_count,
                                  .d_k = config_.kv.d_k,
                                  .d_v = config_.kv.d_v,
                                  .softmax_scale = static_cast<double>(softmax_scale()),
                                  .rope_base = config_.rope_base});
  }
  return fingerprint;
}

std::vector<TokenId> Model::end_tokens() const {
  std::vector<TokenId> tokens;
  const Result<std::int64_t> end = file_->integer("tokenizer.ggml.eos_token_id");
  if (end.has_value()) tokens.push_back(static_cast<TokenId>(*end));
  for (const char* name : {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>"}) {
    const Result<TokenId> token = tokenizer_->token(name);
    if (token.has_value()) tokens.push_back(*token);
  }
  return tokens;
}

}  // namespace icefield
