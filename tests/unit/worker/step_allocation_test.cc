// The step path allocates nothing: operator new is counted while warm steps append and attend.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

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

// Allocations of append() and attend() in one step of one token.
std::int64_t count_in_step(WorkerFixture& fixture, Context& context, const FakeSequence& sequence,
                           AttendOptions options, std::uint64_t query_seed) {
  const std::int32_t heads = kShape.kv_head_count * fixture.options.query_group;
  const std::int64_t token = context.token_count();
  const std::vector<std::uint32_t> tokens = {sequence.tokens[static_cast<std::size_t>(token)]};
  Step step = fixture.worker->begin_step({{&context, tokens, options}}).value();
  std::vector<float> out(static_cast<std::size_t>(heads * kShape.d_v));
  allocations = 0;
  for (std::int32_t layer = 0; layer < kShape.layer_count; ++layer) {
    const std::vector<float> k = sequence.k(layer, token, 1);
    const std::vector<float> v = sequence.v(layer, token, 1);
    const std::vector<float> q = sequence.q(query_seed, layer, 1, heads);
    counting = true;
    step.append(layer, k.data(), v.data());
    const Status status = step.attend(layer, q.data(), out.data());
    counting = false;
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
  const Result<StepReport> report = step.finish();
  EXPECT_TRUE(report.has_value());
  return allocations;
}

TEST(StepAllocation, WarmStepsAllocateNothing) {
  const auto node = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  WorkerFixture fixture(*node, {.pool_bytes = 32 << 20});
  const FakeSequence sequence(7, kShape, 5400);
  Context context = fixture.fill(sequence, 5376);
  ASSERT_TRUE(fixture.worker->seal(context, 5376).ok());
  for (const std::int64_t budget : {std::int64_t{0}, std::int64_t{64}, kBudgetAll}) {
    const AttendOptions options{.budget = budget};
    // The first step makes room, and brings the pages that these queries select into the pool.
    count_in_step(fixture, context, sequence, options, 5);
    EXPECT_EQ(count_in_step(fixture, context, sequence, options, 5), 0) << "budget " << budget;
  }
}

TEST(StepAllocation, TheCounterCounts) {
  const auto node = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  WorkerFixture fixture(*node, {});
  const FakeSequence sequence(7, kShape, 5400);
  Context context = fixture.fill(sequence, 5376);
  ASSERT_TRUE(fixture.worker->seal(context, 5376).ok());
  EXPECT_GT(count_in_step(fixture, context, sequence, {.budget = 64}, 5), 0) << "a first step";
}

}  // namespace
}  // namespace icefield
