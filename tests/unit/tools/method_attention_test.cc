// The methods of bench/ attend in place of the worker: over the right tokens, counted as they are.
#include "tools/method_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/support/head_fixture.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"
#include "tools/eval_run.h"

namespace icefield {
namespace {

constexpr std::int32_t kTokens = 600;
constexpr std::int32_t kWindow = 256;  // where the window of so many tokens begins
constexpr std::int32_t kIndexed = kWindow - kSinkTokens;

class MethodAttentionTest : public testing::Test {
 protected:
  void SetUp() override {
    tiny_model(3).write(dir_.file("model.gguf"));
    session_ = Session::open({.model_path = dir_.file("model.gguf"),
                              .dram_bytes = 1 << 28,
                              .threads = 2,
                              .attention =
                                  [this](const AttentionShape& shape, ThreadPool& threads) {
                                    auto made = std::make_unique<MethodAttention>(
                                        shape, cpu_kernels(), threads);
                                    attention_ = made.get();
                                    return made;
                                  }})
                   .value();
    for (std::uint32_t i = 0; i < kTokens; ++i) tokens_.push_back(i * 7 % 250);
    dense_.emplace(session_->worker().new_context());
    ASSERT_TRUE(session_->decoder().prefill(*dense_, tokens_).ok());
    const ModelConfig& config = session_->model().config();
    heads_ = config.kv.layer_count * config.kv.kv_head_count;
    SeededRng rng(7);
    for (int i = 0; i < config.query_heads * config.kv.d_k; ++i) q_.push_back(3 * normal(rng));
    for (int i = 0; i < config.kv.kv_head_count * config.kv.d_k; ++i) kv_.push_back(normal(rng));
  }

  static TrialMethod method(const std::string& name) {
    for (const TrialMethod& known : all_trial_methods(cpu_kernels(), {})) {
      if (known.name == name) return known;
    }
    ADD_FAILURE() << name;
    return {};
  }

  std::unique_ptr<MethodDocument> build(const TrialMethod& method) {
    return std::make_unique<MethodDocument>(attention_->shape(), attention_->kernels(),
                                            attention_->threads(), *dense_, method);
  }

  // The output of layer 1 for q_, as one more token of `past` attends.
  std::vector<float> attend(const Context& past, const AttendOptions& options = {}) {
    Context context = session_->worker().fork(past);
    std::vector<StepItem> items;
    items.push_back({.context = &context, .tokens = {5}, .options = options});
    Step step = session_->worker().begin_step(std::move(items)).value();
    std::vector<float> out(q_.size());
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      step.append(layer, kv_.data(), kv_.data());
      EXPECT_TRUE(step.attend(layer, q_.data(), out.data()).ok());
    }
    EXPECT_TRUE(step.finish().has_value());
    return out;
  }

  // The same by hand: the rows of a group attend sink, window and the `budget` tokens that get most
  // of their attention.
  std::vector<float> top_attention(std::size_t budget) const;

