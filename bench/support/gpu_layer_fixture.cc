#include "bench/support/gpu_layer_fixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/rng.h"
#include "proto/part.h"

namespace icefield {
namespace {

float unit(Rng& rng) {  // of mean 0 and variance 1, near enough to normal
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(rng.below(1 << 20)) / (1 << 20) - 0.5f;
  return sum * std::sqrt(3.0f);
}

std::vector<float> units(Rng& rng, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = unit(rng);
  return values;
}

std::int32_t segment_tokens(const GpuLayerShape& shape) {
  return std::min(shape.tokens, kMaxSegmentTokens);
}

// A level of `count` clusters of equal size with random means.
AlignedBytes random_level(Rng& rng, PartKind kind, const PartShape& part, std::int32_t count) {
  AlignedBytes bytes = make_level_part(kind, part, std::span(&count, 1));
  const MutableLevelView level = mutable_level(bytes, 0);
  for (std::int32_t c = 0; c < count; ++c) {
    const std::int32_t first = part.row_count / count * c;
    const std::int32_t end = c + 1 == count ? part.row_count : first + part.row_count / count;
    for (std::int32_t j = 0; j < part.d_k; ++j) {
      level.key_means[level.key_mean_at(c, j)] = static_cast<std::int8_t>(rng.below(255));
      level.value_means[c * part.d_v + j] = static_cast<std::int8_t>(rng.below(255));
    }
    level.key_scale[c] = level.value_scale[c] = 1.5f / 127;
    level.ln_count[c] = std::log(static_cast<float>(end - first));
    level.sigma[c] = float_to_fp16(0.5f + static_cast<float>(rng.below(100)) / 100);
    level.token_count[c] = static_cast<std::uint16_t>(end - first);
    level.first_row[c] = static_cast<std::uint16_t>(first);
  }
  std::fill_n(level.gamma, part.d_k, 0.05f);
  return bytes;
}

AlignedBytes random_codes(Rng& rng, const PartShape& part) {
  AlignedBytes bytes = make_codes_part(part);
  const MutableCodesView codes = mutable_codes(bytes, 0);
  for (std::int32_t i = 0; i < part.row_count / kCodePanel * part.d_k; ++i) {
    codes.codes[i] = static_cast<std::uint32_t>(rng.next());
  }
  std::fill_n(codes.scale, part.row_count, float_to_fp16(0.1f));
  return bytes;
}

SlopeView random_slope(GpuArena& arena, Rng& rng, std::int32_t d) {
  std::vector<std::int8_t> slope;
  for (std::int32_t i = 0; i < d * d; ++i) {
    slope.push_back(static_cast<std::int8_t>(static_cast<std::int32_t>(rng.below(255)) - 127));
  }
  const auto dims = static_cast<std::size_t>(d);
  return {.gamma = arena.put(std::vector<float>(dims, 0.05f)),
          .slope = arena.put(slope),
          .slope_scale = arena.put(std::vector<float>(dims, 1e-4f))};
}

// The part in the memory of the GPU; `view` is moved there.
template <class T>
void move_to(T*& at, const AlignedBytes& host, const std::byte* gpu) {
  at = reinterpret_cast<T*>(gpu + (reinterpret_cast<const std::byte*>(at) - host.data()));
}
LevelView level_on_gpu(GpuArena& arena, AlignedBytes& host) {
  const std::byte* gpu = arena.put(std::vector<std::byte>(host.begin(), host.end()));
  const MutableLevelView level = mutable_level(host, 0);
  LevelView view{.count = level.count,
                 .stored_count = level.stored_count,
                 .d_k = level.d_k,
                 .d_v = level.d_v,
                 .key_means = level.key_means,
                 .value_means = level.value_means,
                 .key_scale = level.key_scale,
                 .value_scale = level.value_scale,
                 .ln_count = level.ln_count,
                 .sigma = level.sigma,
                 .token_count = level.token_count,
                 .first_row = level.first_row,
                 .gamma = level.gamma};
  move_to(view.key_means, host, gpu);
  move_to(view.value_means, host, gpu);
  move_to(view.key_scale, host, gpu);
  move_to(view.value_scale, host, gpu);
  move_to(view.ln_count, host, gpu);
  move_to(view.sigma, host, gpu);
  move_to(view.token_count, host, gpu);
  move_to(view.first_row, host, gpu);
  move_to(view.gamma, host, gpu);
  return view;
}
CodesView codes_on_gpu(GpuArena& arena, AlignedBytes& host) {
  const std::byte* gpu = arena.put(std::vector<std::byte>(host.begin(), host.end()));
  const MutableCodesView codes = mutable_codes(host, 0);
  CodesView view{.row_count = codes.row_count,
                 .d_k = codes.d_k,
                 .codes = codes.codes,
                 .scale = codes.scale,
                 .check = codes.check};
  move_to(view.codes, host, gpu);
  move_to(view.scale, host, gpu);
  move_to(view.check, host, gpu);
  return view;
}

const Bf16* row_at(const GpuLayerShape& shape, const std::byte* rows, std::int32_t head,
                   std::int64_t row) {
  const std::int64_t index = static_cast<std::int64_t>(head) * shape.tokens + row;
  return reinterpret_cast<const Bf16*>(rows + index * shape.row_bytes());
}

HeadShape head_shape(const GpuLayerShape& shape) {
  return {.d_k = shape.head_dim,
          .d_v = shape.head_dim,
          .beta = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
}

}  // namespace

Partial make_partial(GpuArena& arena, std::int32_t rows, std::int32_t d_v) {
  return {.out = arena.make<float>(static_cast<std::int64_t>(rows) * d_v),
          .lse = arena.make<float>(rows),
          .tail = arena.make<float>(rows),
          .fault = arena.make<float>(rows),
          .drift = arena.make<float>(rows)};
}

std::byte* make_rows(GpuArena& arena, const GpuLayerShape& shape) {
  SeededRng rng(shape.seed);
  // One block of random rows, again and again.
  constexpr std::int64_t kBlock = 16 << 20;
  const std::int64_t bytes = shape.rows_bytes();
  std::vector<Bf16> block;
  for (std::int64_t i = 0; i < std::min(kBlock, bytes) / 2; ++i) {
    block.push_back(float_to_bf16(unit(rng)));
  }
  const auto block_bytes = static_cast<std::int64_t>(block.size() * sizeof(Bf16));
  auto* rows = arena.make<std::byte>(bytes);
  for (std::int64_t at = 0; at < bytes; at += block_bytes) {
    check_gpu(
        copy_on_gpu(rows + at, block.data(), std::min(block_bytes, bytes - at), arena.stream()));
  }
  arena.wait();
  return rows;
}

GpuLayerFixture::GpuLayerFixture(GpuArena& arena, const GpuLayerShape& shape, const std::byte* rows)
    : arena_(arena), shape_(shape), pool_(rows) {
  const std::int32_t segments = shape.tokens / segment_tokens(shape);
  const GpuCapacity capacity{.row_count = shape.query_rows,
                             .segments = segments,
                             .rows = shape.tokens,
                             .exact_rows = shape.budget};
  const HeadShape head = head_shape(shape);
  const std::int32_t processors = gpu_processors().value();
  window_args_ = {.shape = head,
                  .capacity = {.row_count = shape.query_rows, .exact_rows = shape.window},
                  .processors = processors,
                  .group_count = shape.kv_heads};
  attend_args_ = {
      .shape = head, .capacity = capacity, .processors = processors, .group_count = shape.kv_heads};
  for (std::int32_t h = 0; h < shape.kv_heads; ++h) add_head(h, rows);
  select_args_ = {.shape = head,
                  .capacity = capacity,
                  .group_count = shape.kv_heads,
                  .groups = arena.put(select_)};
  find_args_ = {.shape = head,
                .pool = pool_,
                .slot_count = shape.tokens * shape.kv_heads,
                .group_count = shape.kv_heads,
                .groups = arena.put(find_)};
  window_args_.groups = arena.put(window_);
  attend_args_.groups = arena.put(attend_);
  merge_args_ = {.d_v = shape.head_dim,
                 .max_row_count = shape.query_rows,
                 .group_count = shape.kv_heads,
                 .groups = arena.put(merge_)};
  slope_args_ = {.shape = head,
                 .max_row_count = shape.query_rows,
                 .group_count = shape.kv_heads,
                 .groups = arena.put(slope_)};
}

GpuSelectGroup GpuLayerFixture::make_selection(const std::vector<GpuSegment>& segments,
                                               const TableSize& size) {
  SeededRng rng(shape_.seed + 1000 + select_.size());
  const std::int64_t g = shape_.query_rows;
  const auto count = static_cast<std::int32_t>(segments.size());
  return {
      .row_count = shape_.query_rows,
      .q = arena_.put(units(rng, g * shape_.head_dim)),
      .exact_lse = nullptr,  // the window's, when that is made
      .segment_count = count,
      .segments = arena_.put(segments),
      .size = size,
      .rule = {.budget = shape_.budget, .breadth = breadth_of(shape_.breadth, shape_.budget)},
      .rounded =
          arena_.make<std::int32_t>(gpu::rounded_layout(shape_.query_rows, shape_.head_dim).ints()),
      .list_logit = arena_.make<float>(g * size.lists),
      .reference_level = arena_.make<float>(g),
      .segment_mass = arena_.make<float>(count),
      .cluster_logit = arena_.make<float>(g * size.clusters),
      .cluster_vote = arena_.make<ClusterVote>(size.clusters),
      .candidate = arena_.make<std::uint8_t>(size.clusters),
      .token_logit = arena_.make<float>(g * size.rows),
      .ranking = arena_.make<RankedRow>(size.rows),
      .selected = arena_.make<TableRow>(shape_.budget),
      .selected_count = arena_.make<std::int32_t>(1),
      .list_partial = arena_.make<float>(2 * g * count),
      .counters = arena_.zeros<std::uint32_t>(gpu_select_counters(count)),
  };
}

void GpuLayerFixture::add_head(std::int32_t head, const std::byte* rows) {
  SeededRng rng(shape_.seed * 100 + static_cast<std::uint64_t>(head));
  const PartShape part{.kv_head_count = 1,
                       .d_k = shape_.head_dim,
                       .d_v = shape_.head_dim,
                       .row_count = segment_tokens(shape_)};
  // Segments differ by a factor of their means only.
  AlignedBytes lists = random_level(rng, PartKind::kLists, part, part.row_count / kListTokens);
  AlignedBytes clusters =
      random_level(rng, PartKind::kClusters, part, part.row_count / kClusterTokens);
  AlignedBytes codes = random_codes(rng, part);
  std::vector<GpuSegment> segments(
      static_cast<std::size_t>(shape_.tokens / segment_tokens(shape_)));
  for (GpuSegment& segment : segments) {
    segment.index = {.lists = level_on_gpu(arena_, lists),
                     .clusters = level_on_gpu(arena_, clusters),
                     .codes = codes_on_gpu(arena_, codes),
                     .first_row = 0,
                     .end_row = part.row_count};
    index_bytes_ += static_cast<std::int64_t>(lists.size() + clusters.size());
    for (AlignedBytes* part_of : {&lists, &clusters}) {
      const MutableLevelView level = mutable_level(*part_of, 0);
      for (std::int32_t c = 0; c < level.count; ++c) level.key_scale[c] *= 1.003f;
    }
  }
  size_ = place_segments(segments.data(), static_cast<std::int32_t>(segments.size()));
  for (GpuSegment& segment : segments) {  // every page is there, in the order of the rows
    std::vector<std::int32_t> slots(static_cast<std::size_t>(part.row_count));
    std::iota(slots.begin(), slots.end(), head * shape_.tokens + segment.first_row);
    segment.page_slot = arena_.put(slots);
  }
  add_groups(head, rows, make_selection(segments, size_));
  slope_.push_back({.slope = random_slope(arena_, rng, shape_.head_dim),
                    .row_count = shape_.query_rows,
                    .q = select_.back().q,
                    .drift = merge_.back().result.drift,
                    .out = merge_.back().result.out});
}

// The kernels' groups of one head, from its selection on.
void GpuLayerFixture::add_groups(std::int32_t head, const std::byte* rows, GpuSelectGroup select) {
  std::vector<const Bf16*> window;
  for (std::int32_t i = 0; i < shape_.window; ++i) {
    window.push_back(row_at(shape_, rows, head, i));
  }
  const Partial exact = make_partial(arena_, shape_.query_rows, shape_.head_dim);
  select.exact_lse = exact.lse;
  window_.push_back({.row_count = shape_.query_rows,
                     .q = select.q,
                     .exact_count = arena_.put(std::vector<std::int32_t>{shape_.window}),
                     .rows = arena_.put(window),
                     .partial = arena_.make<float>(gpu_partial_floats(window_args_)),
                     .result = exact});
  find_.push_back({.selected_count = select.selected_count,
                   .selected = select.selected,
                   .segment_count = select.segment_count,
                   .segments = select.segments,
                   .cluster_count = size_.clusters,
                   .rows = arena_.make<const Bf16*>(shape_.budget),
                   .found = arena_.make<TableRow>(shape_.budget),
                   .found_count = arena_.make<std::int32_t>(1),
                   .missing = arena_.make<TableRow>(shape_.budget),
                   .missing_count = arena_.make<std::int32_t>(1),
                   .faulty = arena_.make<std::uint8_t>(size_.clusters)});
  const std::int64_t terms = size_.clusters + size_.lists;
  attend_.push_back({.row_count = shape_.query_rows,
                     .q = select.q,
                     .exact_count = find_.back().found_count,
                     .rows = find_.back().rows,
                     .segment_count = select.segment_count,
                     .segments = select.segments,
                     .size = size_,
                     .list_logit = select.list_logit,
                     .cluster_logit = select.cluster_logit,
                     .candidate = select.candidate,
                     .token_logit = select.token_logit,
                     .selected = find_.back().found,
                     .faulty = find_.back().faulty,
                     .terms = arena_.make<TailTerm>(shape_.query_rows * terms),
                     .weights = arena_.make<TermWeight>(terms),
                     .shares = arena_.make<SelectedShare>(shape_.budget),
                     .partial = arena_.make<float>(gpu_partial_floats(attend_args_)),
                     .result = make_partial(arena_, shape_.query_rows, shape_.head_dim)});
  merge_.push_back({.row_count = shape_.query_rows,
                    .part_count = 2,
                    .parts = arena_.put(std::vector<Partial>{exact, attend_.back().result}),
                    .result = make_partial(arena_, shape_.query_rows, shape_.head_dim)});
  select_.push_back(select);
}

Status GpuLayerFixture::attend_window() { return attend_cuda(window_args_, arena_.stream()); }
Status GpuLayerFixture::score() { return score_lists_cuda(select_args_, arena_.stream()); }
Status GpuLayerFixture::propose() { return propose_cuda(select_args_, arena_.stream()); }
Status GpuLayerFixture::rank() { return rank_cuda(select_args_, arena_.stream()); }
Status GpuLayerFixture::find() { return find_rows_cuda(find_args_, arena_.stream()); }
Status GpuLayerFixture::attend_selected() { return attend_cuda(attend_args_, arena_.stream()); }
Status GpuLayerFixture::merge() { return merge_cuda(merge_args_, arena_.stream()); }
Status GpuLayerFixture::add_slope() { return add_slope_cuda(slope_args_, arena_.stream()); }

Status GpuLayerFixture::select_and_attend() {
  ICE_TRY(score());
  ICE_TRY(propose());
  ICE_TRY(rank());
  ICE_TRY(find());
  return attend_selected();
}

Status GpuLayerFixture::step() {
  ICE_TRY(attend_window());
  ICE_TRY(select_and_attend());
  ICE_TRY(merge());
  return add_slope();
}

std::uint64_t GpuLayerFixture::result_hash() const {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](std::uint32_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (std::size_t h = 0; h < merge_.size(); ++h) {
    const std::int32_t found = arena_.get(find_[h].found_count, 1)[0];
    for (const TableRow& at : arena_.get(find_[h].found, found)) {
      add(static_cast<std::uint32_t>(at.segment));
      add(static_cast<std::uint32_t>(at.row));
    }
    for (const float x : arena_.get(merge_[h].result.out, shape_.query_rows * shape_.head_dim)) {
      add(std::bit_cast<std::uint32_t>(x));
    }
  }
  return hash;
}

GpuExactFixture::GpuExactFixture(GpuArena& arena, const GpuLayerShape& shape, const std::byte* rows,
                                 std::int32_t count)
    : arena_(arena), bytes_(shape.row_bytes() * count * shape.kv_heads) {
  args_ = {.shape = head_shape(shape),
           .capacity = {.row_count = shape.query_rows, .exact_rows = count},
           .processors = gpu_processors().value(),
           .group_count = shape.kv_heads};
  SeededRng rng(shape.seed);
  std::vector<GpuAttendGroup> groups;
  for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
    std::vector<const Bf16*> pointers;
    const std::int32_t stride = shape.tokens / count;
    for (std::int32_t i = 0; i < count; ++i) {
      // One of every `stride` rows, which one by chance.
      const auto offset = static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(stride)));
      pointers.push_back(row_at(shape, rows, head, static_cast<std::int64_t>(i) * stride + offset));
    }
    groups.push_back({.row_count = shape.query_rows,
                      .q = arena.put(units(rng, shape.query_rows * shape.head_dim)),
                      .exact_count = arena.put(std::vector<std::int32_t>{count}),
                      .rows = arena.put(pointers),
                      .partial = arena.make<float>(gpu_partial_floats(args_)),
                      .result = make_partial(arena, shape.query_rows, shape.head_dim)});
  }
  args_.groups = arena.put(groups);
}

}  // namespace icefield
