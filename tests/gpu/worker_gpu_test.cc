// The worker on the GPU (or its emulation) beside the worker on the CPU: the same contexts, the
// same rows selected, the same outputs.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/worker_fixture.h"
#include "worker/gpu_attention.h"

namespace icefield {
namespace {

// As in attend_cuda_test.
constexpr float kTolerance = 1e-3f;

// One context of a batch.
struct Item {
  Context* context = nullptr;
  const FakeSequence* sequence = nullptr;
  std::int64_t tokens = 1;
  AttendOptions options;
  std::uint64_t query_seed = 5;
};

// What a step gave.
struct Ran {
  std::vector<float> out;          // of all layers
  std::vector<TableRow> selected;  // of all layers, items and KV heads
  StepReport report;
  Status status;
};

void append_to(std::vector<float>& all, const std::vector<float>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

Ran run(WorkerFixture& fixture, const std::vector<Item>& items) {
  const KvShape& shape = fixture.options.shape;
  const std::int32_t heads = shape.kv_head_count * fixture.options.query_group;
  std::vector<StepItem> step_items;
  std::vector<std::int64_t> first;
  for (const Item& item : items) {
    first.push_back(item.context->token_count());
    const auto begin = item.sequence->tokens.begin() + first.back();
    step_items.push_back(
        {.context = item.context, .tokens = {begin, begin + item.tokens}, .options = item.options});
  }
  Ran ran;
  Result<Step> step = fixture.worker->begin_step(std::move(step_items));
  ran.status = step.status();
  if (!ran.status.ok()) return ran;
  for (std::int32_t layer = 0; layer < shape.layer_count; ++layer) {
    std::vector<float> k, v, q;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const Item& item = items[i];
      append_to(k, item.sequence->k(layer, first[i], item.tokens));
      append_to(v, item.sequence->v(layer, first[i], item.tokens));
      append_to(q, item.sequence->q(item.query_seed, layer, item.tokens, heads));
    }
    step->append(layer, k.data(), v.data());
    std::vector<float> out(q.size(), NAN);
    ran.status = step->attend(layer, q.data(), out.data());
    if (!ran.status.ok()) return ran;
    append_to(ran.out, out);
    for (std::size_t i = 0; i < items.size(); ++i) {
      for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
        const std::span<const TableRow> rows = step->selected(i, head);
        ran.selected.insert(ran.selected.end(), rows.begin(), rows.end());
      }
    }
  }
  ran.report = step->finish().value();
  return ran;
}

void expect_same(const Ran& gpu, const Ran& cpu) {
  ASSERT_TRUE(gpu.status.ok()) << gpu.status.to_string();
  ASSERT_EQ(gpu.out.size(), cpu.out.size());
  float largest = 1e-3f;
  for (const float x : cpu.out) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < gpu.out.size(); ++i) {
    ASSERT_NEAR(gpu.out[i], cpu.out[i], kTolerance * largest) << "out " << i;
  }
  EXPECT_EQ(gpu.selected, cpu.selected);
  EXPECT_EQ(gpu.report.attend_groups, cpu.report.attend_groups);
  EXPECT_EQ(gpu.report.rows_selected, cpu.report.rows_selected);
  EXPECT_EQ(gpu.report.pages_touched, cpu.report.pages_touched);
  EXPECT_EQ(gpu.report.page_hits, cpu.report.page_hits);
  EXPECT_EQ(gpu.report.page_failures, cpu.report.page_failures);
  EXPECT_EQ(gpu.report.bytes_moved, cpu.report.bytes_moved);
  EXPECT_EQ(gpu.report.tail_rows, cpu.report.tail_rows);
  EXPECT_NEAR(gpu.report.tail_share(), cpu.report.tail_share(), 1e-4);
  EXPECT_NEAR(gpu.report.tail_share_max, cpu.report.tail_share_max, 1e-4f);
  EXPECT_NEAR(gpu.report.coverage_min, cpu.report.coverage_min, 1e-4f);
}

class WorkerGpu : public testing::Test {
 protected:
  static constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

  // Two workers that differ in the processor.
  struct Pair {
    std::unique_ptr<WorkerFixture> cpu, gpu;
    GpuAttention* attention = nullptr;  // of `gpu`

