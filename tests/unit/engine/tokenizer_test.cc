// Which tokens a text becomes, by pre-tokenizer, with a small vocabulary: the 256 bytes,
// "<|endoftext|>" and what a test adds. reference_test holds the real model's to transformers.
#include "engine/tokenizer.h"

#include <gtest/gtest.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

constexpr std::uint32_t kEnd = 256;  // "<|endoftext|>"

class TokenizerTest : public testing::Test {
 protected:
  void add_token(const std::string& name, std::int32_t type) {
    std::get<std::vector<std::string>>(gguf_.metadata["tokenizer.ggml.tokens"]).push_back(name);
    std::get<std::vector<std::int32_t>>(gguf_.metadata["tokenizer.ggml.token_type"])
        .push_back(type);
  }
  Result<std::unique_ptr<Tokenizer>> load(const std::string& pre_tokenizer) {
    gguf_.metadata["tokenizer.ggml.pre"] = pre_tokenizer;
    gguf_.write(dir_.file("model.gguf"));
    files_.push_back(GgufFile::open(dir_.file("model.gguf")).value());
    return Tokenizer::load(*files_.back());
  }
  std::vector<TokenId> encode(const std::string& pre_tokenizer, const std::string& text) {
    return load(pre_tokenizer).value()->encode(text).value();
  }

  TempDir dir_;
  GgufWriter gguf_ = tiny_model(1);
  std::vector<std::unique_ptr<GgufFile>> files_;  // tokenizers borrow from them
};

// "abc" is a token that no merges lead to: these make "bc" first.
TEST_F(TokenizerTest, WholePiecesOfLlamaAreTakenBeforeMerges) {
  add_token("bc", 1);   // 257
  add_token("abc", 1);  // 258
  add_token(
      "\xc4\xa0"
      "abc",
      1);  // 259, " abc"
  gguf_.metadata["tokenizer.ggml.merges"] = std::vector<std::string>{"b c"};
  EXPECT_EQ(encode("gpt-2", "abc"), (std::vector<TokenId>{'a', 257}));
  EXPECT_EQ(encode("qwen2", "abc"), (std::vector<TokenId>{'a', 257}));
  EXPECT_EQ(encode("llama-bpe", "abc"), (std::vector<TokenId>{258}));
  EXPECT_EQ(encode("llama-bpe", "abc abc"), (std::vector<TokenId>{258, 259}));
  EXPECT_EQ(encode("llama-bpe", "abca"), (std::vector<TokenId>{'a', 257, 'a'})) << "not whole";
}

TEST_F(TokenizerTest, ControlTokensAreNotMadeFromWholePieces) {
  add_token("stop", 3);
  EXPECT_EQ(encode("llama-bpe", "stop"), (std::vector<TokenId>{'s', 't', 'o', 'p'}));
}

TEST_F(TokenizerTest, PromptsBeginAsTheFileOrLlamaSays) {
  const auto begin = [&](const std::string& pre_tokenizer) {
    return load(pre_tokenizer).value()->begin_token();
  };
  EXPECT_EQ(begin("llama-bpe"), std::nullopt) << "the file has no such token";
  gguf_.metadata["tokenizer.ggml.bos_token_id"] = kEnd;
  EXPECT_EQ(begin("llama-bpe"), kEnd);
  EXPECT_EQ(begin("gpt-2"), std::nullopt);
  gguf_.metadata["tokenizer.ggml.add_bos_token"] = std::uint32_t{1};
  EXPECT_EQ(begin("gpt-2"), kEnd);
  gguf_.metadata["tokenizer.ggml.add_bos_token"] = std::uint32_t{0};
  EXPECT_EQ(begin("llama-bpe"), std::nullopt);
}

TEST_F(TokenizerTest, BeginTokensThatAreNotThereAreRefused) {
  gguf_.metadata["tokenizer.ggml.add_bos_token"] = std::uint32_t{1};
  EXPECT_EQ(load("gpt-2").status().code(), Code::kInvalidArgument);
  gguf_.metadata["tokenizer.ggml.bos_token_id"] = std::uint32_t{257};
  EXPECT_EQ(load("gpt-2").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace icefield
