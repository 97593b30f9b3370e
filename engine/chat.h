// engine/chat.h — prompts for chat models: the family of the model's template.
#pragma once

#include <string_view>
#include <vector>

#include "engine/tokenizer.h"

namespace icefield {

// A prompt in two halves: what comes before the user's text and what comes after it, up to the
// point where the assistant speaks.
struct ChatFrame {
  std::vector<TokenId> before;
  std::vector<TokenId> after;
  std::vector<TokenId> stop;  // tokens that end an answer
};

// Recognises the family by the template's text: ChatML ("<|im_start|>") and Llama 3
// ("<|start_header_id|>"). kUnimplemented for another one, kFailedPrecondition when the model has
// none: use a raw prompt.
Result<ChatFrame> chat_frame(const GgufFile& file, const Tokenizer& tokenizer);

}  // namespace icefield