    // The same on both.
    template <class F>
    void on_both(F&& scenario) {
      const std::vector<Ran> on_cpu = scenario(*cpu);
      const std::vector<Ran> on_gpu = scenario(*gpu);
      ASSERT_EQ(on_gpu.size(), on_cpu.size());
      for (std::size_t i = 0; i < on_gpu.size(); ++i) {
        SCOPED_TRACE("step " + std::to_string(i));
        expect_same(on_gpu[i], on_cpu[i]);
      }
    }
  };
  Pair make(WorkerFixture::Options options = {}) {
    Pair pair;
    pair.cpu = std::make_unique<WorkerFixture>(*node_, options);
    const auto make_attention = [&pair](const AttentionShape& shape) {
      std::unique_ptr<GpuAttention> attention = GpuAttention::create(shape).value();
      pair.attention = attention.get();
      return attention;
    };
    pair.gpu = std::make_unique<WorkerFixture>(*node_, options, make_attention);
    return pair;
  }

  static Context sealed(WorkerFixture& fixture, const FakeSequence& sequence, std::int64_t tokens) {
    Context context = fixture.fill(sequence, tokens);
    EXPECT_TRUE(fixture.worker->seal(context, tokens).ok());
    return context;
  }
  void stop_node() {
    ASSERT_TRUE(sync_wait(node_->executor(), node_->transport().stop("embedded")).ok());
  }

  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  FakeSequence sequence_{7, kShape, 2400};
  FakeSequence other_{8, kShape, 1400};
};

TEST_F(WorkerGpu, EveryShapeOfACall) {
  struct Case {
    std::int32_t d, heads, query_group;
  };
  for (const Case& c : {Case{64, 1, 4}, Case{64, 2, 1}, Case{128, 1, 1}, Case{128, 2, 3}}) {
    SCOPED_TRACE(testing::Message() << c.d << " " << c.heads << " " << c.query_group);
    const KvShape shape{.layer_count = 1, .kv_head_count = c.heads, .d_k = c.d, .d_v = c.d};
    const FakeSequence sequence(11, shape, 1100);
    Pair pair = make({.shape = shape, .query_group = c.query_group});
    pair.on_both([&](WorkerFixture& fixture) {
      const Context context = sealed(fixture, sequence, 1050);
      std::vector<Ran> ran;
      const auto add = [&](std::int64_t tokens, std::int64_t budget) {
        Context fork = fixture.worker->fork(context);
        ran.push_back(run(fixture, {{&fork, &sequence, tokens, {.budget = budget}}}));
      };
      add(1, 0);
      add(1, 50);
      add(1, kBudgetAll);
      add(5, 50);
      add(16, 50);
      return ran;
    });
  }
}

TEST_F(WorkerGpu, AnyPageSizeAndAPoolThatIsTooSmall) {
  for (const std::int32_t page_rows : {1, 4, 16}) {
    for (const std::int64_t pool_bytes : {std::int64_t{20} << 10, std::int64_t{1} << 20}) {
      SCOPED_TRACE(testing::Message() << page_rows << " rows, " << pool_bytes << " bytes");
      Pair pair = make({.pool_bytes = pool_bytes, .page_rows = page_rows});
      pair.on_both([&](WorkerFixture& fixture) {
        Context context = sealed(fixture, sequence_, 1100);
        std::vector<Ran> ran;
        for (const std::uint64_t seed : {5u, 6u}) {
          ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 64}, seed}}));
        }
        if (page_rows == 4) ran.push_back(run(fixture, {{&context, &sequence_, 1, {}}}));
        // Without waiting, pages that went are not there: neither in a slot that is another's by
        // now, nor beside the pool.
        const AttendOptions at_once{.budget = 64, .on_miss = OnMiss::kTail};
        ran.push_back(run(fixture, {{&context, &sequence_, 1, at_once, 5}}));
        EXPECT_LT(ran.back().report.coverage_min, pool_bytes < (1 << 20) ? 1.0f : 1.1f);
        return ran;
      });
    }
  }
}

