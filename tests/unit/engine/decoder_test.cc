// The decoder on a tiny random model: prefill is decoding, threads and groups change nothing.
#include "engine/decoder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/chat.h"
#include "engine/dense_attention.h"
#include "engine/sampler.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"
#include "tools/embedded_node.h"

namespace icefield {
namespace {

class DecoderTest : public testing::Test {
 protected:
  struct Engine {
    Engine(const Model& model, EmbeddedNode& node, int thread_count) : threads(thread_count) {
      worker = Worker::create({.model = model.config().kv,
                               .slice = Slice::whole(model.config().kv),
                               .softmax_scale = model.softmax_scale(),
                               .query_group = model.config().query_group(),
                               .fingerprint_text = model.fingerprint().text()},
                              {.kernels = cpu_kernels(),
                               .threads = threads,
                               .store = node.store(),
                               .executor = node.executor(),
                               .clock = clock,
                               .rng = rng})
                   .value();
      decoder = std::make_unique<Decoder>(model, *worker, threads);
    }
    SystemClock clock;
    SeededRng rng{1};
    ThreadPool threads;
    std::unique_ptr<Worker> worker;
    std::unique_ptr<Decoder> decoder;
  };

  void SetUp() override {
    tiny_model(1).write(dir_.file("m"));
    model_ = Model::load(dir_.file("m")).value();
    node_ = EmbeddedNode::open({.dram_bytes = 64 << 20}).value();
    SeededRng rng(9);
    for (int i = 0; i < 1500; ++i) tokens_.push_back(static_cast<TokenId>(rng.below(256)));
  }
  std::vector<float> logits_after(Engine& engine, Context& context, std::size_t first,
                                  std::size_t count, Decoder::ForwardOptions options = {}) {
    const auto logits =
        engine.decoder->forward(context, std::span(tokens_).subspan(first, count), options).value();
    return {logits.begin(), logits.end()};
  }
  static void expect_near(const std::vector<float>& a, const std::vector<float>& b,
                          float tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << i;
  }

