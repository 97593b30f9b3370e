#include "cache_node/chunk_sums.h"

namespace icefield {

void ChunkSums::begin() {
  sums_.resize(chunks_.size());
  next_piece();
}

// Sets out on the next piece; chunks without bytes are done with at once.
void ChunkSums::next_piece() {
  constexpr std::int64_t kPerChunk = kValueChunkBytes / kValuePieceBytes;
  for (; chunk_ < chunks_.size(); ++chunk_) {
    const auto& [key, bytes] = chunks_[chunk_];
    const std::int64_t left = bytes - piece_ * kValuePieceBytes;
    if (left > 0) {
      const auto number = static_cast<std::uint32_t>(key.part.extent * kPerChunk + piece_);
      hash_.reset(checksum_seed(key.segment, PartKind::kValue, 0, 0, number));
      missing_ = std::min(left, kValuePieceBytes);
      return;
    }
    sums_[chunk_] = value_chunk_checksum(key, checks_);
    checks_.clear();
    piece_ = 0;
  }
}

void ChunkSums::pass(ConstByteSpan bytes) {
  while (!bytes.empty() && chunk_ < chunks_.size()) {
    const auto part = bytes.first(std::min(bytes.size(), static_cast<std::size_t>(missing_)));
    hash_.update(part);
    bytes = bytes.subspan(part.size());
    missing_ -= static_cast<std::int64_t>(part.size());
    if (missing_ > 0) return;
    checks_.push_back(hash_.digest());
    ++piece_;
    next_piece();
  }
}

std::uint64_t value_version(std::span<const std::uint64_t> checksums) {
  return checksums.size() == 1 ? checksums.front() : xxh3(std::as_bytes(checksums), 0);
}

}  // namespace icefield
