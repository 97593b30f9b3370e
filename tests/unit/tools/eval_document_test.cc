// Documents with hidden facts: their length, their determinism, and that every answer is in them.
#include "tools/eval_document.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/model_fixture.h"
#include "tools/command_line.h"

namespace icefield {
namespace {

class EvalDocumentTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    model_ = Model::load(test_model_path()).value().release();
    text_ = new EvalText(
        EvalText::parse(
            read_file(std::string(ICEFIELD_SOURCE_DIR) + "/models/debian-handbook.txt").value())
            .value());
  }
  static void TearDownTestSuite() {
    delete model_;
    delete text_;
  }
  static Result<EvalDocument> make(std::int64_t tokens, std::uint64_t seed) {
    return make_document(*text_, model_->tokenizer(), tokens, seed);
  }
  static Model* model_;
  static EvalText* text_;
};
Model* EvalDocumentTest::model_ = nullptr;
EvalText* EvalDocumentTest::text_ = nullptr;

TEST_F(EvalDocumentTest, HasExactlyTheTokensAskedForAndAllTasks) {
  for (const std::int64_t tokens : {1536, 4096}) {
    const Result<EvalDocument> document = make(tokens, 1);
    ASSERT_TRUE(document.has_value()) << document.error().to_string();
    EXPECT_EQ(static_cast<std::int64_t>(document->tokens.size()), tokens);
    EXPECT_EQ(static_cast<std::int64_t>(document->continuation.size()), kContinuationTokens);
    for (const EvalTask task : kQuestionTasks) {
      EXPECT_TRUE(std::ranges::any_of(document->questions, [task](const auto& asked) {
        return asked.task == task;
      })) << to_string(task);
    }
  }
}

TEST_F(EvalDocumentTest, DependsOnTheSeedAndOnNothingElse) {
  const EvalDocument first = make(1536, 7).value();
  const EvalDocument again = make(1536, 7).value();
  const EvalDocument other = make(1536, 8).value();
  EXPECT_EQ(first.tokens, again.tokens);
  ASSERT_EQ(first.questions.size(), again.questions.size());
  for (std::size_t i = 0; i < first.questions.size(); ++i) {
    EXPECT_EQ(first.questions[i].text, again.questions[i].text);
    EXPECT_EQ(first.questions[i].turns.front().answer, again.questions[i].turns.front().answer);
  }
  EXPECT_NE(first.tokens, other.tokens);
}

TEST_F(EvalDocumentTest, AnswersOfFactsStandInTheDocument) {
  const EvalDocument document = make(1536, 3).value();
  const std::string text = model_->tokenizer().decode(document.tokens);
  for (const EvalQuestion& question : document.questions) {
    if (question.task != EvalTask::kFacts && question.task != EvalTask::kMultikey) continue;
    std::string answer = model_->tokenizer().decode(question.turns.front().answer);
    answer.erase(0, answer.find_first_not_of(' '));
    EXPECT_NE(text.find(answer), std::string::npos) << question.text << " " << answer;
  }
}

TEST_F(EvalDocumentTest, TooShortIsExplained) {
  EXPECT_EQ(make(300, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(make(std::int64_t{1} << 40, 1).status().code(), Code::kInvalidArgument);
  const Result<EvalText> tiny = EvalText::parse("One sentence. Another one.");
  ASSERT_FALSE(tiny.has_value());
  EXPECT_NE(tiny.error().message().find("200"), std::string::npos) << tiny.error().message();
}

}  // namespace
}  // namespace icefield
