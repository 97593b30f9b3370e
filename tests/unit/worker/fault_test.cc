// What a worker does when nodes are slow, stuck, full or gone.
#include <gtest/gtest.h>

#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

class Fault : public testing::Test {
 protected:
  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  FakeSequence sequence_{7, kShape, 3000};

  void stop_node() {
    ASSERT_TRUE(sync_wait(node_->executor(), node_->transport().stop("embedded")).ok());
  }
};

TEST_F(Fault, LostNodeCostsQualityNotTheStep) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 2048);
  Context dense = fixture.worker->fork(context);
  ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
  stop_node();
  StepReport report;
  const std::vector<float> out = fixture.step(context, sequence_, 1, {.budget = 64}, 5, &report);
  EXPECT_LT(report.coverage_min, 1.0f);
  EXPECT_EQ(report.page_failures, 4 * 64);
  EXPECT_EQ(report.first_fault.code(), Code::kUnavailable);
  for (const float value : out) EXPECT_TRUE(std::isfinite(value));
  // Everything by means and codes is still an approximation of full attention.
  const std::vector<float> full = fixture.step(dense, sequence_, 1, {}, 5);
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    difference += std::pow(static_cast<double>(out[i] - full[i]), 2);
    norm += std::pow(static_cast<double>(full[i]), 2);
  }
  EXPECT_LT(std::sqrt(difference / norm), 0.6);
}

TEST_F(Fault, FullAttentionWithALostNodeFallsBackToTheCodes) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  stop_node();
  StepReport report;
  (void)fixture.step(context, sequence_, 1, {}, 5, &report);
  EXPECT_LT(report.coverage_min, 1.0f);
  EXPECT_FALSE(context.exact());
}

TEST_F(Fault, CoverageBelowTheFloorFailsTheStepAndLeavesTheContext) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  stop_node();
  Step step = fixture.worker
                  ->begin_step({{.context = &context,
                                 .tokens = {1},
                                 .options = {.budget = 64, .coverage_floor = 0.999f}}})
                  .value();
  step.append(0, sequence_.k(0, 1024, 1).data(), sequence_.v(0, 1024, 1).data());
  std::vector<float> out(6 * 64);
  const Status status = step.attend(0, sequence_.q(5, 0, 1, 6).data(), out.data());
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("below the floor"), std::string::npos) << status.to_string();
}

TEST_F(Fault, AttachWithoutANodeIsAMissNotAHang) {
  WorkerFixture writer(*node_, {.shape = kShape});
  Context context = writer.fill(sequence_, 1024);
  ASSERT_TRUE(writer.worker->seal(context, 1024).ok());
  WorkerFixture reader(*node_, {.shape = kShape});
  const auto prompt = std::span(sequence_.tokens).first(1024);
  const PrefixMatch match = reader.worker->match(prompt).value();
  stop_node();
  EXPECT_EQ(reader.worker->attach(prompt, match, AttachRows::kWindow).status().code(),
            Code::kUnavailable);
  EXPECT_EQ(reader.worker->match(prompt).status().code(), Code::kUnavailable);
}

TEST_F(Fault, SealWithoutANodeKeepsTheRows) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  Context untouched = fixture.worker->fork(context);
  stop_node();
  EXPECT_FALSE(fixture.worker->seal(context, 1024).ok());
  EXPECT_TRUE(context.dense());
  EXPECT_EQ(fixture.step(context, sequence_, 1, {}, 5),
            fixture.step(untouched, sequence_, 1, {}, 5));
}

TEST_F(Fault, DecodingGoesOnWhenTheWindowCannotBeSealed) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  Context dense = fixture.worker->fork(context);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  stop_node();
  fixture.append(context, sequence_, 800);
  fixture.append(dense, sequence_, 800);
  EXPECT_GT(fixture.worker->seal_failures.value(), 0);
  EXPECT_EQ(context.sealed_tokens(), 1024);
  EXPECT_EQ(context.token_count(), 1824) << "the rows stayed in the window";
}

TEST_F(Fault, FullMemoryWithoutADiskIsExplainedAndLosesNothing) {
  const auto small = EmbeddedNode::open({.dram_bytes = 1 << 20}).value();
  WorkerFixture fixture(*small, {.shape = kShape});
  Context context = fixture.fill(sequence_, 2048);
  Context untouched = fixture.worker->fork(context);
  const Status status = fixture.worker->seal(context, 2048);
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(context.dense());
  EXPECT_EQ(fixture.step(context, sequence_, 1, {}, 5),
            fixture.step(untouched, sequence_, 1, {}, 5));
  const ListBuildsReply listed =
      sync_wait(small->executor(), small->store().list_builds("", Deadline::never())).value();
  EXPECT_TRUE(listed.builds.empty()) << "half a build is no build";
}

// A second document pushes the first out of memory: whole builds go, not parts of them.
TEST_F(Fault, EvictedBuildsAreMisses) {
  const auto small = EmbeddedNode::open({.dram_bytes = 3 << 20}).value();
  WorkerFixture fixture(*small, {.shape = kShape});
  const FakeSequence other(8, kShape, 1100);
  {
    Context first = fixture.fill(sequence_, 1024);
    ASSERT_TRUE(fixture.worker->seal(first, 1024).ok());
  }
  {
    Context second = fixture.fill(other, 1024);
    ASSERT_TRUE(fixture.worker->seal(second, 1024).ok());
    Context third = fixture.fill(FakeSequence(9, kShape, 1024), 1024);
    ASSERT_TRUE(fixture.worker->seal(third, 1024).ok());
  }
  EXPECT_EQ(fixture.worker->match(std::span(sequence_.tokens).first(1024)).value().token_count(),
            0);
  EXPECT_EQ(sync_wait(small->executor(), small->store().list_builds("", Deadline::never()))
                .value()
                .builds.size(),
            2u);
}

