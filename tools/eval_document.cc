#include "tools/eval_document.h"

#include <algorithm>
#include <array>

namespace icefield {
namespace {

constexpr std::array<std::string_view, 10> kFacts = {
    "The locker of Maria Lopez at the train station opens with the number ",
    "Captain Nemo hid his treasure map in box ",
    "The telephone extension of the night porter is ",
    "The winning lottery ticket of uncle Bertrand was ",
    "The flight from Oslo to Madrid leaves from gate ",
    "The piano in the museum has the inventory label ",
    "Inspector Moreau wears the police badge ",
    "Our grandmother was born in the small house with number ",
    "The oldest turtle in the zoo carries the tag ",
    "The marathon runner from Kenya started with the bib ",
};

constexpr std::array<std::string_view, 60> kWords = {
    "amber",   "birch",   "cedar",  "delta",  "ember",  "falcon",  "garnet", "harbor", "indigo",
    "jasper",  "kestrel", "lagoon", "meadow", "nectar", "onyx",    "pepper", "quartz", "raven",
    "saffron", "timber",  "umber",  "velvet", "willow", "xenon",   "yonder", "zephyr", "anchor",
    "bramble", "copper",  "drift",  "eagle",  "forest", "glacier", "hazel",  "island", "juniper",
    "kettle",  "lemon",   "marble", "needle", "orchid", "pigeon",  "quiver", "ribbon", "silver",
    "tunnel",  "violet",  "walnut", "yellow", "zebra",  "basket",  "candle", "donkey", "engine",
    "feather", "guitar",  "hammer", "igloo",  "jacket", "ladder",
};

constexpr int kMultikeyCount = 10;
constexpr int kPairCount = 3;
constexpr int kMultiqueryCount = 2;
constexpr int kMultiqueryTurns = 3;
constexpr int kPassageCount = 5;
constexpr std::size_t kPassagePrompt = 20;
constexpr std::size_t kPassageAnswer = 8;
constexpr std::size_t kPassageLeast = 30;

// A hidden fact: its sentence is prompt + number + end.
struct Fact {
  EvalTask task;
  std::string prompt;
  std::string number;
  std::string end;
};

template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
}

std::string password_prompt(const std::string& key) {
  return "The password of " + key + " is \"" + key + "-" + key + "-";
}

std::vector<Fact> make_facts(Rng& rng) {
  const auto number = [&rng] { return std::to_string(1000 + rng.below(9000)); };
  std::vector<Fact> facts;
  for (const std::string_view prompt : kFacts) {
    facts.push_back({EvalTask::kFacts, std::string(prompt), number(), "."});
  }
  std::vector<std::string_view> words(kWords.begin(), kWords.end());
  shuffle(words, rng);
  for (int i = 0; i < kMultikeyCount; ++i) {
    const std::string key(words.back());
    words.pop_back();
    // The key twice, directly before the number: the form that the model reads best.
    facts.push_back({EvalTask::kMultikey, password_prompt(key), number(), "\"."});
  }
  for (int i = 0; i < kPairCount; ++i) {
    const std::string first(words.back());
    words.pop_back();
    for (int k = 0; k < 2; ++k) {
      const std::string key = first + "-" + std::string(words.back());
      words.pop_back();
      facts.push_back({EvalTask::kNeardup, password_prompt(key), number(), "\"."});
    }
  }
  return facts;
}

// Sentences from a seeded place on with the facts between them, long enough for `token_count`
// tokens and what follows.
struct Assembled {
  std::string text;
  std::vector<std::string> inside;  // prose sentences that lie inside the document
};

Result<Assembled> assemble(const EvalText& text, const Tokenizer& tokenizer,
                           const std::vector<Fact>& facts, std::int64_t token_count, Rng& rng) {
  const auto count_of = [&](const std::string& sentence) -> Result<std::int64_t> {
    ICE_TRY(const std::vector<TokenId> tokens, tokenizer.encode(" " + sentence));
    return static_cast<std::int64_t>(tokens.size());
  };
  std::int64_t fact_tokens = 0;
  for (const Fact& fact : facts) {
    ICE_TRY(const std::int64_t count, count_of(fact.prompt + fact.number + fact.end));
    fact_tokens += count;
  }
  constexpr std::int64_t kMargin = 64;  // joined sentences may take other tokens than single ones
  const std::int64_t prose = token_count - fact_tokens - kMargin;
  const std::int64_t wanted = token_count + kContinuationTokens + kMargin - fact_tokens;
  if (prose < fact_tokens) {
    return Status(Code::kInvalidArgument, "a document of " + std::to_string(token_count) +
                                              " tokens is too short for its hidden facts; ask for "
                                              "1024 or more");
  }
  // A place from which enough follows: sentences are taken in order, without turning around.
  const std::vector<std::string>& sentences = text.sentences();
  std::vector<std::int64_t> counts;
  std::int64_t total = 0;
  for (const std::string& sentence : sentences) {
    ICE_TRY(const std::int64_t count, count_of(sentence));
    counts.push_back(count);
    total += count;
  }
  std::size_t starts = sentences.size();
  for (std::int64_t after = 0; starts > 0 && after < wanted; --starts) after += counts[starts - 1];
  if (starts == 0) {
    return Status(Code::kInvalidArgument,
                  "the text has " + std::to_string(total) + " tokens, a document of " +
                      std::to_string(token_count) + " needs " + std::to_string(wanted));
  }
  const std::size_t first = rng.below(starts);
  std::size_t last = first;
  std::size_t inside = 0;  // sentences before which a fact may stand
  for (std::int64_t tokens = 0; tokens < wanted; ++last) {
    tokens += counts[last];
    if (tokens <= prose) inside = last + 1 - first;
  }
  if (inside < facts.size()) {
    return Status(Code::kInvalidArgument, "too few sentences for the hidden facts");
  }
  std::vector<std::size_t> boundaries(inside);
  for (std::size_t i = 0; i < inside; ++i) boundaries[i] = i;
  shuffle(boundaries, rng);
  boundaries.resize(facts.size());
  Assembled result;
  for (std::size_t i = first; i < last; ++i) {
    if (i > first) result.text += " ";
    result.text += sentences[i];
    if (i - first < inside) result.inside.push_back(sentences[i]);
    const auto found = std::find(boundaries.begin(), boundaries.end(), i - first);
    if (found != boundaries.end()) {
      const Fact& fact = facts[static_cast<std::size_t>(found - boundaries.begin())];
      result.text += " " + fact.prompt + fact.number + fact.end;
    }
  }
  return result;
}

Result<EvalQuestion::Turn> turn_for(const Tokenizer& tokenizer, const std::string& before,
                                    const Fact& fact) {
  EvalQuestion::Turn turn;
  ICE_TRY(turn.prompt, tokenizer.encode(before + fact.prompt));
  ICE_TRY(turn.answer, tokenizer.encode(fact.number));
  return turn;
}

Result<std::vector<EvalQuestion>> make_questions(const Tokenizer& tokenizer,
                                                 const std::vector<Fact>& facts,
                                                 const std::vector<std::string>& sentences,
                                                 Rng& rng) {
  std::vector<EvalQuestion> questions;
  std::vector<const Fact*> multikey;
  for (const Fact& fact : facts) {
    EvalQuestion question{.task = fact.task, .text = fact.prompt, .turns = {}};
    ICE_TRY(question.turns.emplace_back(), turn_for(tokenizer, "\n\n", fact));
    questions.push_back(std::move(question));
    if (fact.task == EvalTask::kMultikey) multikey.push_back(&fact);
  }
  for (int i = 0; i < kMultiqueryCount; ++i) {
    shuffle(multikey, rng);
    EvalQuestion question{.task = EvalTask::kMultiquery, .text = multikey[0]->prompt, .turns = {}};
    for (int t = 0; t < kMultiqueryTurns; ++t) {
      ICE_TRY(question.turns.emplace_back(), turn_for(tokenizer, t == 0 ? "\n\n" : "\". ",
                                                      *multikey[static_cast<std::size_t>(t)]));
    }
    questions.push_back(std::move(question));
  }
  std::vector<std::string> shuffled = sentences;
  shuffle(shuffled, rng);
  int passages = 0;
  for (const std::string& sentence : shuffled) {
    if (passages == kPassageCount) break;
    ICE_TRY(const std::vector<TokenId> tokens, tokenizer.encode(sentence));
    if (tokens.size() < kPassageLeast) continue;
    ICE_TRY(std::vector<TokenId> prompt, tokenizer.encode("\n\n"));
    prompt.insert(prompt.end(), tokens.begin(), tokens.begin() + kPassagePrompt);
    EvalQuestion question{.task = EvalTask::kPassage, .text = sentence, .turns = {}};
    question.turns.push_back({.prompt = std::move(prompt),
                              .answer = {tokens.begin() + kPassagePrompt,
                                         tokens.begin() + kPassagePrompt + kPassageAnswer}});
    questions.push_back(std::move(question));
    ++passages;
  }
  if (passages < kPassageCount) {
    return Status(Code::kInvalidArgument, "the text has too few long sentences");
  }
  return questions;
}

}  // namespace

