// worker/gpu_layer.h — the groups of one layer on the GPU, and the launches over them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/attend_cuda.h"
#include "kernels/page_moves_cuda.h"
#include "kernels/select_cuda.h"
#include "kernels/slope_cuda.h"
#include "worker/gpu_copies.h"

namespace icefield {

// Pages by slot number; the pool's, and beyond them those of one layer.
struct GpuPagePool {
  const std::byte* pool = nullptr;
  std::int32_t slot_count = 0;
  const std::byte* overflow = nullptr;
};

// What goes up is one block of memory (groups of every kernel, queries, spans of rows), what comes
// down another (S and counts, then results); scratch is a third. They grow and stay, and what
// kernels are launched with depends on the shapes of a step alone. So selection and attention of a
// layer are recorded once and launched as one graph for every layer, until shapes change.
//
// Threads  One at a time.
class GpuLayer {
 public:
  static constexpr std::int32_t kMaxQueryRows = kGpuMaxQueryRows;  // of an indexed group

  GpuLayer(const AttentionShape& shape, std::int32_t processors, const GpuStream& stream,
           std::shared_ptr<std::int64_t> used)
      : shape_(shape), processors_(processors), stream_(stream), used_(std::move(used)) {}

  // Uploads a call's groups, whose contexts have their copies on the GPU. The functions below are
  // of these; they submit and, but for those that read, do not wait.
  Status prepare(const LayerCall& call, const GpuPagePool& pages);

  Status select();                                      // E, S, and where the rows of S are
  Status find_rows(const GpuPagePool& pages);           // again, after pages came
  Status attend();                                      // S and the tail, merged with E
  Status select_and_attend();                           // all of them: a recorded graph
  Status read_selection(std::span<LayerGroup> groups);  // waits; S
  // Waits; writes to the call's output, and the shares of groups. S too where `selection`.
  enum class Read { kResults, kAll };
  Status read_results(const LayerCall& call, Read what);
  // After read_results(): takes the rows that were not there out of S.
  void drop_missing(std::span<LayerGroup> groups) const;

  std::int64_t graph_launches() const { return graph_launches_; }
  std::int64_t graphs_recorded() const { return graphs_recorded_; }

 private:
  // The same thing on both sides.
  template <class T>
  struct Both {
    T* host = nullptr;
    T* gpu = nullptr;
  };
  // Gives out addresses in a block; with base 0 it only counts.
  class Cursor {
   public:
    Cursor(const void* host, const void* gpu)
        : host_(reinterpret_cast<std::uintptr_t>(host)),
          gpu_(reinterpret_cast<std::uintptr_t>(gpu)) {}
    template <class T>
    Both<T> take(std::int64_t count) {
      constexpr std::int64_t kAlign = 64;
      const auto at = static_cast<std::uintptr_t>(bytes_);
      bytes_ = round_up(bytes_ + count * static_cast<std::int64_t>(sizeof(T)), kAlign);
      return {reinterpret_cast<T*>(host_ + at), reinterpret_cast<T*>(gpu_ + at)};
    }
    std::int64_t bytes() const { return bytes_; }

   private:
    std::uintptr_t host_, gpu_;
    std::int64_t bytes_ = 0;
  };

  // Where things of one group are.
  struct Exact {  // sink, window, the call's own tokens
    std::int32_t rows = 0;
    std::int32_t span_count = 0;
    Both<float> q;
    Both<std::int32_t> hidden;
    Both<RowSpan> spans;
    Both<std::int32_t> count;
    const Bf16** addresses = nullptr;
    std::vector<float*> partials;  // of each chunk of query rows
    Partial result;
    Both<float> out;  // of the group's result
  };
  struct Indexed {
    std::size_t group = 0;  // of the call
    GpuSelectGroup select;
    FindRowsGroup find;
    GpuAttendGroup attend;
    Partial merged;
    Both<TableRow> selected;
    Both<float> tail, fault;
  };

  void measure(const LayerCall& call);
  void set_args(const GpuPagePool& pages);
  void lay_out(const LayerCall& call, Cursor& input, Cursor& scratch, Cursor& output);
  void lay_out_exact(const LayerGroup& group, Exact& exact, Cursor& input, Cursor& scratch);
  void lay_out_selection(const LayerCall& call, std::size_t index, Indexed& at, Cursor& scratch);
  void lay_out_tail(const LayerGroup& group, Indexed& at, Cursor& scratch, Cursor& output);
  Status grow(std::int64_t input, std::int64_t scratch, std::int64_t output);
  void fill(const LayerCall& call);
  void fill_exact(const LayerCall& call, std::size_t index, std::int32_t& chunk);
  void fill_indexed(const LayerCall& call, std::size_t index);

  const AttentionShape shape_;
  const std::int32_t processors_;
  const GpuStream& stream_;
  std::shared_ptr<std::int64_t> used_;

  PinnedMemory input_host_, output_host_;
  GpuBlock input_, scratch_, output_;
  std::int64_t selection_bytes_ = 0;  // the first of the output

  std::vector<Exact> exact_;      // of each group
  std::vector<Indexed> indexed_;  // of those that select
  Both<NameRowsGroup> name_groups_;
  Both<GpuAttendGroup> window_groups_, attend_groups_;
  Both<GpuSelectGroup> select_groups_;
  Both<FindRowsGroup> find_groups_;
  Both<GpuMergeGroup> merge_groups_;
  Both<Partial> parts_;
  Both<GpuSlopeGroup> slope_groups_;
  Both<std::int32_t> selected_count_, missing_count_;
  std::uint32_t* counters_ = nullptr;

  NameRowsArgs name_args_;
  GpuAttendArgs window_args_, attend_args_;
  GpuSelectArgs select_args_;
  FindRowsArgs find_args_;
  GpuMergeArgs merge_args_;
  GpuSlopeArgs slope_args_;

  // What launches depend on; with another the graph is recorded anew, and counters are cleared.
  using Key = std::array<std::int64_t, 20>;
  Key key_{};
  std::optional<GpuGraph> graph_;
  std::int64_t graph_launches_ = 0;
  std::int64_t graphs_recorded_ = 0;
};

}  // namespace icefield
