// A worker on an embedded node: sealing, attaching, attending, with made-up K/V.
#include "worker/worker.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/temp_dir.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

class WorkerTest : public testing::Test {
 protected:
  static constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

  WorkerFixture make_worker(WorkerFixture::Options options = {}) {
    return WorkerFixture(*node_, options);
  }

  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  FakeSequence sequence_{7, kShape, 6500};
};

TEST_F(WorkerTest, BudgetOfAllIsFullAttention) {
  WorkerFixture fixture = make_worker();
  Context dense = fixture.fill(sequence_, 5400);
  Context sealed = fixture.worker->fork(dense);
  ASSERT_TRUE(fixture.worker->seal(sealed, 5400).ok());
  EXPECT_TRUE(dense.dense());
  EXPECT_FALSE(sealed.dense());
  EXPECT_EQ(sealed.sealed_tokens(), 5376);
  StepReport report;
  const std::vector<float> full = fixture.step(dense, sequence_, 1, {}, 1);
  const std::vector<float> all = fixture.step(sealed, sequence_, 1, {}, 1, &report);
  for (std::size_t i = 0; i < full.size(); ++i) ASSERT_NEAR(full[i], all[i], 1e-5);
  EXPECT_EQ(report.tail_share_max, 0.0f);
  EXPECT_EQ(report.coverage_min, 1.0f);
  EXPECT_TRUE(sealed.exact()) << "full attention keeps a context exact";
  // E holds the sink and the window; everything else was selected.
  EXPECT_EQ(report.rows_selected, 4 * (5120 - kSinkTokens));
}

TEST_F(WorkerTest, SmallBudgetsApproximateFullAttentionAndSaySo) {
  WorkerFixture fixture = make_worker();
  Context dense = fixture.fill(sequence_, 5376);
  Context sealed = fixture.worker->fork(dense);
  ASSERT_TRUE(fixture.worker->seal(sealed, 5376).ok());
  const std::vector<float> full = fixture.step(dense, sequence_, 1, {}, 1);
  double before = 10;
  for (const std::int64_t budget : {0, 16, 64, 256, 1024}) {
    Context context = fixture.worker->fork(sealed);
    StepReport report;
    const std::vector<float> out =
        fixture.step(context, sequence_, 1, {.budget = budget}, 1, &report);
    const double error = relative_difference(out, full);
    EXPECT_LT(error, before) << "more budget, less error: " << budget;
    before = error;
    EXPECT_EQ(report.rows_selected, 4 * budget);
    EXPECT_GT(report.tail_share(), 0);
    EXPECT_EQ(report.coverage_min, 1.0f);
    EXPECT_FALSE(context.exact());
  }
  EXPECT_LT(before, 0.03);
}

TEST_F(WorkerTest, ReferenceKernelsGiveTheSameSteps) {
  WorkerFixture simd = make_worker();
  WorkerFixture reference = make_worker({.kernels = &reference_kernels()});
  Context a = simd.fill(sequence_, 1024);
  Context b = reference.fill(sequence_, 1024);
  ASSERT_TRUE(simd.worker->seal(a, 1024).ok());
  ASSERT_TRUE(reference.worker->seal(b, 1024).ok());
  EXPECT_EQ(reference.worker->segments_found.value(), 1) << "stored by the other worker";
  for (const std::int64_t budget : {64, 256}) {
    Context x = simd.worker->fork(a);
    Context y = reference.worker->fork(b);
    EXPECT_LT(relative_difference(simd.step(x, sequence_, 3, {.budget = budget}, 5),
                                  reference.step(y, sequence_, 3, {.budget = budget}, 5)),
              1e-4);
  }
}

TEST_F(WorkerTest, AnyPageSizeGivesTheSameResult) {
  std::vector<float> first;
  for (const std::int32_t page_rows : {1, 2, 4, 8, 16}) {
    WorkerFixture fixture = make_worker({.pool_bytes = 4 << 20, .page_rows = page_rows});
    Context context = fixture.fill(sequence_, 2048);
    ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
    std::vector<float> outputs;
    for (int i = 0; i < 3; ++i) {
      const std::vector<float> out = fixture.step(context, sequence_, 1, {.budget = 64}, 5);
      outputs.insert(outputs.end(), out.begin(), out.end());
    }
    if (first.empty()) first = outputs;
    EXPECT_EQ(outputs, first) << "page_rows " << page_rows;
  }
}