std::string_view to_string(EvalTask task) {
  switch (task) {
    case EvalTask::kFacts: return "facts";
    case EvalTask::kMultikey: return "multikey";
    case EvalTask::kNeardup: return "neardup";
    case EvalTask::kMultiquery: return "multiquery";
    case EvalTask::kPassage: return "passage";
  }
  return "unknown";
}

Result<EvalText> EvalText::parse(std::string_view text) {
  constexpr std::size_t kLeastBytes = 200 * 1000;
  constexpr std::size_t kLeastLength = 31;
  constexpr std::size_t kMostLength = 399;
  if (text.size() < kLeastBytes) {
    return Status(Code::kInvalidArgument, "text of " + std::to_string(text.size()) +
                                              " bytes; at least 200 KB of prose are needed");
  }
  EvalText result;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find("\n\n"), text.size());
    std::string paragraph(text.substr(0, end));
    text.remove_prefix(std::min(end + 2, text.size()));
    std::replace(paragraph.begin(), paragraph.end(), '\n', ' ');
    std::string_view rest = paragraph;
    while (!rest.empty()) {
      const std::size_t cut = rest.find(". ");
      std::string_view sentence = rest.substr(0, cut == std::string_view::npos ? cut : cut + 1);
      rest.remove_prefix(cut == std::string_view::npos ? rest.size() : cut + 2);
      while (!sentence.empty() && sentence.front() == ' ') sentence.remove_prefix(1);
      if (sentence.size() >= kLeastLength && sentence.size() <= kMostLength) {
        result.sentences_.emplace_back(sentence);
      }
    }
  }
  constexpr std::size_t kLeastSentences = 200;
  if (result.sentences_.size() < kLeastSentences) {
    return Status(Code::kInvalidArgument,
                  "the text has " + std::to_string(result.sentences_.size()) +
                      " sentences of 31 to 399 characters, at least 200 are needed");
  }
  return result;
}

