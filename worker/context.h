// worker/context.h — the K/V of one token sequence at a worker: segments, window and sink.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cluster_index/segment/pieces.h"
#include "cluster_index/segment/segment_index.h"
#include "common/ids.h"
#include "kernels/slope.h"
#include "worker/exact_rows.h"

namespace icefield {

// A segment that contexts of this worker attend. Its pages in the hot pool go by its number.
struct AttachedSegment {
  std::uint32_t number = 0;
  SegmentName name;
  BuildId build;
  std::shared_ptr<const SegmentIndex> index;
  mutable std::shared_ptr<DeviceCopy> device;  // of the index
};

// A context is *dense* while it keeps every row exact, as after prefill: attention over it is full
// attention. Sealing moves its rows into segments; then it keeps the sink and the window, and
// attention selects.
//
// Made, forked, sealed and grown by a Worker, which must outlive it. Movable; fork() is the copy.
// Threads  One at a time.
class Context {
 public:
  Context(Context&&) = default;
  Context& operator=(Context&&) = default;

  std::int64_t token_count() const { return end_; }
  std::int64_t sealed_tokens() const;  // covered by segments
  bool dense() const { return rows_.begin() == 0; }
  bool exact() const { return !approx_tag_.has_value(); }  // all K/V from dense attention
  std::span<const std::shared_ptr<const AttachedSegment>> segments() const { return segments_; }

  // h_0 … h_n of the whole blocks so far.
  std::span<const PrefixHash> prefix() const { return prefix_; }

  // Appends the runs of the rows that are attended exactly: sink and window, or everything.
  void append_exact_runs(std::int32_t layer, std::int32_t kv_head, std::vector<RowRun>& runs) const;

  // The indexed part of the context as the kernels see it; empty when there is none or the context
  // is dense.
  std::span<const HeadIndex> table(std::int32_t layer, std::int32_t kv_head) const;

  // The slope of that part; empty when no segment carries one.
  const HeadSlope& slope(std::int32_t layer, std::int32_t kv_head) const;

  // What a processor with memory of its own copies. Shared by forks, all but the rows.
  struct SinkRows {
    std::vector<Bf16> rows;  // [layer, KV head, kSinkTokens, row]
    mutable std::shared_ptr<DeviceCopy> device;
  };
  struct Slopes {
    std::vector<std::uint32_t> segments;  // that they are the mean of
    std::vector<HeadSlope> heads;         // [layer, KV head]
    mutable std::shared_ptr<DeviceCopy> device;
  };
  const ExactRows& rows() const { return rows_; }
  const SinkRows* sink() const { return sink_.get(); }  // null while dense
  const Slopes* slopes() const { return slopes_.get(); }
  std::shared_ptr<DeviceCopy>& device_tables() { return device_tables_; }  // null when they changed

 private:
  friend class Worker;
  friend class Step;

  Context(const KvShape& shape, std::vector<PrefixHash> prefix, std::int64_t rows_begin);

  Context fork() const;
  void append_tokens(std::span<const std::uint32_t> tokens);
  void keep_sink();       // copies the sink out of the rows
  void rebuild_tables();  // after segments or the window have changed
  void rebuild_slopes();  // after segments have changed

  KvShape shape_;  // of the slice
  std::int64_t end_ = 0;
  std::vector<PrefixHash> prefix_;
  std::vector<std::uint32_t> partial_block_;  // tokens after the last whole block
  std::vector<std::shared_ptr<const AttachedSegment>> segments_;
  std::shared_ptr<const SinkRows> sink_;  // null while the context is dense
  ExactRows rows_;                        // may extend beyond end_ during a step
  std::optional<std::uint64_t> approx_tag_;
  std::int64_t seal_not_before_ = 0;            // tokens; after a seal that failed
  std::vector<std::vector<HeadIndex>> tables_;  // [layer, KV head]
  std::shared_ptr<const Slopes> slopes_;
  std::shared_ptr<DeviceCopy> device_tables_;
};

}  // namespace icefield