TEST_F(WorkerTest, ResultsDoNotDependOnThreadsPoolSizeOrHistory) {
  std::vector<float> first;
  for (const auto& [threads, pool_bytes] :
       {std::pair(1, 1 << 20), std::pair(2, 1 << 20), std::pair(3, 20 << 10)}) {
    WorkerFixture fixture = make_worker({.threads = threads, .pool_bytes = pool_bytes});
    Context context = fixture.fill(sequence_, 2048);
    ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
    Context warm = fixture.worker->fork(context);
    if (threads == 2) (void)fixture.step(warm, sequence_, 1, {.budget = 256}, 77);
    const std::vector<float> out = fixture.step(context, sequence_, 1, {.budget = 64}, 5);
    if (first.empty()) first = out;
    EXPECT_EQ(out, first);
  }
}

TEST_F(WorkerTest, TokensOfACallSeeTheOnesBeforeThem) {
  WorkerFixture fixture = make_worker();
  Context together = fixture.fill(sequence_, 300);
  Context apart = fixture.worker->fork(together);
  const std::vector<float> at_once = fixture.step(together, sequence_, 4, {}, 5);
  const std::int32_t heads = 6;
  // The same queries, one token at a time.
  std::vector<float> one_by_one(at_once.size());
  for (std::int64_t t = 0; t < 4; ++t) {
    const std::int64_t first = apart.token_count();
    Step step = fixture.worker
                    ->begin_step({{.context = &apart,
                                   .tokens = {sequence_.tokens[static_cast<std::size_t>(first)]},
                                   .options = {}}})
                    .value();
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      step.append(layer, sequence_.k(layer, first, 1).data(), sequence_.v(layer, first, 1).data());
      const std::vector<float> q = sequence_.q(5, layer, 4, heads);
      std::vector<float> out(heads * 64);
      ASSERT_TRUE(step.attend(layer, q.data() + t * heads * 64, out.data()).ok());
      std::copy(out.begin(), out.end(), one_by_one.begin() + (layer * 4 + t) * heads * 64);
    }
    ASSERT_TRUE(step.finish().has_value());
  }
  EXPECT_LT(relative_difference(at_once, one_by_one), 1e-6);
}

// Head dimensions, query heads per KV head and calls of up to 16 tokens: everything selected is
// full attention, and a budget is what the contract's step 4 says.
TEST_F(WorkerTest, EveryShapeOfACallIsFullAttentionAtBudgetAll) {
  for (const std::int32_t d : {64, 128}) {
    const KvShape shape{.layer_count = 1, .kv_head_count = 2, .d_k = d, .d_v = d};
    const FakeSequence sequence(11, shape, 1400);
    for (const std::int32_t query_group : {1, 3, 4, 7, 8, 16}) {
      WorkerFixture fixture = make_worker({.shape = shape, .query_group = query_group});
      Context dense = fixture.fill(sequence, 1300);
      Context sealed = fixture.worker->fork(dense);
      ASSERT_TRUE(fixture.worker->seal(sealed, 1300).ok());
      for (const std::int64_t tokens : {1, 5, 16}) {
        Context full_fork = fixture.worker->fork(dense);
        Context all_fork = fixture.worker->fork(sealed);
        Context small_fork = fixture.worker->fork(sealed);
        const std::vector<float> full = fixture.step(full_fork, sequence, tokens, {}, 5);
        const std::vector<float> all = fixture.step(all_fork, sequence, tokens, {}, 5);
        for (std::size_t i = 0; i < full.size(); ++i) ASSERT_NEAR(all[i], full[i], 1e-5);
        StepReport report;
        (void)fixture.step(small_fork, sequence, tokens, {.budget = 50}, 5, &report);
        EXPECT_EQ(report.rows_selected, 2 * 50 * std::min<std::int64_t>(tokens, 4));
      }
    }
  }
}

