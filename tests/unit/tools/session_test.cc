// What opens documents for answers, on a processor that can do less than the CPU.
#include "tools/session.h"

#include <gtest/gtest.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"
#include "worker/cpu_attention.h"

namespace icefield {
namespace {

// The CPU, with the limit of a GPU on query rows that share a selection.
class LimitedAttention final : public LayerAttention {
 public:
  LimitedAttention(const AttentionShape& shape, ThreadPool& threads, std::int32_t most_rows)
      : shape_(shape), most_rows_(most_rows), cpu_(shape, cpu_kernels(), threads) {}

  Status resize_pool(std::int64_t slot_count) override { return cpu_.resize_pool(slot_count); }
  std::int32_t most_query_rows() const override { return most_rows_; }
  Status begin_step(std::span<const StepItem> items) override {
    for (const StepItem& item : items) {
      const auto rows = static_cast<std::int64_t>(item.tokens.size()) * shape_.query_group;
      if (!item.context->dense() && rows > most_rows_) {
        return Status(Code::kUnimplemented, std::to_string(rows) + " query rows");
      }
    }
    return cpu_.begin_step(items);
  }
  Status place(std::span<const ArrivedPage> pages) override { return cpu_.place(pages); }
  Status attend(const LayerCall& call, PageFinder& pages) override {
    return cpu_.attend(call, pages);
  }

 private:
  const AttentionShape shape_;
  const std::int32_t most_rows_;
  CpuAttention cpu_;
};

// The tiny model has two query heads per KV head.
TEST(Session, SuffixIsComputedInGroupsThatTheProcessorTakes) {
  const TempDir dir;
  tiny_model(3).write(dir.file("model.gguf"));
  for (const std::int32_t most_rows : {1 << 20, 32, 13, 2, 1}) {
    const auto limited = [&](const AttentionShape& shape, ThreadPool& threads) {
      return std::make_unique<LimitedAttention>(shape, threads, most_rows);
    };
    const std::unique_ptr<Session> session = Session::open({.model_path = dir.file("model.gguf"),
                                                            .dram_bytes = 1 << 28,
                                                            .threads = 1,
                                                            .attention = limited})
                                                 .value();
    EXPECT_EQ(session->worker().most_group_tokens(), std::clamp(most_rows / 2, 1, kMaxQueryTokens));
    std::vector<TokenId> tokens;
    for (TokenId i = 0; i < 768; ++i) tokens.push_back(i * 7 % 250);
    ASSERT_TRUE(session->open_document(tokens, 64, {.budget = 64}).has_value());
    tokens.resize(768 + 20, 9);
    const Result<Session::Opened> longer = session->open_document(tokens, 64, {.budget = 64});
    if (most_rows == 1) {  // not even the rows of one token
      EXPECT_EQ(longer.status().code(), Code::kUnimplemented);
      continue;
    }
    ASSERT_TRUE(longer.has_value()) << longer.status().to_string();
    EXPECT_EQ(longer->attached_tokens, 768);
    EXPECT_EQ(longer->prefill_tokens, 20);
  }
}

}  // namespace
}  // namespace icefield
