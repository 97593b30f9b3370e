#include "worker/gpu_layer.h"

#include <algorithm>

namespace icefield {
namespace {

// Windows grow with every token; launches are for a multiple of this.
constexpr std::int64_t kExactRowsStep = 256;

std::int32_t chunk_count(std::int32_t row_count) {
  return gpu::div_up(row_count, GpuLayer::kMaxQueryRows);
}

template <class T>
std::int64_t address(const T* at) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(at));
}

const GpuTables& tables_of(const LayerGroup& group) {
  return static_cast<const GpuTables&>(*group.context->device_tables());
}

// Spans of the rows of E, the first of them the sink's.
std::int32_t span_count_of(const Context& context) {
  const auto blocks = static_cast<std::int32_t>(context.rows().blocks().size());
  return blocks + (context.sink() != nullptr ? 1 : 0);
}

std::int32_t exact_rows_of(const Context& context) {
  const std::int64_t rows = context.rows().end() - context.rows().begin();
  return static_cast<std::int32_t>(rows) + (context.sink() != nullptr ? kSinkTokens : 0);
}

}  // namespace

// ----------------------------------------------------------------------------------------- layout

// The capacities of the launches.
void GpuLayer::measure(const LayerCall& call) {
  std::int32_t chunks = 0;
  window_args_.capacity = {};
  attend_args_.capacity = {};
  indexed_.clear();
  exact_.resize(call.groups.size());
  GpuCapacity& window = window_args_.capacity;
  GpuCapacity& tail = attend_args_.capacity;
  for (std::size_t i = 0; i < call.groups.size(); ++i) {
    const LayerGroup& group = call.groups[i];
    Exact& exact = exact_[i];
    exact.rows = exact_rows_of(*group.context);
    exact.span_count = span_count_of(*group.context);
    chunks += chunk_count(group.row_count);
    window.row_count = std::max(window.row_count, std::min(group.row_count, kMaxQueryRows));
    window.exact_rows = std::max(window.exact_rows, exact.rows);
    if (!group.indexed) continue;
    indexed_.push_back({.group = i});
    tail.row_count = std::max(tail.row_count, group.row_count);
    tail.segments = std::max(tail.segments, tables_of(group).segment_count());
    tail.rows = std::max(tail.rows, tables_of(group).size(call.layer, group.kv_head).rows);
    tail.exact_rows = std::max(tail.exact_rows, group.most_rows);
  }
  window.exact_rows = static_cast<std::int32_t>(round_up(window.exact_rows, kExactRowsStep));
  window_args_.group_count = chunks;
  attend_args_.group_count = static_cast<std::int32_t>(indexed_.size());
  window_args_.shape = attend_args_.shape = shape_.head();
  window_args_.processors = attend_args_.processors = processors_;
}

void GpuLayer::lay_out(const LayerCall& call, Cursor& input, Cursor& scratch, Cursor& output) {
  const auto groups = static_cast<std::int64_t>(call.groups.size());
  const auto indexed = static_cast<std::int64_t>(indexed_.size());
  // First what launches point to, where it depends on counts alone.
  name_groups_ = input.take<NameRowsGroup>(groups);
  window_groups_ = input.take<GpuAttendGroup>(window_args_.group_count);
  select_groups_ = input.take<GpuSelectGroup>(indexed);
  find_groups_ = input.take<FindRowsGroup>(indexed);
  attend_groups_ = input.take<GpuAttendGroup>(indexed);
  merge_groups_ = input.take<GpuMergeGroup>(indexed);
  parts_ = input.take<Partial>(2 * indexed);
  slope_groups_ = input.take<GpuSlopeGroup>(indexed);
  counters_ =
      scratch.take<std::uint32_t>(indexed * gpu_select_counters(attend_args_.capacity.segments))
          .gpu;
  for (std::size_t i = 0; i < exact_.size(); ++i) {
    lay_out_exact(call.groups[i], exact_[i], input, scratch);
  }
  selected_count_ = output.take<std::int32_t>(indexed);
  for (Indexed& at : indexed_) {
    at.selected = output.take<TableRow>(call.groups[at.group].budget);
  }
  selection_bytes_ = output.bytes();
  missing_count_ = output.take<std::int32_t>(indexed);
  for (std::size_t i = 0; i < indexed_.size(); ++i) {
    lay_out_selection(call, i, indexed_[i], scratch);
    lay_out_tail(call.groups[indexed_[i].group], indexed_[i], scratch, output);
  }
  for (std::size_t i = 0; i < exact_.size(); ++i) {
    const LayerGroup& group = call.groups[i];
    exact_[i].out = output.take<float>(std::int64_t{group.row_count} * shape_.kv.d_v);
    if (!group.indexed) exact_[i].result.out = exact_[i].out.gpu;
  }
  for (Indexed& at : indexed_) at.merged.out = exact_[at.group].out.gpu;
}