TEST_F(WorkerGpu, ContextWithASlopeMovesAlongIt) {
  const KvShape shape{.layer_count = 1, .kv_head_count = 1, .d_k = 64, .d_v = 64};
  const FakeSequence sequence(13, shape, 4500);
  Pair pair = make({.shape = shape});
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = sealed(fixture, sequence, 4400);
    EXPECT_FALSE(context.slope(0, 0).empty());
    std::vector<Ran> ran;
    for (int i = 0; i < 2; ++i) {
      ran.push_back(run(fixture, {{&context, &sequence, 1, {.budget = 32}}}));
    }
    return ran;
  });
}

TEST_F(WorkerGpu, DenseContextsAndCallsOfManyTokens) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = fixture.fill(sequence_, 130);
    std::vector<Ran> ran;
    for (const std::int64_t tokens : {1, 100, 3}) {  // 300 query rows at once
      ran.push_back(run(fixture, {{&context, &sequence_, tokens, {}}}));
    }
    return ran;
  });
}

TEST_F(WorkerGpu, ForksGrowApart) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context left = sealed(fixture, sequence_, 1100);
    std::vector<Ran> ran;
    ran.push_back(run(fixture, {{&left, &sequence_, 1, {.budget = 64}}}));
    Context right = fixture.worker->fork(left);
    ran.push_back(run(fixture, {{&left, &sequence_, 2, {.budget = 64}}}));
    ran.push_back(run(fixture, {{&right, &other_, 2, {.budget = 64}}}));
    ran.push_back(run(fixture, {{&left, &sequence_, 1, {.budget = 64}}}));
    ran.push_back(run(fixture, {{&right, &other_, 1, {.budget = 64}}}));
    return ran;
  });
}

TEST_F(WorkerGpu, BatchOfContextsIsEachByItself) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context a = sealed(fixture, sequence_, 1024);
    Context b = sealed(fixture, other_, 1280);
    Context c = fixture.fill(other_, 100);  // short: dense
    Context d = fixture.worker->fork(a);
    std::vector<Ran> ran;
    for (int i = 0; i < 2; ++i) {
      ran.push_back(run(fixture, {{&a, &sequence_, 1, {.budget = 64}},
                                  {&b, &other_, 2, {.budget = 32}, 6},
                                  {&c, &other_, 1, {.budget = 8}, 7},
                                  {&d, &sequence_, 1, {.budget = 64}, 5}}));
    }
    return ran;
  });
}

TEST_F(WorkerGpu, WindowThatMovesOnIsSealedAndForgotten) {
  Pair pair = make({.query_group = 1});
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = sealed(fixture, sequence_, 1024);
    std::vector<Ran> ran;
    ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 16}}}));
    fixture.append(context, sequence_, 510);
    EXPECT_EQ(context.sealed_tokens(), 1024);
    for (int i = 0; i < 4; ++i) {  // 1 536 tokens: [1024, 1280) leaves the window
      ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 16}}}));
    }
    EXPECT_EQ(context.sealed_tokens(), 1280);
    return ran;
  });
}

TEST_F(WorkerGpu, DroppedStepLeavesNoTrace) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = sealed(fixture, sequence_, 1030);
    {
      Step step =
          fixture.worker->begin_step({{.context = &context, .tokens = {1, 2, 3}, .options = {}}})
              .value();
      step.append(0, other_.k(0, 5, 3).data(), other_.v(0, 5, 3).data());
      std::vector<float> out(3 * 6 * 64);
      EXPECT_TRUE(step.attend(0, other_.q(5, 0, 3, 6).data(), out.data()).ok());
    }
    EXPECT_EQ(context.token_count(), 1030);
    return std::vector<Ran>{run(fixture, {{&context, &sequence_, 1, {.budget = 64}}})};
  });
}

TEST_F(WorkerGpu, AttachedContextAttendsAsTheOneThatWasSealed) {
  Pair pair = make();
  { const Context written = sealed(*pair.cpu, sequence_, 1300); }
  for (const AttachRows rows : {AttachRows::kWindow, AttachRows::kAll}) {
    pair.on_both([&](WorkerFixture& fixture) {
      const auto prompt = std::span(sequence_.tokens).first(1300);
      const PrefixMatch match = fixture.worker->match(prompt).value();
      Context context = fixture.worker->attach(prompt, match, rows).value();
      EXPECT_EQ(context.token_count(), 1280);
      return std::vector<Ran>{run(fixture, {{&context, &sequence_, 3, {.budget = 64}}})};
    });
  }
}

