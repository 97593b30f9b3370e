#include "tests/gpu/gpu_groups.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace icefield {
namespace {

// A view whose arrays stand in `host`, as the same view of the copy `gpu`.
template <class View>
View moved(View view, const AlignedBytes& host, const std::byte* gpu) {
  const auto move = [&](auto*& at) {
    using T = std::remove_reference_t<decltype(at)>;
    at = reinterpret_cast<T>(gpu + (reinterpret_cast<const std::byte*>(at) - host.data()));
  };
  if constexpr (std::is_same_v<View, LevelView>) {
    move(view.key_means);
    move(view.value_means);
    move(view.key_scale);
    move(view.value_scale);
    move(view.ln_count);
    move(view.sigma);
    move(view.token_count);
    move(view.first_row);
    move(view.gamma);
  } else {
    move(view.codes);
    move(view.scale);
    move(view.check);
  }
  return view;
}

std::vector<std::byte> plain(const AlignedBytes& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

namespace {

std::vector<std::vector<Bf16>> random_segments(std::uint64_t seed,
                                               const std::vector<std::int32_t>& lengths,
                                               std::int32_t d) {
  SeededRng rng(seed);
  std::vector<std::vector<Bf16>> segments;
  for (const std::int32_t length : lengths) segments.push_back(random_rows(rng, length, d, d));
  return segments;
}

}  // namespace

World::World(std::uint64_t seed, const std::vector<std::int32_t>& lengths, std::int32_t d,
             std::int32_t query_rows)
    : World(random_segments(seed, lengths, d), d, query_rows) {}

World::World(const std::vector<std::vector<Bf16>>& segments, std::int32_t d,
             std::int32_t query_rows) {
  SeededRng rng(segments.size() * 100 + static_cast<std::uint64_t>(d + query_rows));
  shape = {.d_k = d, .d_v = d, .beta = 1.0f / std::sqrt(static_cast<float>(d))};
  for (const std::vector<Bf16>& segment : segments) {
    heads.push_back(
        HeadFixture::make(reference_kernels(), segment, d, d, heads.empty() ? kSinkTokens : 0));
    table.push_back(heads.back()->index);
    rows.push_back(heads.back()->stored_rows.data());
  }
  const std::vector<Bf16> other = random_rows(rng, 256, d, d);
  q = random_queries(rng, heads.empty() ? other : heads[rng.below(heads.size())]->rows, query_rows,
                     d, d);
  for (std::int32_t h = 0; h < query_rows; ++h) exact_lse.push_back(3 + normal(rng));
}

void World::split_clusters(std::size_t s) {
  HeadFixture& head = *heads[s];
  const std::int32_t indexed = head.index.indexed_rows();
  head.partition.cluster_rows.assign(static_cast<std::size_t>(indexed), 1);
  const auto row_count = static_cast<std::int32_t>(head.partition.order.size());
  head.clusters = make_level_part(PartKind::kClusters,
                                  {.kv_head_count = 1,
                                   .d_k = shape.d_k,
                                   .d_v = shape.d_v,
                                   .row_count = row_count,
                                   .first_indexed_row = head.index.first_row},
                                  std::span(&indexed, 1));
  reference_kernels().describe({.d_k = shape.d_k,
                                .d_v = shape.d_v,
                                .row_count = row_count,
                                .first_indexed_row = head.index.first_row,
                                .rows = head.stored_rows.data(),
                                .partition = &head.partition,
                                .lists = mutable_level(head.lists, 0),
                                .clusters = mutable_level(head.clusters, 0),
                                .codes = mutable_codes(head.codes, 0)});
  head.index.clusters = parse_level_part(head.clusters, PartKind::kClusters).value().heads[0];
  table[s] = head.index;
}

GroupOptions with_rule(std::int32_t budget, std::int32_t breadth) {
  return {.rule = {.budget = budget, .breadth = breadth}};
}

std::vector<const World*> LayerCase::pointers() const {
  std::vector<const World*> pointers;
  for (const auto& world : worlds) pointers.push_back(world.get());
  return pointers;
}

LayerCase random_layer(SeededRng& rng, std::int32_t head_dim) {
  LayerCase layer;
  for (std::uint64_t g = 1 + rng.below(3); g > 0; --g) {
    std::vector<std::int32_t> lengths;
    for (std::uint64_t s = rng.below(4); s > 0; --s) {
      lengths.push_back(rng.below(3) == 0 ? 1024 : 256);
    }
    const auto query_rows = static_cast<std::int32_t>(1 + rng.below(18));
    layer.worlds.push_back(std::make_unique<World>(rng.next(), lengths, head_dim, query_rows));
    const std::int32_t indexed = layer.worlds.back()->size().indexed_rows;
    const auto budget = static_cast<std::int32_t>(rng.below(static_cast<unsigned>(indexed) + 1));
    layer.options.push_back(with_rule(budget, static_cast<std::int32_t>(rng.below(5))));
  }
  return layer;
}

LayerCase strange_layer() {
  LayerCase layer;
  layer.worlds.push_back(std::make_unique<World>(31, std::vector<std::int32_t>{256, 256}, 64, 2));
  layer.worlds.back()->split_clusters(0);
  const std::vector<Bf16> equal(256 * 128, float_to_bf16(0.5f));
  std::vector<Bf16> outlier(256 * 128, float_to_bf16(0.01f));
  std::fill_n(outlier.begin() + 100 * 128, 64, float_to_bf16(1e4f));
  layer.worlds.push_back(
      std::make_unique<World>(std::vector<std::vector<Bf16>>{equal, outlier}, 64, 2));
  layer.options = {with_rule(40, 1), with_rule(40, 1)};
  return layer;
}

PartialBuffer read_partial(const GpuArena& arena, const Partial& partial, std::int32_t rows,
                           std::int32_t d_v) {
  PartialBuffer buffer(rows, d_v);
  buffer.out = arena.get(partial.out, static_cast<std::int64_t>(rows) * d_v);
  buffer.lse = arena.get(partial.lse, rows);
  buffer.tail = arena.get(partial.tail, rows);
  buffer.fault = arena.get(partial.fault, rows);
  buffer.drift = arena.get(partial.drift, rows);
  return buffer;
}

GpuLayer::GpuLayer(GpuArena& arena, const std::vector<const World*>& worlds,
                   const std::vector<GroupOptions>& options)
    : arena_(arena), shape_(worlds[0]->shape), page_rows_(options[0].page_rows) {
  for (std::size_t i = 0; i < worlds.size(); ++i) add(*worlds[i], options[i]);
  pool_on_gpu_ = arena_.put(pool_);
  // The second half of the pages is what did not fit.
  in_pool_ = static_cast<std::int32_t>(static_cast<std::int64_t>(pool_.size()) /
                                       (2 * page_rows_ * (shape_.d_k + shape_.d_v)) / 2);
  const auto count = static_cast<std::int64_t>(groups_.size());
  select_ = arena_.make<GpuSelectGroup>(count);
  find_ = arena_.make<FindRowsGroup>(count);
  attend_ = arena_.make<GpuAttendGroup>(count);
  // Partial results depend on the capacity of the whole layer.
  const std::int64_t floats = gpu_partial_floats(attend_args());
  for (GpuGroup& group : groups_) group.attend.partial = arena_.make<float>(floats);
  upload();
}

void GpuLayer::upload() {
  std::vector<GpuSelectGroup> select;
  std::vector<FindRowsGroup> find;
  std::vector<GpuAttendGroup> attend;
  for (const GpuGroup& group : groups_) {
    select.push_back(group.select);
    find.push_back(group.find);
    attend.push_back(group.attend);
  }
  arena_.write(select_, select);
  arena_.write(find_, find);
  arena_.write(attend_, attend);
}

void GpuLayer::add(const World& world, const GroupOptions& options) {
  GpuGroup group{.world = &world, .options = options};
  GpuSelectGroup& select = group.select;
  std::vector<GpuSegment> segments(world.table.size());
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const HeadFixture& head = *world.heads[s];
    HeadIndex& index = segments[s].index = world.table[s];
    index.lists = moved(index.lists, head.lists, arena_.put(plain(head.lists)));
    index.clusters = moved(index.clusters, head.clusters, arena_.put(plain(head.clusters)));
    index.codes = moved(index.codes, head.codes, arena_.put(plain(head.codes)));
  }
  select.size = place_segments(segments.data(), world.segments());
  add_pages(world, options, segments);
  select.row_count = world.query_rows();
  select.q = arena_.put(world.q);
  select.exact_lse = arena_.put(world.exact_lse);
  select.segment_count = world.segments();
  select.segments = arena_.put(segments);
  select.rule = options.rule;
  group.most_selected = options.rule.budget;
  if (options.rule.segment_budgets != nullptr) {
    const std::vector<std::int32_t> budgets(options.rule.segment_budgets,
                                            options.rule.segment_budgets + world.segments());
    group.most_selected = 0;
    for (const std::int32_t budget : budgets) group.most_selected += budget;
    select.rule.segment_budgets = arena_.put(budgets);
    segment_budgets_ = true;
  }
  make_selection(group);
  add_rows(group);
  capacity_.row_count = std::max(capacity_.row_count, select.row_count);
  capacity_.segments = std::max(capacity_.segments, select.segment_count);
  capacity_.rows = std::max(capacity_.rows, select.size.rows);
  capacity_.exact_rows = std::max(capacity_.exact_rows, group.most_selected);
  groups_.push_back(group);
}

void GpuLayer::make_selection(GpuGroup& group) {
  GpuSelectGroup& select = group.select;
  const std::int64_t g = select.row_count;
  const TableSize& size = select.size;
  select.rounded = arena_.make<std::int32_t>(
      gpu::rounded_layout(select.row_count, group.world->shape.d_k).ints());
  select.list_logit = arena_.make<float>(g * size.lists);
  select.reference_level = arena_.make<float>(g);
  select.segment_mass = arena_.make<float>(select.segment_count);
  select.cluster_logit = arena_.make<float>(g * size.clusters);
  select.cluster_vote = arena_.make<ClusterVote>(size.clusters);
  select.candidate = arena_.make<std::uint8_t>(size.clusters);
  select.token_logit = arena_.make<float>(g * size.rows);
  select.ranking = arena_.make<RankedRow>(size.rows);
  select.selected = arena_.make<TableRow>(group.most_selected);
  select.selected_count = arena_.make<std::int32_t>(1);
  select.list_partial = arena_.make<float>(2 * g * select.segment_count);
  select.counters = arena_.zeros<std::uint32_t>(gpu_select_counters(select.segment_count));
}

// The pages of a table in the pool, and where they are.
void GpuLayer::add_pages(const World& world, const GroupOptions& options,
                         std::vector<GpuSegment>& segments) {
  const std::int64_t width = shape_.d_k + shape_.d_v;
  const std::int64_t page_bytes = page_rows_ * width * 2;
  std::int32_t page = 0;
  for (std::size_t s = 0; s < segments.size(); ++s) {
    std::vector<std::int32_t> slots;
    for (std::int32_t row = 0; row < world.table[s].codes.row_count; row += page_rows_, ++page) {
      const auto& missing = options.missing_pages;
      if (std::find(missing.begin(), missing.end(), page) != missing.end()) {
        slots.push_back(-1);
        continue;
      }
      slots.push_back(
          static_cast<std::int32_t>(static_cast<std::int64_t>(pool_.size()) / page_bytes));
      const auto* at = reinterpret_cast<const std::byte*>(world.rows[s] + row * width);
      pool_.insert(pool_.end(), at, at + page_bytes);
    }
    segments[s].page_slot = arena_.put(slots);
  }
}

// find_rows and attend.
void GpuLayer::add_rows(GpuGroup& group) {
  const GpuSelectGroup& select = group.select;
  group.find = {.selected_count = select.selected_count,
                .selected = select.selected,
                .segment_count = select.segment_count,
                .segments = select.segments,
                .cluster_count = select.size.clusters,
                .rows = arena_.make<const Bf16*>(group.most_selected),
                .found = arena_.make<TableRow>(group.most_selected),
                .found_count = arena_.make<std::int32_t>(1),
                .missing = arena_.make<TableRow>(group.most_selected),
                .missing_count = arena_.make<std::int32_t>(1),
                .faulty = arena_.make<std::uint8_t>(select.size.clusters)};
  const std::int64_t g = select.row_count;
  const std::int64_t terms = select.size.clusters + select.size.lists;
  group.attend = {.row_count = select.row_count,
                  .q = select.q,
                  .exact_count = group.find.found_count,
                  .rows = group.find.rows,
                  .segment_count = select.segment_count,
                  .segments = select.segments,
                  .size = select.size,
                  .list_logit = select.list_logit,
                  .cluster_logit = select.cluster_logit,
                  .candidate = select.candidate,
                  .token_logit = select.token_logit,
                  .selected = group.find.found,
                  .faulty = group.find.faulty,
                  .terms = arena_.make<TailTerm>(g * terms),
                  .weights = arena_.make<TermWeight>(terms),
                  .shares = arena_.make<SelectedShare>(group.most_selected),
                  .result = make_partial(arena_, select.row_count, shape_.d_v)};
  if (!group.options.accounts.empty()) group.attend.accounts = arena_.put(group.options.accounts);
}

GpuSelectArgs GpuLayer::select_args() const {
  return {.shape = shape_,
          .capacity = capacity_,
          .segment_budgets = segment_budgets_,
          .group_count = static_cast<std::int32_t>(groups_.size()),
          .groups = select_};
}
FindRowsArgs GpuLayer::find_args() const {
  return {.shape = shape_,
          .page_rows = page_rows_,
          .pool = pool_on_gpu_,
          .slot_count = in_pool_,
          .overflow = pool_on_gpu_ + in_pool_ * 2 * page_rows_ * (shape_.d_k + shape_.d_v),
          .group_count = static_cast<std::int32_t>(groups_.size()),
          .groups = find_};
}
GpuAttendArgs GpuLayer::attend_args() const {
  return {.shape = shape_,
          .capacity = capacity_,
          .processors = gpu_processors().value(),
          .group_count = static_cast<std::int32_t>(groups_.size()),
          .groups = attend_};
}

Status GpuLayer::select() {
  const GpuSelectArgs args = select_args();
  ICE_TRY(score_lists_cuda(args, arena_.stream()));
  ICE_TRY(propose_cuda(args, arena_.stream()));
  return rank_cuda(args, arena_.stream());
}

Status GpuLayer::step() {
  ICE_TRY(select());
  ICE_TRY(find_rows_cuda(find_args(), arena_.stream()));
  return attend_cuda(attend_args(), arena_.stream());
}

Status GpuLayer::run(Status (GpuLayer::*work)()) {
  ICE_TRY((this->*work)());
  arena_.wait();
  return Status();
}

PartialBuffer GpuLayer::result(std::size_t i) const {
  const GpuAttendGroup& group = groups_[i].attend;
  return read_partial(arena_, group.result, group.row_count, shape_.d_v);
}

void GpuLayer::set_queries(std::size_t i, const std::vector<float>& q) {
  arena_.write(const_cast<float*>(groups_[i].select.q), q);
}

void GpuLayer::set_budget(std::size_t i, std::int32_t budget) {
  ICE_CHECK(budget <= groups_[i].most_selected);
  groups_[i].select.rule.budget = budget;
  upload();
}

}  // namespace icefield