void GpuLayer::lay_out_exact(const LayerGroup& group, Exact& exact, Cursor& input,
                             Cursor& scratch) {
  const std::int64_t g = group.row_count;
  exact.q = input.take<float>(g * shape_.kv.d_k);
  exact.hidden = input.take<std::int32_t>(g);
  exact.spans = input.take<RowSpan>(exact.span_count);
  exact.count = input.take<std::int32_t>(1);
  exact.addresses = scratch.take<const Bf16*>(exact.rows).gpu;
  exact.partials.clear();
  for (std::int32_t chunk = 0; chunk < chunk_count(group.row_count); ++chunk) {
    exact.partials.push_back(scratch.take<float>(gpu_partial_floats(window_args_)).gpu);
  }
  exact.result = {.out = scratch.take<float>(group.indexed ? g * shape_.kv.d_v : 0).gpu,
                  .lse = scratch.take<float>(g).gpu,
                  .tail = scratch.take<float>(g).gpu,
                  .fault = scratch.take<float>(g).gpu,
                  .drift = scratch.take<float>(g).gpu};
}

void GpuLayer::lay_out_selection(const LayerCall& call, std::size_t index, Indexed& at,
                                 Cursor& scratch) {
  const LayerGroup& group = call.groups[at.group];
  const GpuTables& tables = tables_of(group);
  const Exact& exact = exact_[at.group];
  const TableSize size = tables.size(call.layer, group.kv_head);
  const std::int64_t g = group.row_count;
  const std::int32_t segments = tables.segment_count();
  const std::int64_t counters = gpu_select_counters(attend_args_.capacity.segments);
  const AttendOptions& options = call.items[group.item].options;
  at.select = {
      .row_count = group.row_count,
      .q = exact.q.gpu,
      .exact_lse = exact.result.lse,
      .segment_count = segments,
      .segments = tables.table(call.layer, group.kv_head),
      .size = size,
      .rule = {.budget = group.budget,
               .breadth =
                   group.everything ? kAllClusters : breadth_of(options.breadth, group.budget)},
      .rounded =
          scratch.take<std::int32_t>(gpu::rounded_layout(group.row_count, shape_.kv.d_k).ints())
              .gpu,
      .list_logit = scratch.take<float>(g * size.lists).gpu,
      .reference_level = scratch.take<float>(g).gpu,
      .segment_mass = scratch.take<float>(segments).gpu,
      .cluster_logit = scratch.take<float>(g * size.clusters).gpu,
      .cluster_vote = scratch.take<ClusterVote>(size.clusters).gpu,
      .candidate = scratch.take<std::uint8_t>(size.clusters).gpu,
      .token_logit = scratch.take<float>(g * size.rows).gpu,
      .ranking = scratch.take<RankedRow>(size.rows).gpu,
      .selected = at.selected.gpu,
      .selected_count = selected_count_.gpu + index,
      .list_partial = scratch.take<float>(2 * g * segments).gpu,
      .counters = counters_ + static_cast<std::int64_t>(index) * counters};
  at.find = {.selected_count = at.select.selected_count,
             .selected = at.select.selected,
             .segment_count = segments,
             .segments = at.select.segments,
             .cluster_count = size.clusters,
             .rows = scratch.take<const Bf16*>(group.budget).gpu,
             .found = scratch.take<TableRow>(group.budget).gpu,
             .found_count = scratch.take<std::int32_t>(1).gpu,
             .missing = scratch.take<TableRow>(group.budget).gpu,
             .missing_count = missing_count_.gpu + index,
             .faulty = scratch.take<std::uint8_t>(size.clusters).gpu};
}