// Every head dimension that the layout allows goes through the store: sealed by one worker,
// attached and read by another.
TEST_F(WorkerTest, EveryHeadDimensionIsStoredAndAttached) {
  for (const auto& [d_k, d_v] : {std::pair(16, 16), std::pair(32, 16), std::pair(80, 80),
                                 std::pair(96, 96), std::pair(256, 256)}) {
    const KvShape shape{.layer_count = 1, .kv_head_count = 2, .d_k = d_k, .d_v = d_v};
    const FakeSequence sequence(11, shape, 1400);
    const std::vector<std::uint32_t> tokens(sequence.tokens.begin(),
                                            sequence.tokens.begin() + 1300);
    for (const std::int32_t page_rows : {1, 16}) {
      WorkerFixture writer = make_worker({.shape = shape, .page_rows = page_rows});
      WorkerFixture reader = make_worker({.shape = shape, .page_rows = page_rows});
      Context dense = writer.fill(sequence, 1300);
      Context sealed = writer.worker->fork(dense);
      ASSERT_TRUE(writer.worker->seal(sealed, 1300).ok());
      const PrefixMatch match = reader.worker->match(tokens).value();
      ASSERT_EQ(match.token_count(), 1280) << d_k;
      Result<Context> attached = reader.worker->attach(tokens, match, AttachRows::kWindow);
      ASSERT_TRUE(attached.has_value()) << d_k << ": " << attached.error().to_string();
      reader.append(*attached, sequence, 20);
      StepReport report;
      const std::vector<float> full = writer.step(dense, sequence, 1, {}, 5);
      const std::vector<float> all = reader.step(*attached, sequence, 1, {}, 5, &report);
      EXPECT_EQ(report.coverage_min, 1.0f) << d_k;
      EXPECT_LT(relative_difference(all, full), 1e-5) << d_k;
    }
  }
}

// What one fork appends, the other does not see: not in the block they share, not when the window
// moves on, not in what is sealed.
TEST_F(WorkerTest, ForksGrowApart) {
  WorkerFixture fixture = make_worker();
  const FakeSequence other(8, kShape, 3000);
  Context context = fixture.fill(sequence_, 1100);
  ASSERT_TRUE(fixture.worker->seal(context, 1100).ok());
  Context left = fixture.worker->fork(context);
  Context right = fixture.worker->fork(context);
  fixture.append(left, sequence_, 500);
  fixture.append(right, other, 500);
  WorkerFixture alone = make_worker();
  Context expected_left = alone.fill(sequence_, 1100);
  Context expected_right = alone.worker->fork(expected_left);
  ASSERT_TRUE(alone.worker->seal(expected_left, 1100).ok());
  ASSERT_TRUE(alone.worker->seal(expected_right, 1100).ok());
  alone.append(expected_left, sequence_, 500);
  alone.append(expected_right, other, 500);
  const std::vector<float> of_left = fixture.step(left, sequence_, 1, {.budget = 64}, 5);
  EXPECT_EQ(of_left, alone.step(expected_left, sequence_, 1, {.budget = 64}, 5));
  EXPECT_EQ(fixture.step(right, other, 1, {.budget = 64}, 5),
            alone.step(expected_right, other, 1, {.budget = 64}, 5));
  EXPECT_EQ(left.segments()[0], right.segments()[0]) << "the past is shared";
  EXPECT_NE(left.prefix().back(), right.prefix().back());
  EXPECT_EQ(context.token_count(), 1100) << "and is as it was";
}

// A document ends where its writer says (seal_at): others match there, whatever follows it.
TEST_F(WorkerTest, SealedPositionsAreWhereMatchesEnd) {
  WorkerFixture writer = make_worker();
  Context context = writer.fill(sequence_, 1500);
  ASSERT_TRUE(writer.worker->seal(context, 700).ok());  // rounded down to a block: 512
  EXPECT_EQ(context.sealed_tokens(), 1024) << "what left the window is sealed too";
  ASSERT_TRUE(writer.worker->seal(context, 100).ok()) << "sealed before: nothing to do";
  std::vector<std::uint32_t> tokens(sequence_.tokens.begin(), sequence_.tokens.begin() + 1500);
  tokens[512] ^= 1;  // another text after the first 512 tokens
  EXPECT_EQ(writer.worker->match(tokens).value().token_count(), 512);
  tokens[512] ^= 1;
  tokens[1030] ^= 1;
  const PrefixMatch match = writer.worker->match(tokens).value();
  EXPECT_EQ(match.token_count(), 1024);
  Context attached = writer.worker->attach(tokens, match, AttachRows::kWindow).value();
  writer.append(attached, sequence_, 476);
  EXPECT_EQ(writer.step(attached, sequence_, 1, {.budget = 64}, 5),
            writer.step(context, sequence_, 1, {.budget = 64}, 5));
}