  TempDir dir_;
  std::unique_ptr<Session> session_;
  MethodAttention* attention_ = nullptr;
  std::vector<TokenId> tokens_;
  std::optional<Context> dense_;
  std::vector<float> q_, kv_;
  std::int64_t heads_ = 0;
};

std::vector<float> MethodAttentionTest::top_attention(std::size_t budget) const {
  const ModelConfig& config = session_->model().config();
  const auto d = static_cast<std::size_t>(config.kv.d_k);
  const auto group = static_cast<std::size_t>(config.query_group());
  std::vector<float> out;
  for (std::int32_t head = 0; head < config.kv.kv_head_count; ++head) {
    std::vector<RowRun> runs;
    dense_->append_exact_runs(1, head, runs);
    std::vector<float> rows;  // K V of each token
    for (const RowRun& run : runs) {
      const auto numbers = static_cast<std::size_t>(__builtin_popcountll(run.mask)) * 2 * d;
      for (std::size_t j = 0; j < numbers; ++j) rows.push_back(bf16_to_float(run.rows[j]));
    }
    const float* own = kv_.data() + static_cast<std::size_t>(head) * d;
    for (int twice = 0; twice < 2; ++twice) {
      for (std::size_t j = 0; j < d; ++j) rows.push_back(bf16_to_float(float_to_bf16(own[j])));
    }
    const std::size_t count = rows.size() / (2 * d);
    EXPECT_EQ(count, kTokens + 1u);
    std::vector<std::vector<double>> weights(group, std::vector<double>(count));
    std::vector<double> votes(count);
    for (std::size_t h = 0; h < group; ++h) {
      const float* q = q_.data() + (static_cast<std::size_t>(head) * group + h) * d;
      for (std::size_t t = 0; t < count; ++t) {
        double dot = 0;
        for (std::size_t j = 0; j < d; ++j) dot += static_cast<double>(q[j] * rows[t * 2 * d + j]);
        weights[h][t] = std::exp(dot / std::sqrt(static_cast<double>(d)));
      }
      const double total = std::accumulate(weights[h].begin(), weights[h].end(), 0.0);
      for (std::size_t t = 0; t < count; ++t) votes[t] += weights[h][t] / total;
    }
    std::vector<std::size_t> order(kIndexed);
    std::iota(order.begin(), order.end(), kSinkTokens);
    std::ranges::sort(order, [&](std::size_t a, std::size_t b) { return votes[a] > votes[b]; });
    for (std::size_t h = 0; h < group; ++h) {
      for (std::size_t i = budget; i < order.size(); ++i) weights[h][order[i]] = 0;
      const double total = std::accumulate(weights[h].begin(), weights[h].end(), 0.0);
      for (std::size_t j = 0; j < d; ++j) {
        double sum = 0;
        for (std::size_t t = 0; t < count; ++t) {
          sum += weights[h][t] * static_cast<double>(rows[(2 * t + 1) * d + j]);
        }
        out.push_back(static_cast<float>(sum / total));
      }
    }
  }
  return out;
}

float distance(const std::vector<float>& a, const std::vector<float>& b) {
  float most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
  return most;
}

TEST_F(MethodAttentionTest, ABudgetOfEverythingIsFullAttention) {
  const std::vector<float> full = attend(*dense_);
  for (const TrialMethod& method : all_trial_methods(cpu_kernels(), {})) {
    const auto document = build(method);
    const MethodAttention::Use use = attention_->use(*document, kBudgetAll);
    EXPECT_LT(distance(attend(*dense_), full), method.name == "exact_int8" ? 1e-3f : 1e-4f)
        << method.name;
  }
}

TEST_F(MethodAttentionTest, TheExactScanAttendsTheTokensWithMostAttentionAndNoOthers) {
  const auto document = build(method("exact_no_tail"));
  const std::vector<float> full = attend(*dense_);
  for (const std::int64_t budget : {0, 1, 40}) {
    const MethodAttention::Use use = attention_->use(*document, budget);
    const std::vector<float> wanted = top_attention(static_cast<std::size_t>(budget));
    EXPECT_LT(distance(attend(*dense_), wanted), 1e-4f) << budget;
    EXPECT_GT(distance(full, wanted), 1e-3f) << budget;
  }
}

TEST_F(MethodAttentionTest, CountsWhatMethodsRead) {
  const auto document = build(method("pages_quest"));
  (void)attention_->take_reads();
  const MethodAttention::Use use = attention_->use(*document, 48);
  (void)attend(*dense_);
  const MethodReads reads = attention_->take_reads();
  const std::int64_t d = session_->model().config().kv.d_k;
  EXPECT_EQ(reads.groups, heads_);
  EXPECT_EQ(reads.rows_indexed, heads_ * kIndexed);
  EXPECT_EQ(reads.cost.pages, heads_ * 3);
  EXPECT_EQ(reads.cost.page_bytes, heads_ * 48 * 2 * d * 2);
  const std::int64_t digests = kIndexed / 16 * (2 * d + 4);
  EXPECT_EQ(reads.cost.index_bytes_read, heads_ * digests);
  EXPECT_EQ(document->index_bytes(), heads_ * digests);
  EXPECT_EQ(attention_->take_reads().groups, 0);
}

TEST_F(MethodAttentionTest, CountsWhatTheWorkerReads) {
  Context sealed = session_->worker().fork(*dense_);
  ASSERT_TRUE(session_->worker().seal(sealed, sealed.token_count()).ok());
  (void)attention_->take_reads();
  (void)attend(sealed, {.budget = 10, .breadth = kAllClusters});
  const MethodReads all = attention_->take_reads();
  EXPECT_EQ(all.groups, heads_);
  EXPECT_EQ(all.cost.rows_ranked, heads_ * kIndexed);
  EXPECT_EQ(all.cost.pages, heads_ * 10);
  // At least a code of every row, at most the whole index.
  const std::int64_t d = session_->model().config().kv.d_k;
  EXPECT_GT(all.cost.index_bytes_read, heads_ * kIndexed * d / 4);
  EXPECT_LT(all.cost.index_bytes_read, heads_ * kIndexed * d);
  (void)attend(sealed, {.budget = kBudgetAll});
  const MethodReads everything = attention_->take_reads();
  EXPECT_EQ(everything.cost.index_bytes_read, 0) << "nothing is ranked";
  EXPECT_EQ(everything.cost.pages, heads_ * kIndexed);
}

TEST_F(MethodAttentionTest, AfterItsUseTheWorkerAttends) {
  const std::vector<float> full = attend(*dense_);
  const auto document = build(method("pages_mean"));
  {
    const MethodAttention::Use use = attention_->use(*document, 16);
    EXPECT_NE(attend(*dense_), full);
  }
  EXPECT_EQ(attend(*dense_), full);
}

// Questions and continuation go through the method of their arm.
TEST_F(MethodAttentionTest, AnEvaluationHasArmsOfOtherMethods) {
  EvalDocument document{.tokens = tokens_, .continuation = {5, 6, 7}, .questions = {}};
  document.questions = {
      {.task = EvalTask::kFacts, .text = "", .turns = {{.prompt = {9, 8}, .answer = {1, 2, 3}}}}};
  const EvalOptions options{.arms = {{.budget = 10},
                                     {.budget = kBudgetAll, .method = method("exact_no_tail")},
                                     {.budget = 1, .method = method("exact_no_tail")},
                                     {.budget = 32, .method = method("flat_retroinfer")}},
                            .probes = true,
                            .attention = attention_};
  std::vector<EvalSums> sums(options.arms.size());
  ASSERT_TRUE(evaluate_document(*session_, document, options, sums, {}).ok());
  const std::int64_t steps = 2 + 2 + 3;  // prompt, fed answer tokens, continuation
  for (const EvalSums& arm : sums) {
    EXPECT_EQ(arm.total().questions, 1);
    EXPECT_EQ(arm.continuation_tokens, 3);
    EXPECT_EQ(arm.reads.groups, steps * heads_);
  }
  EXPECT_GT(sums[0].hot_bytes, 0);
  EXPECT_EQ(sums[1].reads.cost.pages, steps * heads_ * kIndexed);
  EXPECT_EQ(sums[2].reads.cost.pages, steps * heads_);
  EXPECT_LT(sums[1].kl, 1e-6);
  EXPECT_GT(sums[2].kl, 10 * std::fabs(sums[1].kl));
  EXPECT_GT(sums[3].method_index_bytes, 0);
}

}  // namespace
}  // namespace icefield
