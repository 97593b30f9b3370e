// cache_node/chunk_sums.h — the checksums of the chunks of a put, taken while the bytes pass.
#pragma once

#include <vector>

#include "common/ids.h"
#include "common/xxh3_stream.h"

namespace icefield {

// Chunks follow each other; every byte of them is hashed once, when it passes.
class ChunkSums {
 public:
  // All chunks first, then begin(), then their bytes.
  void add(const ObjectKey& chunk, std::int64_t bytes) { chunks_.push_back({chunk, bytes}); }
  void begin();

  // What comes behind the last chunk is not looked at.
  void pass(ConstByteSpan bytes);

  // One per chunk, 0 for those that have not passed. They stay in place from begin() on.
  std::span<const std::uint64_t> sums() const { return sums_; }

 private:
  struct Chunk {
    ObjectKey key;
    std::int64_t bytes = 0;
  };
  void next_piece();

  std::vector<Chunk> chunks_;
  std::vector<std::uint64_t> sums_;
  // The piece that is passing.
  std::size_t chunk_ = 0;
  std::int64_t piece_ = 0;             // of the chunk
  std::int64_t missing_ = 0;           // bytes of it
  Xxh3Stream hash_{0};                 // of the others
  std::vector<std::uint64_t> checks_;  // of the chunk's pieces before
};

// Of the checksums of all of a value's chunks: what says that they belong together.
std::uint64_t value_version(std::span<const std::uint64_t> checksums);

}  // namespace icefield