void GpuLayer::lay_out_tail(const LayerGroup& group, Indexed& at, Cursor& scratch, Cursor& output) {
  const TableSize& size = at.select.size;
  const std::int64_t g = group.row_count;
  const std::int64_t terms = std::int64_t{size.clusters} + size.lists;
  at.attend = {.row_count = group.row_count,
               .q = at.select.q,
               .exact_count = at.find.found_count,
               .rows = at.find.rows,
               .segment_count = at.select.segment_count,
               .segments = at.select.segments,
               .size = size,
               .list_logit = at.select.list_logit,
               .cluster_logit = at.select.cluster_logit,
               .candidate = at.select.candidate,
               .token_logit = at.select.token_logit,
               .selected = at.find.found,
               .faulty = at.find.faulty,
               .terms = scratch.take<TailTerm>(g * terms).gpu,
               .weights = scratch.take<TermWeight>(terms).gpu,
               .shares = scratch.take<SelectedShare>(group.budget).gpu,
               .partial = scratch.take<float>(gpu_partial_floats(attend_args_)).gpu,
               .result = {.out = scratch.take<float>(g * shape_.kv.d_v).gpu,
                          .lse = scratch.take<float>(g).gpu,
                          .tail = scratch.take<float>(g).gpu,
                          .fault = scratch.take<float>(g).gpu,
                          .drift = scratch.take<float>(g).gpu}};
  at.tail = output.take<float>(g);
  at.fault = output.take<float>(g);
  at.merged = {.lse = scratch.take<float>(g).gpu,
               .tail = at.tail.gpu,
               .fault = at.fault.gpu,
               .drift = scratch.take<float>(g).gpu};
}

Status GpuLayer::grow(std::int64_t input, std::int64_t scratch, std::int64_t output) {
  const auto more = [](std::int64_t bytes) { return bytes + bytes / 2; };
  const auto grow_both = [&](PinnedMemory& host, GpuBlock& gpu, std::int64_t bytes) -> Status {
    if (gpu.bytes() >= bytes) return Status();
    ICE_TRY(host, PinnedMemory::allocate(more(bytes)));
    ICE_TRY(gpu, GpuBlock::allocate(more(bytes), used_));
    return Status();
  };
  ICE_TRY(grow_both(input_host_, input_, input));
  ICE_TRY(grow_both(output_host_, output_, output));
  if (scratch_.bytes() < scratch) {
    ICE_TRY(scratch_, GpuBlock::allocate(more(scratch), used_));
  }
  return Status();
}

// ------------------------------------------------------------------------------------------ fill

void GpuLayer::fill(const LayerCall& call) {
  std::int32_t chunk = 0;
  for (std::size_t i = 0; i < call.groups.size(); ++i) fill_exact(call, i, chunk);
  for (std::size_t i = 0; i < indexed_.size(); ++i) fill_indexed(call, i);
}

void GpuLayer::fill_exact(const LayerCall& call, std::size_t index, std::int32_t& chunk) {
  const LayerGroup& group = call.groups[index];
  const Exact& exact = exact_[index];
  const Context& context = *group.context;
  copy_queries(shape_, call, group, exact.q.host);
  hide_later_tokens(shape_, call, group, exact.hidden.host);
  const std::int64_t width = shape_.kv.d_k + shape_.kv.d_v;
  const std::int64_t head = std::int64_t{call.layer} * shape_.kv.kv_head_count + group.kv_head;
  RowSpan* span = exact.spans.host;
  std::int32_t first = 0;
  const auto add = [&](const DeviceCopy& copy, std::int64_t row, std::int64_t count) {
    const std::byte* memory = static_cast<const GpuRows&>(copy).memory.data();
    const auto* rows = reinterpret_cast<const Bf16*>(memory);
    *span++ = {
        .rows = rows + row * width, .count = static_cast<std::int32_t>(count), .first = first};
    first += static_cast<std::int32_t>(count);
  };
  if (context.sink() != nullptr) add(*context.sink()->device, head * kSinkTokens, kSinkTokens);
  std::int64_t left = context.rows().end() - context.rows().begin();
  for (const auto& block : context.rows().blocks()) {
    const std::int64_t count = std::min(left, ExactRows::kBlockRows);
    add(*block->device, head * ExactRows::kBlockRows, count);
    left -= count;
  }
  *exact.count.host = exact.rows;
  name_groups_.host[index] = {
      .span_count = exact.span_count, .spans = exact.spans.gpu, .rows = exact.addresses};
  for (std::size_t c = 0; c < exact.partials.size(); ++c) {
    const auto row = static_cast<std::int32_t>(c) * kMaxQueryRows;
    window_groups_.host[chunk++] = {
        .row_count = std::min(group.row_count - row, kMaxQueryRows),
        .q = exact.q.gpu + std::int64_t{row} * shape_.kv.d_k,
        .exact_count = exact.count.gpu,
        .rows = exact.addresses,
        .hidden = exact.hidden.gpu + row,
        .partial = exact.partials[c],
        .result = {.out = exact.result.out + std::int64_t{row} * shape_.kv.d_v,
                   .lse = exact.result.lse + row,
                   .tail = exact.result.tail + row,
                   .fault = exact.result.fault + row,
                   .drift = exact.result.drift + row}};
  }
}