// ---------------------------------------------------------------------------------------- faults

TEST_F(WorkerGpu, LostNodeCostsQualityNotTheStep) {
  Pair pair = make();
  Context on_cpu = sealed(*pair.cpu, sequence_, 1100);
  Context on_gpu = sealed(*pair.gpu, sequence_, 1100);
  // Some pages are in the pool, others will not come.
  const auto step = [&](AttendOptions options, std::uint64_t seed) {
    Context cpu_fork = pair.cpu->worker->fork(on_cpu);
    Context gpu_fork = pair.gpu->worker->fork(on_gpu);
    const Ran cpu = run(*pair.cpu, {{&cpu_fork, &sequence_, 1, options, seed}});
    const Ran gpu = run(*pair.gpu, {{&gpu_fork, &sequence_, 1, options, seed}});
    expect_same(gpu, cpu);
    EXPECT_EQ(gpu_fork.exact(), cpu_fork.exact());
    return gpu;
  };
  step({.budget = 64}, 5);
  stop_node();
  const Ran partly = step({.budget = 64}, 6);
  EXPECT_GT(partly.report.page_failures, 0);
  EXPECT_LT(partly.report.coverage_min, 1.0f);
  EXPECT_EQ(partly.report.first_fault.code(), Code::kUnavailable);
  EXPECT_LT(step({}, 5).report.coverage_min, 1.0f) << "all rows wanted";
  const Ran below =
      run(*pair.gpu, {{&on_gpu, &sequence_, 1, {.budget = 200, .coverage_floor = 0.9999f}, 8}});
  EXPECT_EQ(below.status.code(), Code::kUnavailable);
  EXPECT_NE(below.status.message().find("below the floor"), std::string::npos);
}

// ------------------------------------------------------------------------------- on_miss = tail

TEST_F(WorkerGpu, NotWaitingGivesTheSameAsOnTheCpuAndPagesComeBehind) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = sealed(fixture, sequence_, 1100);
    const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail};
    std::vector<Ran> ran;
    for (const std::uint64_t seed : {5u, 5u, 6u, 6u}) {
      ran.push_back(run(fixture, {{&context, &sequence_, 1, options, seed}}));
      fixture.worker->wait_for_missed_pages();
    }
    EXPECT_EQ(ran[0].report.rows_selected, 0);
    EXPECT_LT(ran[0].report.coverage_min, 1.0f);
    EXPECT_GT(ran[1].report.page_hits, 3 * 64);
    EXPECT_GT(ran[1].report.coverage_min, ran[0].report.coverage_min);
    return ran;
  });
}

TEST_F(WorkerGpu, NotWaitingIsOneGraphForAllLayersOfAllSteps) {
  Pair pair = make();
  Context context = sealed(*pair.gpu, sequence_, 1100);
  const AttendOptions options{.budget = 64, .on_miss = OnMiss::kTail};
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(run(*pair.gpu, {{&context, &sequence_, 1, options}}).status.ok());
  }
  EXPECT_EQ(pair.attention->graph_launches(), 3 * kShape.layer_count);
  EXPECT_EQ(pair.attention->graphs_recorded(), 1);
  ASSERT_TRUE(run(*pair.gpu, {{&context, &sequence_, 2, options}}).status.ok());
  EXPECT_EQ(pair.attention->graphs_recorded(), 2) << "another shape";
}

TEST_F(WorkerGpu, SomeOfABatchMayWait) {
  for (const std::int64_t pool_bytes : {std::int64_t{20} << 10, std::int64_t{1} << 20}) {
    Pair pair = make({.pool_bytes = pool_bytes});
    pair.on_both([&](WorkerFixture& fixture) {
      Context a = sealed(fixture, sequence_, 1100);
      Context b = fixture.worker->fork(a);
      Context c = sealed(fixture, other_, 1100);
      std::vector<Ran> ran;
      for (int i = 0; i < 2; ++i) {
        ran.push_back(run(fixture, {{&a, &sequence_, 1, {.budget = 64, .on_miss = OnMiss::kTail}},
                                    {&b, &sequence_, 1, {.budget = 50}},
                                    {&c, &other_, 1, {.budget = 64, .on_miss = OnMiss::kTail}}}));
        fixture.worker->wait_for_missed_pages();
      }
      return ran;
    });
  }
}

