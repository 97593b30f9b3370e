#include "engine/chat.h"

#include <string>

namespace icefield {
namespace {

// Appends control tokens by name and text in the order given: a name is written as {"<|x|>"}.
class FrameBuilder {
 public:
  explicit FrameBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  Status control(std::vector<TokenId>& out, std::string_view name) const {
    ICE_TRY(const TokenId token, tokenizer_.token(name));
    out.push_back(token);
    return Status();
  }
  Status text(std::vector<TokenId>& out, std::string_view text) const {
    ICE_TRY(const std::vector<TokenId> tokens, tokenizer_.encode(text));
    out.insert(out.end(), tokens.begin(), tokens.end());
    return Status();
  }

 private:
  const Tokenizer& tokenizer_;
};

// The system text that the template itself puts first, between its marker and "<|im_end|>".
std::string default_system(std::string_view chat_template) {
  constexpr std::string_view kBegin = "<|im_start|>system\n";
  const std::size_t begin = chat_template.find(kBegin);
  if (begin == std::string_view::npos) return "";
  const std::string_view rest = chat_template.substr(begin + kBegin.size());
  const std::size_t end = rest.find("<|im_end|>");
  return end == std::string_view::npos ? "" : std::string(rest.substr(0, end));
}

Result<ChatFrame> chatml(std::string_view chat_template, const FrameBuilder& build) {
  ChatFrame frame;
  const std::string system = default_system(chat_template);
  if (!system.empty()) {
    ICE_TRY(build.control(frame.before, "<|im_start|>"));
    ICE_TRY(build.text(frame.before, "system\n" + system));
    ICE_TRY(build.control(frame.before, "<|im_end|>"));
    ICE_TRY(build.text(frame.before, "\n"));
  }
  ICE_TRY(build.control(frame.before, "<|im_start|>"));
  ICE_TRY(build.text(frame.before, "user\n"));
  ICE_TRY(build.control(frame.after, "<|im_end|>"));
  ICE_TRY(build.text(frame.after, "\n"));
  ICE_TRY(build.control(frame.after, "<|im_start|>"));
  ICE_TRY(build.text(frame.after, "assistant\n"));
  ICE_TRY(build.control(frame.stop, "<|im_end|>"));
  return frame;
}

Result<ChatFrame> llama3(const FrameBuilder& build) {
  ChatFrame frame;
  ICE_TRY(build.control(frame.before, "<|begin_of_text|>"));
  ICE_TRY(build.control(frame.before, "<|start_header_id|>"));
  ICE_TRY(build.text(frame.before, "user"));
  ICE_TRY(build.control(frame.before, "<|end_header_id|>"));
  ICE_TRY(build.text(frame.before, "\n\n"));
  ICE_TRY(build.control(frame.after, "<|eot_id|>"));
  ICE_TRY(build.control(frame.after, "<|start_header_id|>"));
  ICE_TRY(build.text(frame.after, "assistant"));
  ICE_TRY(build.control(frame.after, "<|end_header_id|>"));
  ICE_TRY(build.text(frame.after, "\n\n"));
  ICE_TRY(build.control(frame.stop, "<|eot_id|>"));
  return frame;
}

}  // namespace

Result<ChatFrame> chat_frame(const GgufFile& file, const Tokenizer& tokenizer) {
  if (!file.has("tokenizer.chat_template")) {
    return Status(Code::kFailedPrecondition,
                  "model " + file.path() + " has no chat template; use --prompt=raw");
  }
  ICE_TRY(const std::string_view text, file.text("tokenizer.chat_template"));
  const FrameBuilder build(tokenizer);
  if (text.find("<|im_start|>") != std::string_view::npos) return chatml(text, build);
  if (text.find("<|start_header_id|>") != std::string_view::npos) return llama3(build);
  return Status(Code::kUnimplemented,
                "model " + file.path() +
                    ": chat template of an unknown family (ChatML and Llama 3 "
                    "are known); use --prompt=raw");
}

}  // namespace icefield
