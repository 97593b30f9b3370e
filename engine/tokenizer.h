// engine/tokenizer.h — byte-level BPE with the model's own vocabulary, merges and pre-tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "engine/gguf.h"

namespace icefield {

using TokenId = std::uint32_t;

// Threads  Const after load(); encode() and decode() are safe from any thread.
class Tokenizer {
 public:
  // kUnimplemented for another tokenizer model than byte-level BPE, or an unknown pre-tokenizer.
  static Result<std::unique_ptr<Tokenizer>> load(const GgufFile& file);
  ~Tokenizer();

  // Text to ids. Control tokens ("<|im_end|>") are never made from text: a document cannot
  // pretend to be a prompt. Bytes for which the vocabulary has no token (rare control characters)
  // are left out, as the trained tokenizer does. kInvalidArgument when the text is not UTF-8, with
  // the first bad byte.
  Result<std::vector<TokenId>> encode(std::string_view text) const;

  // Ids to text; control tokens give nothing.
  std::string decode(std::span<const TokenId> tokens) const;

  // The id of a token by its exact name, control tokens too. kNotFound when there is none.
  Result<TokenId> token(std::string_view name) const;
  // What a raw prompt begins with, where the model was trained so: the file says it, or it is a
  // Llama 3. encode() does not put it there.
  std::optional<TokenId> begin_token() const;
  bool is_control(TokenId token) const;
  std::int64_t size() const;  // of the vocabulary

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace icefield