// ---------------------------------------------------------------------------------------- memory

TEST_F(WorkerGpu, ContextsThatGoFreeWhatTheyHadOnTheGpu) {
  Pair pair = make();
  const auto use = [&] {
    Context context = sealed(*pair.gpu, sequence_, 1100);
    const Ran ran = run(*pair.gpu, {{&context, &sequence_, 1, {.budget = 64}}});
    EXPECT_TRUE(ran.status.ok());
    const std::int64_t with_one = pair.attention->gpu_bytes();
    Context fork = pair.gpu->worker->fork(context);
    EXPECT_TRUE(run(*pair.gpu, {{&fork, &sequence_, 1, {.budget = 64}}}).status.ok());
    EXPECT_EQ(pair.attention->gpu_bytes() - with_one, 64 * kShape.token_bytes())
        << "a fork has a last block of its own";
    return with_one;
  };
  use();
  const std::int64_t without = pair.attention->gpu_bytes();
  const std::int64_t with_one = use();
  EXPECT_EQ(pair.attention->gpu_bytes(), without);
  EXPECT_GT(with_one - without, 256 * kShape.token_bytes()) << "index and window";
}

TEST_F(WorkerGpu, PoolOfAnotherSizeBeginsEmpty) {
  Pair pair = make();
  pair.on_both([&](WorkerFixture& fixture) {
    Context context = sealed(fixture, sequence_, 1100);
    std::vector<Ran> ran;
    ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 64}}}));
    EXPECT_TRUE(fixture.worker->resize_pool(512 << 10).ok());
    const AttendOptions at_once{.budget = 64, .on_miss = OnMiss::kTail};
    ran.push_back(run(fixture, {{&context, &sequence_, 1, at_once}}));
    EXPECT_EQ(ran.back().report.page_hits, 0);
    fixture.worker->wait_for_missed_pages();
    ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 64}}}));
    ran.push_back(run(fixture, {{&context, &sequence_, 1, {.budget = 64}}}));
    return ran;
  });
}

TEST_F(WorkerGpu, ShapesWithoutKernelsAreRefused) {
  const AttentionShape odd{.kv = {.layer_count = 1, .kv_head_count = 1, .d_k = 48, .d_v = 48}};
  EXPECT_EQ(GpuAttention::create(odd).status().code(), Code::kUnimplemented);
  Pair pair = make({.query_group = 9});
  Context context = sealed(*pair.gpu, sequence_, 1024);
  const Ran many = run(*pair.gpu, {{&context, &sequence_, 16, {.budget = 8}}});
  EXPECT_EQ(many.status.code(), Code::kUnimplemented) << "144 query rows share a selection";
  EXPECT_NE(many.status.message().find("at most 14 tokens"), std::string::npos);
  EXPECT_EQ(pair.gpu->worker->most_group_tokens(), 14);
  EXPECT_TRUE(run(*pair.gpu, {{&context, &sequence_, 14, {.budget = 8}}}).status.ok());
}

// A launch has 65 535 blocks for groups of 128 query rows: here for 32 767 of each KV head.
TEST_F(WorkerGpu, StepsOfMoreTokensThanALaunchHasBlocksForAreRefused) {
  Pair pair = make({.query_group = 64});
  Context context = pair.gpu->worker->new_context();
  const auto begin = [&](std::size_t tokens) {
    return pair.gpu->worker
        ->begin_step({{.context = &context, .tokens = std::vector<std::uint32_t>(tokens)}})
        .status();
  };
  EXPECT_TRUE(begin(65534).ok());
  const Status refused = begin(65535);
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_NE(refused.message().find("at most 65534 at a time"), std::string::npos)
      << refused.to_string();
}

}  // namespace
}  // namespace icefield
