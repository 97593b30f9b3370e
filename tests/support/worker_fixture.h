// tests/support/worker_fixture.h — a worker on an embedded node, fed with made-up K/V.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/head_fixture.h"
#include "common/fingerprint.h"
#include "tools/embedded_node.h"
#include "worker/worker.h"

namespace icefield {

// K/V of a sequence as a model would give them, for every layer and KV head; rows are the same for
// the same seed and position.
struct FakeSequence {
  KvShape shape;
  std::vector<std::uint32_t> tokens;
  std::vector<std::vector<Bf16>> rows;  // [layer, KV head] → [token, d_k + d_v]

  FakeSequence(std::uint64_t seed, const KvShape& shape, std::int64_t token_count);

  // k or v of `count` tokens from `first` on, [count, KV heads, d].
  std::vector<float> k(std::int32_t layer, std::int64_t first, std::int64_t count) const;
  std::vector<float> v(std::int32_t layer, std::int64_t first, std::int64_t count) const;
  // Queries [count, query heads, d_k] that look for keys of the sequence.
  std::vector<float> q(std::uint64_t seed, std::int32_t layer, std::int64_t count,
                       std::int32_t query_heads) const;
};

class WorkerFixture {
 public:
  struct Options {
    KvShape shape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};
    std::int32_t query_group = 3;
    int threads = 2;
    std::int64_t pool_bytes = 1 << 20;
    std::int32_t page_rows = 1;
    std::string model_name = "test model";
    const Kernels* kernels = &cpu_kernels();
  };

  // What attends, where that is not the CPU.
  using MakeAttention = std::function<std::unique_ptr<LayerAttention>(const AttentionShape& shape)>;

  WorkerFixture(EmbeddedNode& node, Options options, const MakeAttention& make_attention = nullptr);

  // A dense context of the sequence's first `count` tokens.
  Context fill(const FakeSequence& sequence, std::int64_t count);
  // Appends tokens [context.token_count(), + count) of the sequence without attending.
  void append(Context& context, const FakeSequence& sequence, std::int64_t count);

  // One step of `count` tokens: appends, attends every layer with q of `query_seed`. The outputs of
  // all layers, one after the other.
  std::vector<float> step(Context& context, const FakeSequence& sequence, std::int64_t count,
                          AttendOptions options, std::uint64_t query_seed,
                          StepReport* report = nullptr);

  SystemClock clock;
  SeededRng rng{99};
  ThreadPool threads;
  std::unique_ptr<Worker> worker;
  Options options;
};

}  // namespace icefield
