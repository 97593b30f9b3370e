// worker/worker.h — the side next to an inference engine: contexts, sealing, attention steps.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/context_store.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/rng.h"
#include "common/thread_pool.h"
#include "kernels/kernels.h"
#include "worker/context.h"
#include "worker/layer_attention.h"
#include "worker/page_finder.h"
#include "worker/step.h"

namespace icefield {

// What a worker lets go of when a context is attached: the rows outside the window (they are read
// as steps want them), or nothing (the context is dense).
enum class AttachRows { kWindow, kAll };

// Keeps L0 to L2 of attached segments, a hot pool of pages, windows and sinks; everything else
// lives on the nodes.
//
// Ownership  Borrows what create() is given. Must outlive its contexts and steps.
// Threads    One caller at a time; it blocks on the nodes, so it must not run `executor`.
class Worker {
 public:
  struct Options {
    KvShape model;
    Slice slice;  // what this worker holds of the model
    float softmax_scale = 0;
    std::int32_t query_group = 1;  // query heads per KV head
    std::string name_space = "default";
    std::string fingerprint_text;                    // ModelFingerprint::text()
    std::int64_t pool_bytes = 8 << 20;               // hot pool, bookkeeping included
    std::int32_t page_rows = 1;                      // 1, 2, 4, 8 or 16
    std::chrono::milliseconds fetch_timeout{2000};   // pages of one layer
    std::chrono::milliseconds store_timeout{60000};  // attach, match, publish

    Status validate() const;
  };

  // What the worker computes with and talks to.
  struct Environment {
    const Kernels& kernels;
    ThreadPool& threads;
    ContextStore& store;
    asio::any_io_executor executor;  // runs the store's calls, on another thread
    Clock& clock;
    Rng& rng;
  };

  // Attends on the CPU with `environment.kernels`, or with what is given here (gpu_attention.h).
  static Result<std::unique_ptr<Worker>> create(
      Options options, Environment environment,
      std::unique_ptr<LayerAttention> attention = nullptr);
  static AttentionShape attention_shape(const Options& options);
  ~Worker();

  const Options& options() const { return options_; }

  // An empty, dense context.
  Context new_context() const;

  // The stored chain that covers `tokens` furthest.
  Result<PrefixMatch> match(std::span<const std::uint32_t> tokens);

  // A context of the chain's tokens, which must be the first of `tokens`. kNotFound with a reason
  // when the index, the sink or the window cannot be read whole.
  Result<Context> attach(std::span<const std::uint32_t> tokens, const PrefixMatch& match,
                         AttachRows rows);

  // A second context with the same past. Rows and segments are shared.
  Context fork(const Context& context) const { return context.fork(); }

  // Puts the tokens up to `position` (rounded down to a block, at most token_count()) into segments
  // and stores them; a match can end there. Rows that have left the window are then dropped: a
  // dense context of 512 tokens or more stops being dense. Segments that are stored already are
  // attached instead of built. On an error nothing is lost: the context keeps its rows.
  Status seal(Context& context, std::int64_t position);

  // How many query tokens may share a selection, 1 to kMaxQueryTokens: what attends may take fewer
  // query rows than these have.
  std::int32_t most_group_tokens() const;

  // Starts a step: `items` are the contexts of a batch with their new tokens.
  Result<Step> begin_step(std::vector<StepItem> items);

  // Waits until the pages that steps missed and did not wait for (OnMiss::kTail) have been read, or
  // the fetch timeout is over; the next step has them.
  void wait_for_missed_pages() const { pages_.wait_behind(); }

  // Replaces the hot pool by an empty one of this size.
  Status resize_pool(std::int64_t pool_bytes);

  // Hot memory of these contexts and the pool: pool, windows, sinks, L0 to L2; shared parts once.
  std::int64_t hot_bytes(std::span<const Context* const> contexts) const;

  Counter segments_built{"icefield_worker_built_segments_total", "segments clustered and stored"};
  Counter segments_found{"icefield_worker_found_segments_total",
                         "segments that were stored already"};
  Counter seal_failures{"icefield_worker_seal_failures_total", "seals that failed; rows were kept"};

 private:
  friend class Step;
  using SegmentKey = std::pair<SegmentId, BuildId>;

  Worker(Options options, Environment environment, HotPool pool,
         std::unique_ptr<LayerAttention> attention);

  Deadline store_deadline() const;
  PrefixRoot prefix_root_fields() const;
  ContextScope scope() const;

  std::shared_ptr<const AttachedSegment> register_segment(
      const SegmentName& name, const BuildId& build, std::shared_ptr<const SegmentIndex> index);
  Result<std::shared_ptr<const AttachedSegment>> adopt(const StoredBuild& build);

  PageSource page_source() const;
  Result<FetchedPages> read_layer(const AttachedSegment& segment, std::int32_t layer,
                                  std::int32_t first_row, std::int32_t end_row,
                                  std::vector<WantedPage>& pages);
  Status place_rows(Context& context, const AttachedSegment& segment, const StoredBuild& build,
                    std::int32_t first_row);
  Status read_sink(Context& context);

  Result<std::shared_ptr<const AttachedSegment>> store_segment(Context& context,
                                                               const Piece& piece);
  Status seal_pieces(Context& context, std::int64_t end);
  Status drop_old_rows(Context& context);
  Status advance_window(Context& context);

  const Options options_;
  const Environment environment_;
  const KvShape slice_shape_;  // the model's shape with the slice's counts
  std::unique_ptr<LayerAttention> attention_;
  PageFinder pages_;
  std::map<SegmentKey, std::weak_ptr<const AttachedSegment>> segments_;
  std::vector<std::uint32_t> free_numbers_;
  std::uint32_t next_number_ = 0;
  std::vector<LayerGroup> groups_;  // of the layer under way
};

}  // namespace icefield
