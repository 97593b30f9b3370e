// The step path allocates nothing: operator new is counted while warm steps append and attend, also
// in a batch and where pages are missing. What begins a step, and a request for pages, is bounded.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <optional>

#include "tests/support/worker_fixture.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<std::int64_t> allocations{0};

void* allocate(std::size_t size, std::size_t align) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1);
  void* memory = std::aligned_alloc(align, (size + align - 1) / align * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t align) {
  return allocate(size, static_cast<std::size_t>(align));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace icefield {
namespace {

constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

struct Asked {
  Context* context = nullptr;
  std::int64_t tokens = 1;
  AttendOptions options;
  std::uint64_t query_seed = 5;
};

// Allocations of the calls of one step, and what the step reports.
struct Counts {
  std::int64_t begin = 0;
  std::int64_t layers = 0;  // append() and attend() of all layers
  std::int64_t finish = 0;
  StepReport report;
};

class StepAllocation : public testing::Test {
 protected:
  static constexpr std::int64_t kSealed = 5376;
  // begin_step() lists its items and their contexts: this much, and one for each context.
  static constexpr std::int64_t kOfAStep = 2;

  void open(std::int64_t pool_bytes) {
    fixture_ =
        std::make_unique<WorkerFixture>(*node_, WorkerFixture::Options{.pool_bytes = pool_bytes});
  }
  Context sealed_context() {
    Context context = fixture_->fill(sequence_, kSealed);
    EXPECT_TRUE(fixture_->worker->seal(context, kSealed).ok());
    return context;
  }

  template <class F>
  static std::int64_t count(F&& f) {
    allocations = 0;
    counting = true;
    f();
    counting = false;
    return allocations;
  }

  Counts step(const std::vector<Asked>& asked) {
    const std::int32_t heads = kShape.kv_head_count * fixture_->options.query_group;
    std::vector<StepItem> items;
    std::vector<std::vector<float>> k, v, q;  // of each layer
    std::int64_t tokens = 0;
    for (const Asked& one : asked) {
      const auto first = sequence_.tokens.begin() + one.context->token_count();
      items.push_back({one.context, {first, first + one.tokens}, one.options});
      tokens += one.tokens;
    }
    for (std::int32_t layer = 0; layer < kShape.layer_count; ++layer) {
      for (auto* packed : {&k, &v, &q}) packed->emplace_back();
      for (const Asked& one : asked) {
        const std::int64_t first = one.context->token_count();
        append(k.back(), sequence_.k(layer, first, one.tokens));
        append(v.back(), sequence_.v(layer, first, one.tokens));
        append(q.back(), sequence_.q(one.query_seed, layer, one.tokens, heads));
      }
    }
    std::vector<float> out(static_cast<std::size_t>(tokens * heads * kShape.d_v));
    Counts counts;
    std::optional<Result<Step>> begun;
    counts.begin = count([&] { begun.emplace(fixture_->worker->begin_step(std::move(items))); });
    Step step = std::move(*begun).value();
    for (std::int32_t layer = 0; layer < kShape.layer_count; ++layer) {
      const auto at = static_cast<std::size_t>(layer);
      Status status;
      counts.layers += count([&] {
        step.append(layer, k[at].data(), v[at].data());
        status = step.attend(layer, q[at].data(), out.data());
      });
      EXPECT_TRUE(status.ok()) << status.to_string();
    }
    counts.finish = count([&] { counts.report = step.finish().value(); });
    return counts;
  }

  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  FakeSequence sequence_{7, kShape, 5500};
  std::unique_ptr<WorkerFixture> fixture_;

 private:
  static void append(std::vector<float>& to, const std::vector<float>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
};

TEST_F(StepAllocation, WarmStepsAllocateNothing) {
  open(32 << 20);
  Context context = sealed_context();
  for (const std::int64_t budget : {std::int64_t{0}, std::int64_t{64}, kBudgetAll}) {
    const Asked asked{.context = &context, .options = {.budget = budget}};
    // The first step makes room, and brings the pages that these queries select into the pool.
    step({asked});
    const Counts warm = step({asked});
    EXPECT_EQ(warm.layers, 0) << "budget " << budget;
    std::printf("budget %lld: begin %lld finish %lld\n", (long long)budget, (long long)warm.begin,
                (long long)warm.finish);
  }
}

// Two contexts in a batch, of several tokens and options of their own.
TEST_F(StepAllocation, WarmBatchesAllocateNothing) {
  open(32 << 20);
  Context first = sealed_context();
  Context second = sealed_context();
  const std::vector<Asked> batch = {{.context = &first, .options = {.budget = 64}},
                                    {.context = &second,
                                     .tokens = 3,
                                     .options = {.budget = 100, .breadth = 16},
                                     .query_seed = 6}};
  step(batch);
  const Counts warm = step(batch);
  EXPECT_EQ(warm.layers, 0);
  EXPECT_EQ(warm.report.page_hits, warm.report.pages_touched);
  EXPECT_EQ(warm.finish, 0);
  EXPECT_LE(warm.begin, kOfAStep + 2);
}

// A step that does not wait takes what it misses for missing: no request, nothing allocated.
TEST_F(StepAllocation, MissesThatAreNotWaitedForAllocateNothing) {
  open(256 << 10);
  Context context = sealed_context();
  const auto asked = [&](std::uint64_t seed) {
    return std::vector<Asked>{{.context = &context,
                               .options = {.budget = 256, .on_miss = OnMiss::kTail},
                               .query_seed = seed}};
  };
  for (std::uint64_t seed = 10; seed < 14; ++seed) {
    step(asked(seed));
    fixture_->worker->wait_for_missed_pages();
  }
  for (std::uint64_t seed = 20; seed < 24; ++seed) {
    const Counts missed = step(asked(seed));
    EXPECT_LT(missed.report.page_hits, missed.report.pages_touched);
    EXPECT_LT(missed.report.coverage_min, 1);
    EXPECT_EQ(missed.layers, 0) << seed;
    fixture_->worker->wait_for_missed_pages();
  }
}

// A step that waits allocates its requests, the node's answers in the same process among them:
// about one allocation per page beside those of a request per layer, never some per row and head.
TEST_F(StepAllocation, MissesThatAreWaitedForAllocateTheirRequests) {
  open(1 << 20);
  Context context = sealed_context();
  step({{.context = &context, .options = {.budget = 512}}});
  for (const std::int64_t budget : {64, 512}) {
    const Counts missed =
        step({{.context = &context, .options = {.budget = budget}, .query_seed = 10}});
    const std::int64_t pages = missed.report.pages_touched - missed.report.page_hits;
    EXPECT_GT(pages, 0);
    EXPECT_GT(missed.layers, 0);
    EXPECT_LE(missed.layers, 2 * pages + 500 * kShape.layer_count);
    EXPECT_EQ(missed.finish, 0);
  }
}

TEST_F(StepAllocation, TheCounterCounts) {
  open(1 << 20);
  Context context = sealed_context();
  EXPECT_GT(step({{.context = &context, .options = {.budget = 64}}}).layers, 0) << "a first step";
}

}  // namespace
}  // namespace icefield
