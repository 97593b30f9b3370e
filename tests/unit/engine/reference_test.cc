// The default model against Hugging Face transformers, recorded by tests/compare_transformers.py.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/chat.h"
#include "engine/sampler.h"
#include "tests/support/model_fixture.h"

namespace icefield {
namespace {

class Reference : public testing::Test {
 protected:
  void SetUp() override {
    std::ifstream in(std::string(ICEFIELD_SOURCE_DIR) + "/tests/data/engine_reference.json");
    recorded_ = nlohmann::json::parse(in);
  }
  nlohmann::json recorded_;
  ModelFixture fixture_{{}};
};

TEST_F(Reference, TextsHaveTheSameTokensAndComeBack) {
  const Tokenizer& tokenizer = fixture_.model->tokenizer();
  for (const auto& entry : recorded_["texts"]) {
    const auto text = entry["text"].get<std::string>();
    const std::vector<TokenId> tokens = tokenizer.encode(text).value();
    EXPECT_EQ(tokens, entry["tokens"].get<std::vector<TokenId>>()) << text;
    EXPECT_EQ(tokenizer.decode(tokens), text);
  }
}

TEST_F(Reference, TextThatIsNotUtf8IsRefusedWithThePlace) {
  for (const std::string bad : {"abc\xff", "abc\xc3", "abc\xed\xa0\x80", "abc\xf8\x88\x80\x80\x80",
                                "abc\xc0\xaf", "abc\xf4\x90\x80\x80"}) {
    const Status status = fixture_.model->tokenizer().encode(bad).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("byte 3"), std::string::npos) << status.to_string();
  }
}

TEST_F(Reference, LogitsAreTransformersLogits) {
  const auto tokens = recorded_["logits"]["tokens"].get<std::vector<TokenId>>();
  Context context = fixture_.worker->new_context();
  const auto logits = fixture_.decoder->forward(context, tokens, {.logits = Logits::kAll}).value();
  const auto vocabulary = static_cast<std::size_t>(fixture_.model->config().vocabulary);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto row = logits.subspan(t * vocabulary, vocabulary);
    const auto& top = recorded_["logits"]["top"][t];
    // Rounding K and V to bf16 moves logits of this size by up to 0.15 (docs/engine_comparison.md).
    for (const auto& [token, logit] : top.get<std::vector<std::pair<TokenId, float>>>()) {
      EXPECT_NEAR(row[token], logit, 0.2f) << "token " << t;
    }
    const float lead = top[0][1].get<float>() - top[1][1].get<float>();
    if (lead > 0.3f) {
      EXPECT_EQ(most_likely(row), top[0][0].get<TokenId>()) << "token " << t;
    }
  }
}

TEST_F(Reference, GreedyTextIsTransformersText) {
  for (const auto& entry : recorded_["greedy"]) {
    const std::vector<TokenId> prompt =
        fixture_.model->tokenizer().encode(entry["prompt"].get<std::string>()).value();
    Context context = fixture_.worker->new_context();
    std::span<const float> logits = fixture_.decoder->forward(context, prompt, {}).value();
    std::vector<TokenId> generated;
    for (std::size_t i = 0; i < entry["tokens"].size(); ++i) {
      generated.push_back(most_likely(logits));
      logits = fixture_.decoder->forward(context, std::span(&generated.back(), 1), {}).value();
    }
    EXPECT_EQ(generated, entry["tokens"].get<std::vector<TokenId>>()) << entry["prompt"];
  }
}

TEST_F(Reference, ChatFrameIsChatMl) {
  const ChatFrame frame = chat_frame(fixture_.model->file(), fixture_.model->tokenizer()).value();
  const Tokenizer& tokenizer = fixture_.model->tokenizer();
  EXPECT_EQ(tokenizer.decode(frame.before),
            "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face\nuser\n");
  EXPECT_EQ(tokenizer.decode(frame.after), "\nassistant\n");
  EXPECT_EQ(frame.before.front(), tokenizer.token("<|im_start|>").value());
  EXPECT_EQ(frame.stop, std::vector<TokenId>{tokenizer.token("<|im_end|>").value()});
}

}  // namespace
}  // namespace icefield
