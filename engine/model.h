// engine/model.h — weights and hyper-parameters of a Llama-like decoder, from one GGUF file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/fingerprint.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"
#include "proto/layout.h"

namespace icefield {

struct ModelConfig {
  std::string name;
  std::int64_t hidden = 0;  // width of the residual stream
  std::int64_t ffn = 0;     // width of the feed-forward layer
  std::int32_t query_heads = 0;
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;  // trained context length
  double rope_base = 0;
  float norm_epsilon = 0;
  KvShape kv;

  std::int32_t query_group() const { return query_heads / kv.kv_head_count; }
};

struct LayerWeights {
  Tensor attention_norm;  // [1, hidden]
  Tensor q, k, v;         // [heads × head_dim, hidden], rows permuted for interleaved RoPE
  Tensor output;          // [hidden, query_heads × head_dim]
  Tensor ffn_norm;        // [1, hidden]
  Tensor gate, up;        // [ffn, hidden]
  Tensor down;            // [hidden, ffn]
};

// Ownership  Owns the mapped file and the tokenizer.
// Threads    Const after load().
// Errors     load: kInvalidArgument for a missing, truncated or foreign file or a tensor of the
//            wrong shape; kUnimplemented for another architecture, a RoPE scaling, biases or tensor
//            types that the engine does not have. The message names the file and what to do.
class Model {
 public:
  static Result<std::unique_ptr<Model>> load(const std::string& path);

  const GgufFile& file() const { return *file_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const Tensor& embedding() const { return embedding_; }      // [vocabulary, hidden]
  const Tensor& output_norm() const { return output_norm_; }  // [1, hidden]
  const Tensor& head() const { return head_; }                // [vocabulary, hidden]; may be tied

  float softmax_scale() const;
  // Hashes the whole file for the weight revision.
  ModelFingerprint fingerprint() const;
  // Tokens that end a generation.
  std::vector<TokenId> end_tokens() const;

 private:
  Model() = default;
  Status read_numbers();
  Status read_config();
  Status check_tensors() const;
  Status read_weights();

  std::unique_ptr<GgufFile> file_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  Tensor embedding_, output_norm_, head_;
};

}  // namespace icefield
