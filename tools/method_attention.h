// tools/method_attention.h — the methods that bench/ compares, attending in place of the worker: a
// model answers with them, end to end.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "bench/support/index_trial.h"
#include "worker/cpu_attention.h"

namespace icefield {

// What steps read, summed over layers and KV heads.
struct MethodReads {
  std::int64_t groups = 0;        // (step, layer, KV head) that selected
  std::int64_t rows_indexed = 0;  // in each of them
  MethodCost cost;

  void add(const MethodReads& other);
};

// The K/V of a dense context and what one method keeps beside it, for every (layer, KV head). Sink
// and window are those of the worker; the window begins where it did at the end of the document,
// however much follows.
class MethodDocument {
 public:
  // `document` has 512 tokens or more. Building is spread over `threads`.
  MethodDocument(const AttentionShape& shape, const Kernels& kernels, ThreadPool& threads,
                 const Context& document, const TrialMethod& method);
  ~MethodDocument();

  const std::string& name() const { return name_; }
  std::int64_t index_bytes() const;

 private:
  friend class MethodAttention;
  struct Head;
  const std::string name_;
  std::vector<std::unique_ptr<Head>> heads_;  // [layer, KV head]
};

// Attends as the worker does, and counts what it reads of the index; between use() and the end of
// what that returns, contexts that continue a document attend with that document's method.
//
// Ownership  Borrows kernels and threads.
// Threads    The worker's caller. Groups are spread over the pool.
class MethodAttention final : public LayerAttention {
 public:
  MethodAttention(const AttentionShape& shape, const Kernels& kernels, ThreadPool& threads);

  // Ends the use of a document.
  class Use {
   public:
    explicit Use(MethodAttention& attention) : attention_(attention) {}
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() { attention_.document_ = nullptr; }

   private:
    MethodAttention& attention_;
  };
  // Meanwhile every step is of one token of one dense context that continues `document`, which
  // outlives the use. `budget` is tokens per KV head, kBudgetAll for all.
  [[nodiscard]] Use use(MethodDocument& document, std::int64_t budget);

  // Since the last call.
  MethodReads take_reads();

  const AttentionShape& shape() const { return shape_; }
  const Kernels& kernels() const { return kernels_; }
  ThreadPool& threads() const { return threads_; }

  Status resize_pool(std::int64_t slot_count) override { return cpu_.resize_pool(slot_count); }
  std::int32_t most_query_rows() const override { return cpu_.most_query_rows(); }
  Status begin_step(std::span<const StepItem> items) override { return cpu_.begin_step(items); }
  Status place(std::span<const ArrivedPage> pages) override { return cpu_.place(pages); }
  Status attend(const LayerCall& call, PageFinder& pages) override;

 private:
  void attend_head(const LayerCall& call, const LayerGroup& group, MethodDocument::Head& head);
  void count_worker(const LayerCall& call);

  const AttentionShape shape_;
  const Kernels& kernels_;
  ThreadPool& threads_;
  CpuAttention cpu_;
  MethodDocument* document_ = nullptr;
  std::int64_t budget_ = 0;
  MethodReads reads_;
};

}  // namespace icefield