void GpuLayer::fill_indexed(const LayerCall& call, std::size_t index) {
  const Indexed& at = indexed_[index];
  const LayerGroup& group = call.groups[at.group];
  select_groups_.host[index] = at.select;
  find_groups_.host[index] = at.find;
  attend_groups_.host[index] = at.attend;
  parts_.host[2 * index] = exact_[at.group].result;
  parts_.host[2 * index + 1] = at.attend.result;
  merge_groups_.host[index] = {.row_count = group.row_count,
                               .part_count = 2,
                               .parts = parts_.gpu + 2 * index,
                               .result = at.merged};
  GpuSlopeGroup& slope = slope_groups_.host[index];
  slope = {.row_count = group.row_count,
           .q = exact_[at.group].q.gpu,
           .drift = at.merged.drift,
           .out = at.merged.out};
  const Context::Slopes* slopes = group.context->slopes();
  if (slopes == nullptr) return;
  const auto head = static_cast<std::size_t>(call.layer * shape_.kv.kv_head_count + group.kv_head);
  slope.slope = static_cast<const GpuSlopes&>(*slopes->device).head(head);
}

void GpuLayer::set_args(const GpuPagePool& pages) {
  const std::int32_t indexed = attend_args_.group_count;
  const GpuCapacity& tail = attend_args_.capacity;
  name_args_ = {.shape = shape_.head(),
                .group_count = static_cast<std::int32_t>(exact_.size()),
                .groups = name_groups_.gpu};
  window_args_.groups = window_groups_.gpu;
  select_args_ = {.shape = shape_.head(),
                  .capacity = tail,
                  .group_count = indexed,
                  .groups = select_groups_.gpu};
  find_args_ = {.shape = shape_.head(),
                .page_rows = shape_.page_rows,
                .pool = pages.pool,
                .slot_count = pages.slot_count,
                .overflow = pages.overflow,
                .group_count = indexed,
                .groups = find_groups_.gpu};
  attend_args_.groups = attend_groups_.gpu;
  merge_args_ = {.d_v = shape_.kv.d_v,
                 .max_row_count = tail.row_count,
                 .group_count = indexed,
                 .groups = merge_groups_.gpu};
  slope_args_ = {.shape = shape_.head(),
                 .max_row_count = tail.row_count,
                 .group_count = indexed,
                 .groups = slope_groups_.gpu};
}

Status GpuLayer::prepare(const LayerCall& call, const GpuPagePool& pages) {
  measure(call);
  Cursor input(nullptr, nullptr), scratch(nullptr, nullptr), output(nullptr, nullptr);
  lay_out(call, input, scratch, output);
  ICE_TRY(grow(input.bytes(), scratch.bytes(), output.bytes()));
  input = Cursor(input_host_.data(), input_.data());
  scratch = Cursor(nullptr, scratch_.data());
  output = Cursor(output_host_.data(), output_.data());
  lay_out(call, input, scratch, output);
  fill(call);
  set_args(pages);
  const GpuCapacity& window = window_args_.capacity;
  const GpuCapacity& tail = attend_args_.capacity;
  const Key key = {name_args_.group_count,
                   window_args_.group_count,
                   attend_args_.group_count,
                   window.row_count,
                   window.exact_rows,
                   tail.row_count,
                   tail.segments,
                   tail.rows,
                   tail.exact_rows,
                   address(input_.data()),
                   address(scratch_.data()),
                   address(output_.data()),
                   address(pages.pool),
                   pages.slot_count,
                   address(pages.overflow)};
  if (key != key_) {
    graph_.reset();
    key_ = key;
    const std::int64_t counters = attend_args_.group_count * gpu_select_counters(tail.segments);
    ICE_TRY(fill_on_gpu(counters_, 0, 4 * counters, stream_.get()));
  }
  return copy_on_gpu(input_.data(), input_host_.data(), input.bytes(), stream_.get());
}

