// tools/eval_document.h — documents with hidden facts and the questions about them.
//
// Prose of any text with 26 sentences hidden in it: ten unlike facts, ten passwords, three pairs of
// passwords that share their first word. All from one seed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/rng.h"
#include "engine/tokenizer.h"

namespace icefield {

enum class EvalTask { kFacts, kMultikey, kNeardup, kMultiquery, kPassage };
constexpr EvalTask kQuestionTasks[] = {EvalTask::kFacts, EvalTask::kMultikey, EvalTask::kNeardup,
                                       EvalTask::kMultiquery, EvalTask::kPassage};
std::string_view to_string(EvalTask task);

// A prompt and the tokens that must follow it; several in a row for kMultiquery, where each prompt
// comes after the right answer to the one before. Right when every answer token is the most likely
// one given the right ones before it, which is what greedy decoding would need.
struct EvalQuestion {
  struct Turn {
    std::vector<TokenId> prompt;
    std::vector<TokenId> answer;
  };
  EvalTask task = EvalTask::kFacts;
  std::string text;  // of the first prompt, for people
  std::vector<Turn> turns;
};

struct EvalDocument {
  std::vector<TokenId> tokens;        // exactly as many as asked for
  std::vector<TokenId> continuation;  // the prose that follows
  std::vector<EvalQuestion> questions;
};

// The sentences of a text, for make_document(): paragraphs (blank lines between them) cut at ". ",
// of 31 to 399 characters.
class EvalText {
 public:
  // kInvalidArgument when the text is shorter than 200 KB or has too few sentences.
  static Result<EvalText> parse(std::string_view text);
  const std::vector<std::string>& sentences() const { return sentences_; }

 private:
  std::vector<std::string> sentences_;
};

constexpr std::int64_t kContinuationTokens = 128;

// A document of exactly `token_count` tokens. kInvalidArgument when that is too few for the facts
// or too many for the text.
Result<EvalDocument> make_document(const EvalText& text, const Tokenizer& tokenizer,
                                   std::int64_t token_count, std::uint64_t seed);

}  // namespace icefield