TEST_F(WorkerTest, BatchOfContextsIsEachByItself) {
  WorkerFixture fixture = make_worker();
  const FakeSequence other(8, kShape, 2000);
  Context a = fixture.fill(sequence_, 1024);
  Context b = fixture.fill(other, 1536);
  Context c = fixture.fill(other, 100);  // short: dense
  ASSERT_TRUE(fixture.worker->seal(a, 1024).ok());
  ASSERT_TRUE(fixture.worker->seal(b, 1536).ok());
  Context a2 = fixture.worker->fork(a);
  Context b2 = fixture.worker->fork(b);
  Context c2 = fixture.worker->fork(c);
  const std::vector<float> alone_a = fixture.step(a2, sequence_, 1, {.budget = 64}, 5);
  const std::vector<float> alone_b = fixture.step(b2, other, 2, {.budget = 32}, 6);
  const std::vector<float> alone_c = fixture.step(c2, other, 1, {.budget = 8}, 7);
  Step step =
      fixture.worker
          ->begin_step(
              {{.context = &a, .tokens = {sequence_.tokens[1024]}, .options = {.budget = 64}},
               {.context = &b,
                .tokens = {other.tokens[1536], other.tokens[1537]},
                .options = {.budget = 32}},
               {.context = &c, .tokens = {other.tokens[100]}, .options = {.budget = 8}}})
          .value();
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    const auto join = [](std::vector<float> x, const std::vector<float>& y,
                         const std::vector<float>& z) {
      x.insert(x.end(), y.begin(), y.end());
      x.insert(x.end(), z.begin(), z.end());
      return x;
    };
    step.append(
        layer,
        join(sequence_.k(layer, 1024, 1), other.k(layer, 1536, 2), other.k(layer, 100, 1)).data(),
        join(sequence_.v(layer, 1024, 1), other.v(layer, 1536, 2), other.v(layer, 100, 1)).data());
    const std::vector<float> q =
        join(sequence_.q(5, layer, 1, 6), other.q(6, layer, 2, 6), other.q(7, layer, 1, 6));
    std::vector<float> out(q.size());
    ASSERT_TRUE(step.attend(layer, q.data(), out.data()).ok());
    const std::ptrdiff_t row = 6 * 64;
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + row, alone_a.begin() + layer * row));
    EXPECT_TRUE(
        std::equal(out.begin() + row, out.begin() + 3 * row, alone_b.begin() + layer * 2 * row));
    EXPECT_TRUE(std::equal(out.begin() + 3 * row, out.end(), alone_c.begin() + layer * row));
  }
  ASSERT_TRUE(step.finish().has_value());
}

TEST_F(WorkerTest, WindowAdvancesAndSealsWhatLeavesIt) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 1024);
  Context dense = fixture.worker->fork(context);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  EXPECT_EQ(context.sealed_tokens(), 1024);
  fixture.append(dense, sequence_, 600);
  for (int i = 0; i < 600; i += 10) fixture.append(context, sequence_, 10);
  // 1624 tokens: the window begins at 1280, so [1024, 1280) was sealed on the way.
  EXPECT_EQ(context.token_count(), 1624);
  EXPECT_EQ(context.sealed_tokens(), 1280);
  const std::vector<float> all = fixture.step(context, sequence_, 1, {}, 5);
  const std::vector<float> full = fixture.step(dense, sequence_, 1, {}, 5);
  EXPECT_LT(relative_difference(all, full), 1e-6);
}

TEST_F(WorkerTest, DecodedTokensAtASmallBudgetAreNotFoundByOthers) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  for (int i = 0; i < 520; ++i) (void)fixture.step(context, sequence_, 1, {.budget = 16}, 5);
  EXPECT_EQ(context.sealed_tokens(), 1280);
  EXPECT_FALSE(context.exact());
  const auto tokens = std::span(sequence_.tokens).first(1536);
  EXPECT_EQ(fixture.worker->match(tokens).value().token_count(), 1024);
}

