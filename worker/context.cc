#include "worker/context.h"

namespace icefield {

Context::Context(const KvShape& shape, std::vector<PrefixHash> prefix, std::int64_t rows_begin)
    : shape_(shape), prefix_(std::move(prefix)), rows_(shape, rows_begin) {}

std::int64_t Context::sealed_tokens() const {
  return segments_.empty() ? 0 : segments_.back()->name.end_token();
}

Context Context::fork() const {
  Context copy(shape_, prefix_, rows_.begin());
  copy.end_ = end_;
  copy.partial_block_ = partial_block_;
  copy.segments_ = segments_;
  copy.sink_ = sink_;
  copy.rows_ = rows_.fork();
  copy.approx_tag_ = approx_tag_;
  copy.seal_not_before_ = seal_not_before_;
  copy.tables_ = tables_;
  copy.slopes_ = slopes_;
  copy.device_tables_ = device_tables_;
  return copy;
}

void Context::append_tokens(std::span<const std::uint32_t> tokens) {
  for (const std::uint32_t token : tokens) {
    partial_block_.push_back(token);
    if (static_cast<std::int64_t>(partial_block_.size()) == kBlockTokens) {
      prefix_.push_back(prefix_next(prefix_.back(), partial_block_));
      partial_block_.clear();
    }
  }
  end_ += static_cast<std::int64_t>(tokens.size());
}

void Context::keep_sink() {
  if (sink_ != nullptr) return;
  auto sink = std::make_shared<SinkRows>();
  for (std::int32_t layer = 0; layer < shape_.layer_count; ++layer) {
    for (std::int32_t head = 0; head < shape_.kv_head_count; ++head) {
      const Bf16* first = rows_.row(layer, head, 0);
      sink->rows.insert(sink->rows.end(), first, first + kSinkTokens * (shape_.d_k + shape_.d_v));
    }
  }
  sink_ = std::move(sink);
}

void Context::rebuild_tables() {
  tables_.clear();
  device_tables_ = nullptr;
  if (dense() || segments_.empty()) {
    slopes_ = nullptr;
    return;
  }
  // The window starts at the end of the last segment, or one extent before it.
  const std::int64_t last_extent = sealed_tokens() - kExtentRows;
  ICE_CHECK(rows_.begin() == last_extent || rows_.begin() == sealed_tokens());
  for (std::int32_t layer = 0; layer < shape_.layer_count; ++layer) {
    for (std::int32_t head = 0; head < shape_.kv_head_count; ++head) {
      std::vector<HeadIndex>& table = tables_.emplace_back();
      for (const auto& segment : segments_) {
        const bool in_window = segment == segments_.back() && rows_.begin() == last_extent;
        table.push_back(segment->index->head(
            layer, head, in_window ? LastExtent::kInWindow : LastExtent::kIndexed));
      }
    }
  }
  rebuild_slopes();
}

void Context::rebuild_slopes() {
  std::vector<std::uint32_t> numbers;
  for (std::size_t s = 0; s < segments_.size(); ++s) {
    if (tables_[0][s].clusters.slope != nullptr) numbers.push_back(segments_[s]->number);
  }
  if (slopes_ != nullptr && slopes_->segments == numbers) return;
  auto slopes = std::make_shared<Slopes>();
  slopes->segments = std::move(numbers);
  for (const std::vector<HeadIndex>& table : tables_) slopes->heads.push_back(mean_slope(table));
  slopes_ = std::move(slopes);
}

void Context::append_exact_runs(std::int32_t layer, std::int32_t kv_head,
                                std::vector<RowRun>& runs) const {
  if (sink_ != nullptr && rows_.begin() >= kSinkTokens) {
    const std::int64_t head = static_cast<std::int64_t>(layer) * shape_.kv_head_count + kv_head;
    runs.push_back({.rows = sink_->rows.data() + head * kSinkTokens * (shape_.d_k + shape_.d_v),
                    .mask = (std::uint64_t{1} << kSinkTokens) - 1});
  }
  rows_.append_runs(layer, kv_head, 0, runs);
}

std::span<const HeadIndex> Context::table(std::int32_t layer, std::int32_t kv_head) const {
  if (tables_.empty()) return {};
  return tables_[static_cast<std::size_t>(layer * shape_.kv_head_count + kv_head)];
}

const HeadSlope& Context::slope(std::int32_t layer, std::int32_t kv_head) const {
  static const HeadSlope kNone;
  if (slopes_ == nullptr) return kNone;
  return slopes_->heads[static_cast<std::size_t>(layer * shape_.kv_head_count + kv_head)];
}

}  // namespace icefield
