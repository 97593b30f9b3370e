#include "worker/worker.h"

#include <algorithm>
#include <set>

#include "common/fingerprint.h"
#include "worker/cpu_attention.h"

namespace icefield {

Status Worker::Options::validate() const {
  ICE_TRY(icefield::validate(model));
  const bool inside = slice.layer_count >= 1 && slice.kv_head_count >= 1 &&
                      slice.first_layer + slice.layer_count <= model.layer_count &&
                      slice.first_kv_head + slice.kv_head_count <= model.kv_head_count;
  if (!inside) return Status(Code::kInvalidArgument, "the worker's slice is not inside the model");
  // Page keys have 8 bits for each.
  if (slice.layer_count > 256 || slice.kv_head_count > 256) {
    return Status(Code::kUnimplemented, "a slice of more than 256 layers or KV heads");
  }
  if (!(softmax_scale > 0)) {
    return Status(Code::kInvalidArgument, "softmax scale must be positive");
  }
  if (query_group < 1 || query_group > 64) {
    return Status(Code::kInvalidArgument,
                  std::to_string(query_group) + " query heads per KV head, expected 1 to 64");
  }
  if (page_rows < 1 || page_rows > 16 || (page_rows & (page_rows - 1)) != 0) {
    return Status(Code::kInvalidArgument,
                  "pages of " + std::to_string(page_rows) + " rows, expected 1, 2, 4, 8 or 16");
  }
  return Status();
}

AttentionShape Worker::attention_shape(const Options& options) {
  return {.kv = {.layer_count = options.slice.layer_count,
                 .kv_head_count = options.slice.kv_head_count,
                 .d_k = options.model.d_k,
                 .d_v = options.model.d_v},
          .beta = options.softmax_scale,
          .query_group = options.query_group,
          .page_rows = options.page_rows};
}

Result<std::unique_ptr<Worker>> Worker::create(Options options, Environment environment,
                                               std::unique_ptr<LayerAttention> attention) {
  ICE_TRY(options.validate());
  const AttentionShape shape = attention_shape(options);
  ICE_TRY(HotPool pool, HotPool::make(options.pool_bytes, shape.page_bytes()));
  if (attention == nullptr) {
    attention = std::make_unique<CpuAttention>(shape, environment.kernels, environment.threads);
  }
  ICE_TRY(attention->resize_pool(pool.slot_count()));
  return std::unique_ptr<Worker>(new Worker(std::move(options), std::move(environment),
                                            std::move(pool), std::move(attention)));
}

Worker::Worker(Options options, Environment environment, HotPool pool,
               std::unique_ptr<LayerAttention> attention)
    : options_(std::move(options)),
      environment_(std::move(environment)),
      slice_shape_(attention_shape(options_).kv),
      attention_(std::move(attention)),
      pages_({.source = page_source(),
              .clock = environment_.clock,
              .page_rows = options_.page_rows,
              .timeout = options_.fetch_timeout},
             std::move(pool)) {}

Worker::~Worker() { ICE_CHECK(segments_.empty()); }

PageSource Worker::page_source() const {
  return {.store = environment_.store,
          .executor = environment_.executor,
          .shape = slice_shape_,
          .slice = options_.slice};
}

Deadline Worker::store_deadline() const {
  return Deadline::after(environment_.clock, options_.store_timeout);
}

PrefixRoot Worker::prefix_root_fields() const {
  return {.name_space = options_.name_space,
          .salt = "",
          .fingerprint = fingerprint_hash(options_.fingerprint_text),
          .flush_number = 0};
}

ContextScope Worker::scope() const {
  return {.name_space = options_.name_space,
          .fingerprint_text = options_.fingerprint_text,
          .slice = options_.slice};
}

Context Worker::new_context() const {
  return Context(slice_shape_, {prefix_root(prefix_root_fields())}, 0);
}

Result<PrefixMatch> Worker::match(std::span<const std::uint32_t> tokens) {
  std::vector<PrefixHash> prefix = prefix_chain(prefix_root_fields(), tokens);
  return sync_wait(environment_.executor,
                   environment_.store.match(std::move(prefix), scope(), store_deadline()));
}

// ------------------------------------------------------------------------------------- segments

std::shared_ptr<const AttachedSegment> Worker::register_segment(
    const SegmentName& name, const BuildId& build, std::shared_ptr<const SegmentIndex> index) {
  const SegmentKey key{name.id(), build};
  const auto known = segments_.find(key);
  if (known != segments_.end()) {
    if (auto segment = known->second.lock(); segment != nullptr) return segment;
  }
  std::uint32_t number = next_number_;
  if (free_numbers_.empty()) {
    ICE_CHECK(next_number_ <= kMaxSegmentNumber);
    ++next_number_;
  } else {
    number = free_numbers_.back();
    free_numbers_.pop_back();
  }
  // When the last context lets go of the segment, its pages and its number are free again.
  const auto forget = [this, key](const AttachedSegment* segment) {
    pages_.drop_segment(segment->number);
    free_numbers_.push_back(segment->number);
    segments_.erase(key);
    delete segment;
  };
  std::shared_ptr<const AttachedSegment> segment(
      new AttachedSegment{
          .number = number, .name = name, .build = build, .index = std::move(index)},
      forget);
  segments_[key] = segment;
  return segment;
}

Result<std::shared_ptr<const AttachedSegment>> Worker::adopt(const StoredBuild& build) {
  const auto known = segments_.find({build.segment.id(), build.build});
  if (known != segments_.end()) {
    if (auto segment = known->second.lock(); segment != nullptr) return segment;
  }
  ICE_TRY(LoadedSegment loaded,
          sync_wait(environment_.executor, environment_.store.load(build, store_deadline())));
  return register_segment(build.segment, build.build, std::move(loaded.index));
}

// --------------------------------------------------------------------------------------- attach

Result<Context> Worker::attach(std::span<const std::uint32_t> tokens, const PrefixMatch& match,
                               AttachRows rows) {
  ICE_CHECK(!match.chain.empty());
  const std::int64_t end = match.token_count();
  ICE_CHECK(end <= static_cast<std::int64_t>(tokens.size()));
  const std::int64_t begin = rows == AttachRows::kAll ? 0 : window_begin(end);
  Context context(slice_shape_, {prefix_root(prefix_root_fields())}, begin);
  context.append_tokens(tokens.first(static_cast<std::size_t>(end)));
  for (const StoredBuild& build : match.chain) {
    ICE_TRY(std::shared_ptr<const AttachedSegment> segment, adopt(build));
    context.segments_.push_back(std::move(segment));
  }
  context.rows_.extend(end);
  for (std::size_t i = 0; i < match.chain.size(); ++i) {
    const AttachedSegment& segment = *context.segments_[i];
    if (segment.name.end_token() <= begin) continue;
    // The window is the last extent of the last segment; a dense context takes all rows.
    const std::int64_t first = std::max<std::int64_t>(0, begin - segment.name.first_token);
    ICE_TRY(place_rows(context, segment, match.chain[i], static_cast<std::int32_t>(first)));
  }
  if (begin > 0) ICE_TRY(read_sink(context));
  context.rebuild_tables();
  return context;
}

// Reads stored rows [first_row, token_count) of one layer, all KV heads: every row of E must come.
Result<FetchedPages> Worker::read_layer(const AttachedSegment& segment, std::int32_t layer,
                                        std::int32_t first_row, std::int32_t end_row,
                                        std::vector<WantedPage>& pages) {
  constexpr std::int32_t kRows = 16;  // per page: rows are read in runs
  pages.clear();
  for (std::int32_t head = 0; head < slice_shape_.kv_head_count; ++head) {
    for (std::int32_t row = first_row; row < end_row; row += kRows) {
      pages.push_back({.segment = &segment, .layer = layer, .kv_head = head, .first_row = row});
    }
  }
  const PageSource source = page_source();
  FetchedPages fetched = sync_wait(
      environment_.executor, fetch_pages(source, kRows, std::span(&pages, 1), store_deadline()));
  if (fetched.failed_pages > 0) {
    const Status& why = fetched.first_error;
    return Status::miss(
        why.code() == Code::kNotFound ? why.reason() : MissReason::kNodeDown,
        "rows of segment " + to_string(segment.name.id()) + " cannot be read: " + why.to_string());
  }
  return fetched;
}

// Puts stored rows from `first_row` on into the context's exact rows, in token order.
Status Worker::place_rows(Context& context, const AttachedSegment& segment,
                          const StoredBuild& build, std::int32_t first_row) {
  ICE_TRY(const std::vector<AlignedBytes> order,
          sync_wait(environment_.executor, environment_.store.load_order(build, store_deadline())));
  const auto row_bytes = static_cast<std::size_t>(slice_shape_.row_bytes());
  std::vector<WantedPage> pages;
  for (std::int32_t layer = 0; layer < slice_shape_.layer_count; ++layer) {
    ICE_TRY(const OrderPart part, parse_order_part(order[static_cast<std::size_t>(layer)]));
    if (part.shape.row_count != segment.name.token_count ||
        part.heads.size() != static_cast<std::size_t>(slice_shape_.kv_head_count)) {
      return Status::miss(MissReason::kIntegrity, "order part of another segment");
    }
    ICE_TRY(const FetchedPages fetched,
            read_layer(segment, layer, first_row, segment.name.token_count, pages));
    for (const WantedPage& page : pages) {
      for (std::int32_t i = 0; i < 16; ++i) {
        const std::int32_t row = page.first_row + i;
        const std::int64_t token =
            segment.name.first_token + part.heads[static_cast<std::size_t>(page.kv_head)][row];
        if (token < context.rows_.begin()) {
          return Status::miss(MissReason::kIntegrity, "order part mixes window and older rows");
        }
        std::memcpy(context.rows_.row(layer, page.kv_head, token),
                    page.bytes + static_cast<std::size_t>(i) * row_bytes, row_bytes);
      }
    }
  }
  return Status();
}

Status Worker::read_sink(Context& context) {
  const AttachedSegment& first = *context.segments_.front();
  auto sink = std::make_shared<Context::SinkRows>();
  std::vector<WantedPage> pages;
  for (std::int32_t layer = 0; layer < slice_shape_.layer_count; ++layer) {
    ICE_TRY(const FetchedPages fetched, read_layer(first, layer, 0, kSinkTokens, pages));
    for (const WantedPage& page : pages) {
      const auto* rows = reinterpret_cast<const Bf16*>(page.bytes);
      sink->rows.insert(sink->rows.end(), rows,
                        rows + kSinkTokens * (slice_shape_.d_k + slice_shape_.d_v));
    }
  }
  context.sink_ = std::move(sink);
  return Status();
}

// ----------------------------------------------------------------------------------------- seal

Result<std::shared_ptr<const AttachedSegment>> Worker::store_segment(Context& context,
                                                                     const Piece& piece) {
  const auto block = [](std::int64_t token) {
    return static_cast<std::size_t>(token / kBlockTokens);
  };
  const SegmentName name{.before = context.prefix_[block(piece.first_token)],
                         .end = context.prefix_[block(piece.first_token + piece.token_count)],
                         .origin = {.approx_tag = context.approx_tag_},
                         .first_token = piece.first_token,
                         .token_count = piece.token_count};
  const auto find_stored = [&]() -> Result<std::vector<StoredBuild>> {
    if (!name.origin.exact()) return std::vector<StoredBuild>();
    return sync_wait(environment_.executor,
                     environment_.store.find(name, scope(), store_deadline()));
  };
  ICE_TRY(std::vector<StoredBuild> stored, find_stored());
  if (!stored.empty()) {
    Result<std::shared_ptr<const AttachedSegment>> segment = adopt(stored[0]);
    if (segment.has_value()) {
      segments_found.add();
      return segment;
    }
    // Damaged or half evicted: build it again from the rows at hand.
  }
  const auto row_bytes = static_cast<std::size_t>(slice_shape_.row_bytes());
  const SegmentInput input{
      .name_space = options_.name_space,
      .name = name,
      .fingerprint = fingerprint_hash(options_.fingerprint_text),
      .model = options_.model,
      .slice = options_.slice,
      .read_rows = [&](std::int32_t layer, std::int32_t head, Bf16* out) {
        for (std::int64_t i = 0; i < piece.token_count; ++i) {
          std::memcpy(reinterpret_cast<std::byte*>(out) + static_cast<std::size_t>(i) * row_bytes,
                      context.rows_.row(layer - options_.slice.first_layer,
                                        head - options_.slice.first_kv_head, piece.first_token + i),
                      row_bytes);
        }
      }};
  ICE_TRY(BuiltSegment built, build_segment(input, environment_.kernels, environment_.threads));
  ICE_TRY(
      sync_wait(environment_.executor,
                environment_.store.publish(built, options_.fingerprint_text, store_deadline())));
  segments_built.add();
  // Somebody else may have stored the same segment meanwhile: everybody uses the smallest id.
  ICE_TRY(stored, find_stored());
  if (!stored.empty() && stored[0].build != built.build) {
    Result<std::shared_ptr<const AttachedSegment>> other = adopt(stored[0]);
    if (other.has_value()) {
      ICE_TRY(sync_wait(environment_.executor,
                        environment_.store.remove(built.manifest, built.build, store_deadline())));
      return other;
    }
  }
  ICE_TRY(std::shared_ptr<const SegmentIndex> index,
          SegmentIndex::parse(built.manifest, std::move(built.index)));
  return register_segment(name, built.build, std::move(index));
}

Status Worker::seal_pieces(Context& context, std::int64_t end) {
  std::vector<std::shared_ptr<const AttachedSegment>> added;
  for (const Piece& piece : aligned_pieces(context.sealed_tokens(), end)) {
    ICE_TRY(std::shared_ptr<const AttachedSegment> segment, store_segment(context, piece));
    added.push_back(std::move(segment));
  }
  context.segments_.insert(context.segments_.end(), added.begin(), added.end());
  return Status();
}

Status Worker::seal(Context& context, std::int64_t position) {
  if (position < 0 || position > context.token_count()) {
    return Status(Code::kInvalidArgument, "seal at " + std::to_string(position) +
                                              ", the context has " +
                                              std::to_string(context.token_count()) + " tokens");
  }
  const std::int64_t end = position / kBlockTokens * kBlockTokens;
  if (end > context.sealed_tokens()) ICE_TRY(seal_pieces(context, end));
  return drop_old_rows(context);
}

// Seals what has left the window and was not sealed yet, and lets go of it.
Status Worker::drop_old_rows(Context& context) {
  const std::int64_t window = window_begin(context.token_count());
  if (window == 0) return Status();
  if (window > context.sealed_tokens()) ICE_TRY(seal_pieces(context, window));
  if (context.dense()) context.keep_sink();
  context.rows_.drop_before(window);
  context.rebuild_tables();
  return Status();
}

Status Worker::advance_window(Context& context) {
  const std::int64_t tokens = context.token_count();
  if (context.dense() || window_begin(tokens) <= context.rows_.begin()) return Status();
  if (tokens < context.seal_not_before_) return Status();
  Status status = drop_old_rows(context);
  // A store that is gone must not cost every token a try.
  if (!status.ok()) context.seal_not_before_ = tokens + kBlockTokens;
  return status;
}

// ----------------------------------------------------------------------------------------- step

std::int32_t Worker::most_group_tokens() const {
  return std::clamp(attention_->most_query_rows() / options_.query_group, 1, kMaxQueryTokens);
}

Result<Step> Worker::begin_step(std::vector<StepItem> items) {
  std::set<const Context*> contexts;
  for (const StepItem& item : items) {
    if (item.context == nullptr || !contexts.insert(item.context).second) {
      return Status(Code::kInvalidArgument, "a context may be in a step once");
    }
    if (item.tokens.empty()) return Status(Code::kInvalidArgument, "a step without new tokens");
    if (!item.context->dense() && item.tokens.size() > static_cast<std::size_t>(kMaxQueryTokens)) {
      return Status(Code::kInvalidArgument, std::to_string(item.tokens.size()) +
                                                " tokens share a selection, at most " +
                                                std::to_string(kMaxQueryTokens) + " may");
    }
    ICE_TRY(item.options.validate(slice_shape_.layer_count));
  }
  if (items.empty()) return Status(Code::kInvalidArgument, "a step without contexts");
  Step step(*this, std::move(items));
  pages_.take_behind(step.report_);
  ICE_TRY(attention_->place(pages_.arrived()));
  pages_.release();
  ICE_TRY(attention_->begin_step(step.items_));
  return step;
}

Status Worker::resize_pool(std::int64_t pool_bytes) {
  ICE_TRY(HotPool pool, HotPool::make(pool_bytes, attention_shape(options_).page_bytes()));
  ICE_TRY(attention_->resize_pool(pool.slot_count()));
  pages_.replace_pool(std::move(pool));
  return Status();
}

std::int64_t Worker::hot_bytes(std::span<const Context* const> contexts) const {
  std::set<const void*> seen;
  std::int64_t bytes = pages_.pool().bytes();
  for (const Context* context : contexts) {
    for (const auto& block : context->rows_.blocks()) {
      if (seen.insert(block.get()).second) bytes += context->rows_.block_bytes();
    }
    if (context->sink_ != nullptr && seen.insert(context->sink_.get()).second) {
      bytes += static_cast<std::int64_t>(context->sink_->rows.size() * sizeof(Bf16));
    }
    if (context->dense()) continue;  // its segments are attached for others
    if (context->slopes_ != nullptr && seen.insert(context->slopes_.get()).second) {
      for (const HeadSlope& head : context->slopes_->heads) bytes += head.bytes();
    }
    for (const auto& segment : context->segments_) {
      if (seen.insert(segment.get()).second) bytes += segment->index->bytes();
    }
  }
  return bytes;
}

}  // namespace icefield