TEST_F(WorkerTest, StepThatIsDroppedLeavesNoTrace) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  Context untouched = fixture.worker->fork(context);
  {
    Step step =
        fixture.worker->begin_step({{.context = &context, .tokens = {1, 2, 3}, .options = {}}})
            .value();
    step.append(0, sequence_.k(0, 5, 3).data(), sequence_.v(0, 5, 3).data());
  }
  EXPECT_EQ(context.token_count(), 1024);
  EXPECT_EQ(fixture.step(context, sequence_, 1, {.budget = 64}, 5),
            fixture.step(untouched, sequence_, 1, {.budget = 64}, 5));
}

// ------------------------------------------------------------------------------ attach and match

TEST_F(WorkerTest, AttachedContextAttendsAsTheOneThatWasSealed) {
  for (const std::int64_t tokens : {256, 512, 1024, 5376, 5400}) {
    WorkerFixture writer = make_worker();
    Context written = writer.fill(sequence_, tokens);
    ASSERT_TRUE(writer.worker->seal(written, tokens).ok());
    const std::int64_t stored = tokens / 256 * 256;
    WorkerFixture reader = make_worker();
    const auto prompt = std::span(sequence_.tokens).first(static_cast<std::size_t>(tokens));
    const PrefixMatch match = reader.worker->match(prompt).value();
    ASSERT_EQ(match.token_count(), stored) << tokens;
    Context attached = reader.worker->attach(prompt, match, AttachRows::kWindow).value();
    EXPECT_EQ(attached.token_count(), stored);
    if (tokens > stored) reader.append(attached, sequence_, tokens - stored);
    Context again = writer.worker->fork(written);
    EXPECT_EQ(reader.step(attached, sequence_, 1, {.budget = 64}, 5),
              writer.step(again, sequence_, 1, {.budget = 64}, 5))
        << tokens;
  }
}

TEST_F(WorkerTest, AttachingAllRowsGivesBackTheDenseContext) {
  WorkerFixture fixture = make_worker();
  Context dense = fixture.fill(sequence_, 5376);
  Context sealed = fixture.worker->fork(dense);
  ASSERT_TRUE(fixture.worker->seal(sealed, 5376).ok());
  const auto prompt = std::span(sequence_.tokens).first(5376);
  Context attached =
      fixture.worker->attach(prompt, fixture.worker->match(prompt).value(), AttachRows::kAll)
          .value();
  EXPECT_TRUE(attached.dense());
  EXPECT_TRUE(attached.exact());
  EXPECT_EQ(fixture.step(attached, sequence_, 1, {}, 5), fixture.step(dense, sequence_, 1, {}, 5));
}

TEST_F(WorkerTest, MatchFollowsThePrefixAsFarAsItGoes) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 5376);
  ASSERT_TRUE(fixture.worker->seal(context, 5376).ok());  // 4096 + 1024 + 256
  std::vector<std::uint32_t> tokens(sequence_.tokens.begin(), sequence_.tokens.begin() + 5376);
  EXPECT_EQ(fixture.worker->match(tokens).value().token_count(), 5376);
  tokens[5200] ^= 1;  // in the last segment
  EXPECT_EQ(fixture.worker->match(tokens).value().token_count(), 5120);
  tokens[3] ^= 1;
  const PrefixMatch nothing = fixture.worker->match(tokens).value();
  EXPECT_EQ(nothing.token_count(), 0);
  EXPECT_EQ(nothing.miss.reason(), MissReason::kNeverStored);
}

TEST_F(WorkerTest, AnotherModelIsNamedByTheFieldThatDiffers) {
  WorkerFixture writer = make_worker();
  Context context = writer.fill(sequence_, 1024);
  ASSERT_TRUE(writer.worker->seal(context, 1024).ok());
  WorkerFixture reader = make_worker({.model_name = "other model"});
  const PrefixMatch match = reader.worker->match(std::span(sequence_.tokens).first(1024)).value();
  EXPECT_EQ(match.token_count(), 0);
  EXPECT_EQ(match.miss.reason(), MissReason::kFingerprint);
  EXPECT_NE(match.miss.message().find("model_name is test model, here other model"),
            std::string::npos)
      << match.miss.to_string();
}

