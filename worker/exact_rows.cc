#include "worker/exact_rows.h"

#include <algorithm>

namespace icefield {

void ExactRows::extend(std::int64_t end) {
  ICE_CHECK(end >= end_);
  end_ = end;
  const std::int64_t wanted = ceil_div(end_ - begin_, kBlockRows);
  while (static_cast<std::int64_t>(blocks_.size()) < wanted) {
    blocks_.push_back(std::make_shared<Block>());
    blocks_.back()->rows = AlignedBytes(static_cast<std::size_t>(block_bytes()));
  }
}

void ExactRows::truncate(std::int64_t end) {
  ICE_CHECK(end >= begin_ && end <= end_);
  end_ = end;
  blocks_.resize(static_cast<std::size_t>(ceil_div(end_ - begin_, kBlockRows)));
  // Other rows may come in their place.
  const std::int64_t in_last = (end_ - begin_) % kBlockRows;
  if (in_last == 0) return;
  for (std::int32_t& rows : blocks_.back()->device_rows) {
    rows = std::min(rows, static_cast<std::int32_t>(in_last));
  }
}

void ExactRows::drop_before(std::int64_t begin) {
  ICE_CHECK(begin % kBlockRows == 0 && begin <= end_);
  while (begin_ < begin && !blocks_.empty()) {
    blocks_.pop_front();
    begin_ += kBlockRows;
  }
  begin_ = std::max(begin_, begin);
}

ExactRows ExactRows::fork() const {
  ExactRows copy = *this;
  if ((end_ - begin_) % kBlockRows != 0) {
    copy.blocks_.back() = std::make_shared<Block>();
    copy.blocks_.back()->rows = blocks_.back()->rows;
  }
  return copy;
}

Bf16* ExactRows::at(const Block& block, std::int32_t layer, std::int32_t kv_head,
                    std::int64_t in_block) const {
  const std::int64_t head = static_cast<std::int64_t>(layer) * shape_.kv_head_count + kv_head;
  const std::int64_t offset = (head * kBlockRows + in_block) * (shape_.d_k + shape_.d_v);
  return reinterpret_cast<Bf16*>(const_cast<std::byte*>(block.rows.data())) + offset;
}

Bf16* ExactRows::row(std::int32_t layer, std::int32_t kv_head, std::int64_t position) {
  ICE_DCHECK(position >= begin_ && position < end_);
  const std::int64_t index = position - begin_;
  return at(*blocks_[static_cast<std::size_t>(index / kBlockRows)], layer, kv_head,
            index % kBlockRows);
}

const Bf16* ExactRows::row(std::int32_t layer, std::int32_t kv_head, std::int64_t position) const {
  return const_cast<ExactRows*>(this)->row(layer, kv_head, position);
}

void ExactRows::append_runs(std::int32_t layer, std::int32_t kv_head, std::int64_t first,
                            std::vector<RowRun>& runs) const {
  for (std::int64_t position = std::max(first, begin_); position < end_;) {
    const std::int64_t in_block = (position - begin_) % kBlockRows;
    const std::int64_t count = std::min(kBlockRows - in_block, end_ - position);
    runs.push_back(
        {.rows = row(layer, kv_head, position), .mask = ~std::uint64_t{0} >> (kBlockRows - count)});
    position += count;
  }
}

}  // namespace icefield