// ---------------------------------------------------------------------------- on_miss = tail

TEST_F(Fault, NotWaitingLeavesMissesToTheTailAndReadsThemBehind) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 2048);
  ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
  const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail};
  StepReport cold;
  StepReport warm;
  Context first = fixture.worker->fork(context);
  (void)fixture.step(first, sequence_, 1, options, 5, &cold);
  EXPECT_EQ(cold.pages_touched, 4 * 64);
  EXPECT_EQ(cold.page_hits, 0);
  EXPECT_EQ(cold.rows_selected, 0) << "none was there";
  EXPECT_EQ(cold.bytes_moved, 0);
  EXPECT_EQ(cold.page_failures, 0) << "none was asked for";
  EXPECT_LT(cold.coverage_min, 1.0f) << "a page that is not waited for is a fault";
  EXPECT_FALSE(first.exact());
  fixture.worker->wait_for_missed_pages();
  Context second = fixture.worker->fork(context);
  const std::vector<float> out = fixture.step(second, sequence_, 1, options, 5, &warm);
  EXPECT_EQ(warm.page_hits, 4 * 64);
  EXPECT_EQ(warm.bytes_moved, 4 * 64 * kShape.row_bytes()) << "between the steps";
  EXPECT_EQ(warm.coverage_min, 1.0f);
  EXPECT_EQ(out, fixture.step(context, sequence_, 1, {.budget = 64}, 5))
      << "with all pages there, as when it waits";
}

TEST_F(Fault, NotWaitingDoesNotCareWhetherNodesAnswer) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  stop_node();
  const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail};
  StepReport report;
  (void)fixture.step(context, sequence_, 1, options, 5, &report);
  EXPECT_TRUE(report.first_fault.ok());
  fixture.worker->wait_for_missed_pages();
  (void)fixture.step(context, sequence_, 1, options, 5, &report);
  EXPECT_EQ(report.page_failures, 4 * 64) << "said by the step after";
  EXPECT_EQ(report.first_fault.code(), Code::kUnavailable);
  // The floor holds for pages that were not waited for.
  Step step =
      fixture.worker
          ->begin_step(
              {{.context = &context,
                .tokens = {1},
                .options = {.budget = 64, .on_miss = OnMiss::kTail, .coverage_floor = 0.999f}}})
          .value();
  step.append(0, sequence_.k(0, 1026, 1).data(), sequence_.v(0, 1026, 1).data());
  std::vector<float> out(6 * 64);
  EXPECT_EQ(step.attend(0, sequence_.q(5, 0, 1, 6).data(), out.data()).code(), Code::kUnavailable);
}

// A layer is refused, its pages are read, and the step tried again gets further.
TEST_F(Fault, StepsThatTheFloorRefusedSucceedOnceTheirPagesAreRead) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  Context context = fixture.fill(sequence_, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail, .coverage_floor = 0.999f};
  std::vector<float> out(6 * 64);
  const auto layers_attended = [&] {
    Step step =
        fixture.worker->begin_step({{.context = &context, .tokens = {1}, .options = options}})
            .value();
    std::int32_t layer = 0;
    for (; layer < kShape.layer_count; ++layer) {
      step.append(layer, sequence_.k(layer, 1024, 1).data(), sequence_.v(layer, 1024, 1).data());
      const Status status = step.attend(layer, sequence_.q(5, layer, 1, 6).data(), out.data());
      EXPECT_TRUE(status.ok() || status.code() == Code::kUnavailable) << status.to_string();
      if (!status.ok()) break;
    }
    return layer;
  };
  for (std::int32_t layer = 0; layer <= kShape.layer_count; ++layer) {
    EXPECT_EQ(layers_attended(), layer);
    fixture.worker->wait_for_missed_pages();
  }
}

// What is read behind a step may be of a segment that is gone when it comes, and whose number is
// another's by then.
TEST_F(Fault, PagesOfSegmentsThatWentAreForgotten) {
  WorkerFixture fixture(*node_, {.shape = kShape});
  const FakeSequence other(8, kShape, 1100);
  const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail};
  {
    Context context = fixture.fill(sequence_, 1024);
    ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
    (void)fixture.step(context, sequence_, 1, options, 5);
  }
  Context context = fixture.fill(other, 1024);
  ASSERT_TRUE(fixture.worker->seal(context, 1024).ok());
  fixture.worker->wait_for_missed_pages();
  StepReport report;
  (void)fixture.step(context, other, 1, options, 5, &report);
  EXPECT_EQ(report.page_hits, 0);
  fixture.worker->wait_for_missed_pages();
  Context fork = fixture.worker->fork(context);
  EXPECT_EQ(fixture.step(context, other, 1, options, 5),
            fixture.step(fork, other, 1, {.budget = 64}, 5));
}

// A disk below: what memory has no room for is served from it.
TEST_F(Fault, SmallMemoryOverADiskServesEverything) {
  TempDir dir;
  const auto small = EmbeddedNode::open({.dram_bytes = 1 << 20, .store = dir.file("s")}).value();
  WorkerFixture fixture(*small, {.shape = kShape});
  Context context = fixture.fill(sequence_, 2048);
  Context dense = fixture.worker->fork(context);
  ASSERT_TRUE(fixture.worker->seal(context, 2048).ok());
  StepReport report;
  const std::vector<float> all = fixture.step(context, sequence_, 1, {}, 5, &report);
  const std::vector<float> full = fixture.step(dense, sequence_, 1, {}, 5);
  EXPECT_EQ(report.coverage_min, 1.0f);
  for (std::size_t i = 0; i < full.size(); ++i) ASSERT_NEAR(all[i], full[i], 1e-5);
}

}  // namespace
}  // namespace icefield