TEST_F(WorkerTest, SealingTwiceStoresOnce) {
  WorkerFixture one = make_worker();
  WorkerFixture two = make_worker();
  Context a = one.fill(sequence_, 1024);
  Context b = two.fill(sequence_, 1024);
  ASSERT_TRUE(one.worker->seal(a, 1024).ok());
  ASSERT_TRUE(two.worker->seal(b, 1024).ok());
  EXPECT_EQ(two.worker->segments_built.value(), 0);
  EXPECT_EQ(two.worker->segments_found.value(), 1);
  const ListBuildsReply listed =
      sync_wait(node_->executor(), node_->store().list_builds("", Deadline::never())).value();
  EXPECT_EQ(listed.builds.size(), 1u);
}

// ---------------------------------------------------------------------------------- the hot pool

TEST_F(WorkerTest, SameSelectionAgainHitsThePool) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 2048);
  ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
  StepReport cold;
  StepReport warm;
  Context fork = fixture.worker->fork(context);
  (void)fixture.step(context, sequence_, 1, {.budget = 64}, 5, &cold);
  (void)fixture.step(fork, sequence_, 1, {.budget = 64}, 5, &warm);
  EXPECT_EQ(cold.page_hits, 0);
  EXPECT_EQ(cold.bytes_moved, 4 * 64 * 256);
  EXPECT_EQ(warm.page_hits, 4 * 64);
  EXPECT_EQ(warm.bytes_moved, 0) << "a step whose pages all hit needs no network";
}

TEST_F(WorkerTest, HotBytesCountPoolWindowSinkAndIndexOnce) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 5376);
  const Context* dense[] = {&context};
  EXPECT_GE(fixture.worker->hot_bytes(dense), 5376 * kShape.token_bytes());
  ASSERT_TRUE(fixture.worker->seal(context, 5376).ok());
  Context fork = fixture.worker->fork(context);
  const Context* one[] = {&context};
  const Context* both[] = {&context, &fork};
  const std::int64_t bytes = fixture.worker->hot_bytes(one);
  EXPECT_EQ(fixture.worker->hot_bytes(both), bytes) << "forks share what they have in common";
  std::int64_t index = 0;
  for (const auto& segment : context.segments()) index += segment->index->bytes();
  for (std::int32_t layer = 0; layer < kShape.layer_count; ++layer) {
    for (std::int32_t head = 0; head < kShape.kv_head_count; ++head) {
      EXPECT_FALSE(context.slope(layer, head).empty()) << "the first segment carries one";
      index += context.slope(layer, head).bytes();
    }
  }
  EXPECT_EQ(bytes,
            index + (kSinkTokens + 256) * kShape.token_bytes() + fixture.worker->hot_bytes({}));
  EXPECT_LT(fixture.worker->hot_bytes({}), 1 << 20);
}

// ------------------------------------------------------------------------------------- bad input

TEST_F(WorkerTest, NonsenseIsRefused) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  const auto begin = [&](std::vector<std::uint32_t> tokens, AttendOptions options) {
    return fixture.worker
        ->begin_step({{.context = &context, .tokens = std::move(tokens), .options = options}})
        .status()
        .code();
  };
  EXPECT_EQ(begin({}, {}), Code::kInvalidArgument);
  EXPECT_EQ(begin(std::vector<std::uint32_t>(17, 1), {}), Code::kInvalidArgument);
  EXPECT_EQ(begin({1}, {.budget = -7}), Code::kInvalidArgument);
  EXPECT_EQ(begin({1}, {.layer_budgets = {1, 2, 3}}), Code::kInvalidArgument);
  EXPECT_EQ(begin({1}, {.breadth = -2}), Code::kInvalidArgument);
  EXPECT_EQ(begin({1}, {.coverage_floor = 2}), Code::kInvalidArgument);
  EXPECT_EQ(fixture.worker->begin_step({}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(fixture.worker->seal(context, 5000).code(), Code::kInvalidArgument);
  EXPECT_EQ(fixture.worker->seal(context, -1).code(), Code::kInvalidArgument);
}

TEST_F(WorkerTest, LayersMayHaveBudgetsOfTheirOwn) {
  WorkerFixture fixture = make_worker();
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  StepReport report;
  (void)fixture.step(context, sequence_, 1, {.layer_budgets = {8, 100}}, 5, &report);
  EXPECT_EQ(report.rows_selected, 2 * (8 + 100));
}

}  // namespace
}  // namespace icefield
