// A recording holds what full attention saw, and survives its file.
#include "tools/eval_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

constexpr std::int32_t kTokens = 600;

// Keeps q, k and v of one forward pass of one token.
class Capture final : public AttentionObserver {
 public:
  explicit Capture(const ModelConfig& config) : config_(config) {}
  Status on_attention(std::int32_t, const float* at_q, const float* at_k,
                      const float* at_v) override {
    q.emplace_back(at_q, at_q + config_.query_heads * config_.kv.d_k);
    k.emplace_back(at_k, at_k + config_.kv.kv_head_count * config_.kv.d_k);
    v.emplace_back(at_v, at_v + config_.kv.kv_head_count * config_.kv.d_v);
    return Status();
  }
  std::vector<std::vector<float>> q, k, v;  // [layer]

 private:
  const ModelConfig& config_;
};

class EvalRecordTest : public testing::Test {
 protected:
  void SetUp() override {
    tiny_model(3).write(dir_.file("model.gguf"));
    session_ =
        Session::open({.model_path = dir_.file("model.gguf"), .dram_bytes = 1 << 28, .threads = 1})
            .value();
    for (std::uint32_t i = 0; i < kTokens; ++i) document_.tokens.push_back(i * 7 % 250);
    document_.continuation = {5, 6, 7};
    document_.questions = {
        {.task = EvalTask::kMultiquery,
         .text = "",
         .turns = {{.prompt = {9}, .answer = {1, 2, 3}}, {.prompt = {4, 8}, .answer = {2}}}}};
    keys_ = record_document(*session_, document_, {}).value();
  }

  TempDir dir_;
  std::unique_ptr<Session> session_;
  EvalDocument document_;
  RecordedKeys keys_;
};

TEST_F(EvalRecordTest, ShapeAndStepsAreThoseOfTheDocument) {
  const KvShape& kv = session_->model().config().kv;
  EXPECT_EQ(keys_.shape.layers, kv.layer_count);
  EXPECT_EQ(keys_.shape.kv_heads, kv.kv_head_count);
  EXPECT_EQ(keys_.shape.group, session_->model().config().query_group());
  EXPECT_EQ(keys_.shape.tokens, kTokens);
  EXPECT_EQ(keys_.shape.sink_tokens, kSinkTokens);
  EXPECT_EQ(keys_.shape.window_first, 256) << "the window holds 256 to 511 tokens";
  using enum RecordedStep;
  EXPECT_EQ(keys_.kinds, (std::vector{kQuestion, kAnswer, kAnswer, kAnswer, kContinuation,
                                      kContinuation, kContinuation}));
  EXPECT_EQ(keys_.shape.steps, 7);
}

TEST_F(EvalRecordTest, HoldsTheRowsAndQueriesOfFullAttention) {
  const ModelConfig& config = session_->model().config();
  Context dense = session_->worker().new_context();
  ASSERT_TRUE(session_->decoder().prefill(dense, document_.tokens).ok());
  std::vector<RowRun> runs;
  dense.append_exact_runs(1, 1, runs);
  const RecordedHead& head = keys_.heads[static_cast<std::size_t>(config.kv.kv_head_count) + 1];
  const std::int64_t width = config.kv.d_k + config.kv.d_v;
  ASSERT_EQ(head.rows.size(), static_cast<std::size_t>(kTokens * width));
  EXPECT_TRUE(std::equal(runs[0].rows, runs[0].rows + RowRun::kMaxRows * width, head.rows.begin()));

  Capture capture(config);
  const TokenId token = 9;
  ASSERT_TRUE(
      session_->decoder().forward(dense, std::span(&token, 1), {.observer = &capture}).has_value());
  // The question's first step sees one token of its own: itself.
  const float* q = capture.q[1].data() + config.query_group() * config.kv.d_k;
  const float* k = capture.k[1].data() + config.kv.d_k;
  const float* v = capture.v[1].data() + config.kv.d_v;
  EXPECT_TRUE(std::equal(q, q + config.query_group() * config.kv.d_k, head.q.begin()));
  float logit = 0;
  for (std::int32_t j = 0; j < config.kv.d_k; ++j) {
    logit += q[j] * bf16_to_float(float_to_bf16(k[j])) * keys_.shape.beta;
  }
  EXPECT_NEAR(head.own_lse[0], logit, 1e-4f * (1 + std::abs(logit)));
  for (std::size_t j = 0; j < 4; ++j) {
    EXPECT_EQ(head.own_out[j], bf16_to_float(float_to_bf16(v[j])));
  }
}

TEST_F(EvalRecordTest, SurvivesItsFile) {
  const std::string path = dir_.file("keys.bin");
  ASSERT_TRUE(write_recorded_keys(keys_, path).ok());
  const RecordedKeys read = read_recorded_keys(path).value();
  EXPECT_EQ(read.shape, keys_.shape);
  EXPECT_EQ(read.kinds, keys_.kinds);
  ASSERT_EQ(read.heads.size(), keys_.heads.size());
  for (std::size_t i = 0; i < read.heads.size(); ++i) {
    EXPECT_EQ(read.heads[i].rows, keys_.heads[i].rows);
    EXPECT_EQ(read.heads[i].q, keys_.heads[i].q);
    EXPECT_EQ(read.heads[i].own_lse, keys_.heads[i].own_lse);
    EXPECT_EQ(read.heads[i].own_out, keys_.heads[i].own_out);
  }
}

TEST_F(EvalRecordTest, WhatIsNoRecordingIsRefused) {
  const std::string path = dir_.file("keys.bin");
  EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  ASSERT_TRUE(write_recorded_keys(keys_, path).ok());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  std::filesystem::resize_file(path, 40);
  EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) + 1);
  EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  keys_.shape.window_first = kTokens + 1;
  ASSERT_TRUE(write_recorded_keys(keys_, path).ok());
  EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(write_recorded_keys(keys_, dir_.file("no/such/place")).code(), Code::kUnavailable);
}

// Counts that ask for more memory than there is, one by one and all at once.
TEST_F(EvalRecordTest, DamagedHeadersAreRefusedBeforeMemoryIsTaken) {
  const std::string path = dir_.file("keys.bin");
  const RecordedShape whole = keys_.shape;
  const auto expect_refused = [&](const RecordedShape& damaged) {
    keys_.shape = damaged;
    ASSERT_TRUE(write_recorded_keys(keys_, path).ok());
    EXPECT_EQ(read_recorded_keys(path).status().code(), Code::kInvalidArgument);
  };
  RecordedShape all = whole;
  for (std::int32_t RecordedShape::*count :
       {&RecordedShape::layers, &RecordedShape::kv_heads, &RecordedShape::group,
        &RecordedShape::d_k, &RecordedShape::d_v, &RecordedShape::tokens, &RecordedShape::steps}) {
    for (const std::int32_t value : {-1, 0, whole.*count + 1, 256, 1024, 1 << 20, 1 << 30}) {
      RecordedShape damaged = whole;
      damaged.*count = value;
      if (damaged != whole) expect_refused(damaged);
    }
    all.*count = 256;
    expect_refused(all);
  }
  for (const float beta : {0.0f, -1.0f, NAN, HUGE_VALF}) {
    RecordedShape damaged = whole;
    damaged.beta = beta;
    expect_refused(damaged);
  }
  all = {1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 0.1f, 0, 0};
  expect_refused(all);
  expect_refused({1 << 10, 1 << 10, 1 << 8, 1 << 10, 1 << 10, 1 << 20, 1 << 20, 0.1f, 0, 0});
}

}  // namespace
}  // namespace icefield
