// The worker on the GPU (or its emulation) beside the worker on the CPU: the same contexts, the
// same rows selected, the same outputs.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/run_task.h"
#include "tests/support/worker_fixture.h"
#include "worker/gpu_attention.h"

namespace icefield {
namespace {

// As in attend_cuda_test.
constexpr float kTolerance = 1e-3f;

class WorkerGpu : public testing::Test {
 protected:
  static constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

  // Two workers that differ in the processor.
  struct Pair {
    std::unique_ptr<WorkerFixture> cpu, gpu;
  };
  Pair make(WorkerFixture::Options options = {}) {
    Pair pair;
    pair.cpu = std::make_unique<WorkerFixture>(*node_, options);
    pair.gpu = std::make_unique<WorkerFixture>(*node_, options, [this](const AttentionShape& shape) {
      std::unique_ptr<GpuAttention> attention = GpuAttention::create(shape).value();
      attention_ = attention.get();
      return attention;
    });
    return pair;
  }

  static void expect_near(const std::vector<float>& gpu, const std::vector<float>& cpu) {
    ASSERT_EQ(gpu.size(), cpu.size());
    float largest = 1e-3f;
    for (const float x : cpu) largest = std::max(largest, std::abs(x));
    for (std::size_t i = 0; i < gpu.size(); ++i) {
      ASSERT_NEAR(gpu[i], cpu[i], kTolerance * largest) << i;
    }
  }

  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 256 << 20}).value();
  FakeSequence sequence_{7, kShape, 3000};
  GpuAttention* attention_ = nullptr;
};

TEST_F(WorkerGpu, OneStepIsThatOfTheCpu) {
  Pair pair = make();
  std::vector<std::vector<float>> outputs;
  for (WorkerFixture* fixture : {pair.cpu.get(), pair.gpu.get()}) {
    Context context = fixture->fill(sequence_, 1100);
    ASSERT_TRUE(fixture->worker->seal(context, 1100).ok());
    StepReport report;
    outputs.push_back(fixture->step(context, sequence_, 1, {.budget = 64}, 5, &report));
    EXPECT_EQ(report.rows_selected, 4 * 64);
    EXPECT_EQ(report.page_hits, 0);
    EXPECT_EQ(report.coverage_min, 1.0f);
  }
  expect_near(outputs[1], outputs[0]);
}

}  // namespace
}  // namespace icefield