Result<EvalDocument> make_document(const EvalText& text, const Tokenizer& tokenizer,
                                   std::int64_t token_count, std::uint64_t seed) {
  SeededRng rng(seed);
  const std::vector<Fact> facts = make_facts(rng);
  ICE_TRY(const Assembled assembled, assemble(text, tokenizer, facts, token_count, rng));
  ICE_TRY(const std::vector<TokenId> tokens, tokenizer.encode(assembled.text));
  const auto needed = token_count + kContinuationTokens;
  if (static_cast<std::int64_t>(tokens.size()) < needed) {
    return Status(Code::kInternal, "assembled " + std::to_string(tokens.size()) +
                                       " tokens, expected at least " + std::to_string(needed));
  }
  EvalDocument document;
  document.tokens.assign(tokens.begin(), tokens.begin() + token_count);
  document.continuation.assign(tokens.begin() + token_count, tokens.begin() + needed);
  ICE_TRY(document.questions, make_questions(tokenizer, facts, assembled.inside, rng));
  // The cut must not have taken a fact away.
  const std::string kept = tokenizer.decode(document.tokens);
  for (const Fact& fact : facts) {
    if (kept.find(fact.prompt + fact.number + fact.end) == std::string::npos) {
      return Status(Code::kInternal, "fact lost: " + fact.prompt);
    }
  }
  return document;
}

}  // namespace icefield