  TempDir dir_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<EmbeddedNode> node_;
  std::vector<TokenId> tokens_;
};

TEST_F(DecoderTest, PrefillIsDecodingOneByOne) {
  Engine engine(*model_, *node_, 2);
  Context prefilled = engine.worker->new_context();
  ASSERT_TRUE(engine.decoder->prefill(prefilled, std::span(tokens_).first(700)).ok());
  Context stepped = engine.worker->new_context();
  (void)logits_after(engine, stepped, 0, 700);
  // K and V are rounded to bf16: where they differ by a rounding, later layers differ a little.
  expect_near(logits_after(engine, prefilled, 700, 1), logits_after(engine, stepped, 700, 1),
              0.02f);
}

TEST_F(DecoderTest, ThreadsDoNotChangeABit) {
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 3}) {
    Engine engine(*model_, *node_, threads);
    Context context = engine.worker->new_context();
    ASSERT_TRUE(engine.decoder->prefill(context, std::span(tokens_).first(1280)).ok());
    ASSERT_TRUE(engine.worker->seal(context, 1280).ok());
    results.push_back(logits_after(engine, context, 1280, 5, {.attend = {.budget = 32}}));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_F(DecoderTest, GroupsOfTokensOverADenseContextAreTheSame) {
  Engine engine(*model_, *node_, 2);
  Context one = engine.worker->new_context();
  ASSERT_TRUE(engine.decoder->prefill(one, std::span(tokens_).first(300)).ok());
  Context grouped = engine.worker->fork(one);
  expect_near(logits_after(engine, one, 300, 16, {.logits = Logits::kAll}),
              logits_after(engine, grouped, 300, 16, {.group_tokens = 16, .logits = Logits::kAll}),
              0.02f);
}

// Of a prompt only the last token's are wanted: tokens before it leave out the largest product.
TEST_F(DecoderTest, LogitsThatAreNotWantedChangeNothing) {
  Engine engine(*model_, *node_, 2);
  Context one = engine.worker->new_context();
  ASSERT_TRUE(engine.decoder->prefill(one, std::span(tokens_).first(300)).ok());
  Context other = engine.worker->fork(one);
  const std::vector<float> all = logits_after(engine, one, 300, 3);
  EXPECT_TRUE(logits_after(engine, other, 300, 2, {.logits = Logits::kNone}).empty());
  EXPECT_EQ(logits_after(engine, other, 302, 1), all);
}

TEST_F(DecoderTest, BudgetOfAllGivesFullAttentionsTokens) {
  Engine engine(*model_, *node_, 2);
  Context dense = engine.worker->new_context();
  ASSERT_TRUE(engine.decoder->prefill(dense, std::span(tokens_).first(1280)).ok());
  Context sealed = engine.worker->fork(dense);
  ASSERT_TRUE(engine.worker->seal(sealed, 1280).ok());
  expect_near(logits_after(engine, dense, 1280, 1), logits_after(engine, sealed, 1280, 1), 1e-3f);
}

TEST_F(DecoderTest, NonsenseIsRefused) {
  Engine engine(*model_, *node_, 1);
  Context context = engine.worker->new_context();
  EXPECT_EQ(engine.decoder->prefill(context, {}).code(), Code::kInvalidArgument);
  const std::vector<TokenId> unknown = {999};
  EXPECT_EQ(engine.decoder->prefill(context, unknown).code(), Code::kInvalidArgument);
  const Status too_long = engine.decoder->prefill(context, std::vector<TokenId>(4097, 1));
  EXPECT_EQ(too_long.code(), Code::kInvalidArgument);
  EXPECT_NE(too_long.message().find("4096 positions"), std::string::npos) << too_long.to_string();
  EXPECT_EQ(context.token_count(), 0) << "nothing was computed";
  const auto forward = [&](std::int32_t group) {
    return engine.decoder->forward(context, std::span(tokens_).first(1), {.group_tokens = group})
        .status()
        .code();
  };
  EXPECT_EQ(forward(0), Code::kInvalidArgument);
  EXPECT_EQ(forward(17), Code::kInvalidArgument);
}

// Blocked prefill attention against the float64 reference kernel on the same rows.
TEST_F(DecoderTest, DenseAttentionIsFullCausalAttention) {
  Engine engine(*model_, *node_, 2);
  Context context = engine.worker->new_context();
  constexpr std::int64_t kBefore = 700, kNew = 130;
  ASSERT_TRUE(engine.decoder->prefill(context, std::span(tokens_).first(kBefore + kNew)).ok());
  SeededRng rng(4);
  std::vector<float> q(kNew * 4 * 64);
  for (float& value : q) value = static_cast<float>(rng.unit()) * 4 - 2;
  std::vector<float> out(q.size(), NAN);
  dense_attention({.context = &context,
                   .layer = 1,
                   .first_position = kBefore,
                   .token_count = kNew,
                   .kv_heads = 2,
                   .query_group = 2,
                   .d_k = 64,
                   .d_v = 64,
                   .softmax_scale = 0.125f,
                   .q = q.data(),
                   .out = out.data()},
                  engine.threads);
  for (const std::int64_t t : {0, 1, 63, 64, 129}) {
    for (std::int32_t head = 0; head < 2; ++head) {
      std::vector<RowRun> runs;
      context.append_exact_runs(1, head, runs);
      std::vector<float> row_out(128), lse(2), tail(2), fault(2), drift(2);
      const std::vector<std::int32_t> hidden(2, static_cast<std::int32_t>(kNew - 1 - t));
      const AttendGroup group{
          .row_count = 2,
          .q = q.data() + (t * 4 + head * 2) * 64,
          .run_count = static_cast<std::int32_t>(runs.size()),
          .runs = runs.data(),
          .hidden = hidden.data(),
          .result = {row_out.data(), lse.data(), tail.data(), fault.data(), drift.data()}};
      attend_reference(
          {.shape = {.d_k = 64, .d_v = 64, .beta = 0.125f}, .group_count = 1, .groups = &group});
      for (std::size_t j = 0; j < 128; ++j) {
        ASSERT_NEAR(out[static_cast<std::size_t>((t * 4 + head * 2) * 64) + j], row_out[j], 1e-5)
            << "token " << t << " head " << head;
      }
    }
  }
}

TEST(Sampler, GreedyTakesTheMostLikelyAndTheLowestOfEquals) {
  const std::vector<float> logits = {1, 3, 3, 2};
  EXPECT_EQ(most_likely(logits), 1u);
  EXPECT_EQ(Sampler(0, 7).next(logits), 1u);
  EXPECT_NEAR(log_probability(logits, 1),
              std::log(std::exp(3) / (std::exp(1) + 2 * std::exp(3) + std::exp(2))), 1e-12);
}

TEST(Sampler, TemperatureDrawsFromTheSoftmaxBySeed) {
  const std::vector<float> logits = {0, 1, 2};
  Sampler sampler(0.5, 3);
  Sampler same(0.5, 3);
  std::vector<double> counts(3, 0);
  for (int i = 0; i < 20000; ++i) {
    const TokenId token = sampler.next(logits);
    ASSERT_EQ(token, same.next(logits));
    counts[token] += 1.0 / 20000;
  }
  const double total = 1 + std::exp(2) + std::exp(4);
  EXPECT_NEAR(counts[0], 1 / total, 0.01);
  EXPECT_NEAR(counts[1], std::exp(2) / total, 0.01);
}

TEST(Chat, UnknownOrMissingTemplatesAreExplained) {
  TempDir dir;
  GgufWriter gguf = tiny_model(1);
  const auto frame = [&] {
    gguf.write(dir.file("m"));
    const auto model = Model::load(dir.file("m")).value();
    return chat_frame(model->file(), model->tokenizer());
  };
  EXPECT_EQ(frame().error().code(), Code::kFailedPrecondition);
  gguf.metadata["tokenizer.chat_template"] = std::string("{{ messages }} [INST]");
  const Status unknown = frame().error();
  EXPECT_EQ(unknown.code(), Code::kUnimplemented);
  EXPECT_NE(unknown.message().find("--prompt=raw"), std::string::npos);
}

}  // namespace
}  // namespace icefield