// ---------------------------------------------------------------------------------------- launch

Status GpuLayer::select() {
  ICE_TRY(name_rows_cuda(name_args_, stream_.get()));
  ICE_TRY(attend_cuda(window_args_, stream_.get()));
  if (indexed_.empty()) return Status();
  ICE_TRY(score_lists_cuda(select_args_, stream_.get()));
  ICE_TRY(propose_cuda(select_args_, stream_.get()));
  ICE_TRY(rank_cuda(select_args_, stream_.get()));
  return find_rows_cuda(find_args_, stream_.get());
}

Status GpuLayer::find_rows(const GpuPagePool& pages) {
  find_args_.overflow = pages.overflow;
  return find_rows_cuda(find_args_, stream_.get());
}

Status GpuLayer::attend() {
  if (indexed_.empty()) return Status();
  ICE_TRY(attend_cuda(attend_args_, stream_.get()));
  ICE_TRY(merge_cuda(merge_args_, stream_.get()));
  return add_slope_cuda(slope_args_, stream_.get());
}

Status GpuLayer::select_and_attend() {
  if (!graph_.has_value()) {
    const auto both = [this]() -> Status {
      ICE_TRY(select());
      return attend();
    };
    ICE_TRY(GpuGraph graph, GpuGraph::record(stream_.get(), both));
    graph_.emplace(std::move(graph));
    ++graphs_recorded_;
  }
  ++graph_launches_;
  return graph_->launch(stream_.get());
}

// ------------------------------------------------------------------------------------------ read

Status GpuLayer::read_selection(std::span<LayerGroup> groups) {
  ICE_TRY(copy_on_gpu(output_host_.data(), output_.data(), selection_bytes_, stream_.get()));
  ICE_TRY(stream_.wait());
  for (std::size_t i = 0; i < indexed_.size(); ++i) {
    const Indexed& at = indexed_[i];
    groups[at.group].selected.assign(at.selected.host, at.selected.host + selected_count_.host[i]);
  }
  return Status();
}

Status GpuLayer::read_results(const LayerCall& call, Read what) {
  const LayerGroup& last = call.groups.back();
  const std::byte* end = reinterpret_cast<const std::byte*>(
      exact_.back().out.host + std::int64_t{last.row_count} * shape_.kv.d_v);
  const std::int64_t begin = what == Read::kAll ? 0 : selection_bytes_;
  ICE_TRY(copy_on_gpu(output_host_.data() + begin, output_.data() + begin,
                      end - output_host_.data() - begin, stream_.get()));
  ICE_TRY(stream_.wait());
  for (std::size_t i = 0; i < exact_.size(); ++i) {
    write_result(shape_, call, call.groups[i], exact_[i].out.host);
  }
  for (std::size_t i = 0; i < indexed_.size(); ++i) {
    const Indexed& at = indexed_[i];
    LayerGroup& group = call.groups[at.group];
    group.tail.assign(at.tail.host, at.tail.host + group.row_count);
    group.fault.assign(at.fault.host, at.fault.host + group.row_count);
    if (what != Read::kAll) continue;
    group.selected.assign(at.selected.host, at.selected.host + selected_count_.host[i]);
  }
  return Status();
}

void GpuLayer::drop_missing(std::span<LayerGroup> groups) const {
  for (std::size_t i = 0; i < indexed_.size(); ++i) {
    LayerGroup& group = groups[indexed_[i].group];
    const std::size_t selected = group.selected.size();
    group.drop_missing();
    const std::size_t missing = selected - group.selected.size();
    // The pool's table and the slots on the GPU say the same.
    ICE_CHECK(missing == static_cast<std::size_t>(missing_count_.host[i]));
    group.any_fault = missing > 0;
  }
}

}  // namespace icefield
