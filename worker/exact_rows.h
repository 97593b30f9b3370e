// worker/exact_rows.h — K/V rows of consecutive tokens, kept exact: windows and unsealed contexts.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/bytes.h"
#include "common/float_bits.h"
#include "kernels/attend.h"
#include "proto/manifest.h"
#include "worker/device_copy.h"

namespace icefield {

// Rows of tokens [begin, end), for the layers and KV heads of one slice, in blocks of 64 tokens.
// fork() shares whole blocks and copies the last one when it is not full, so forks may both grow.
//
// Threads  One at a time; rows of different (layer, KV head) may be written side by side.
class ExactRows {
 public:
  static constexpr std::int64_t kBlockRows = RowRun::kMaxRows;

  // Positions start at `begin`, a multiple of 64. `shape` counts the slice's layers and heads.
  ExactRows(const KvShape& shape, std::int64_t begin) : shape_(shape), begin_(begin), end_(begin) {}

  std::int64_t begin() const { return begin_; }
  std::int64_t end() const { return end_; }

  // Makes room for rows up to `end`; their contents are the caller's to write.
  void extend(std::int64_t end);
  // Forgets rows from `end` on.
  void truncate(std::int64_t end);
  // Forgets rows before `begin`, a multiple of 64 not beyond end().
  void drop_before(std::int64_t begin);
  ExactRows fork() const;

  // K[d_k] V[d_v] of one token.
  Bf16* row(std::int32_t layer, std::int32_t kv_head, std::int64_t position);
  const Bf16* row(std::int32_t layer, std::int32_t kv_head, std::int64_t position) const;

  // Appends the runs of rows [first, end()) of one (layer, KV head).
  void append_runs(std::int32_t layer, std::int32_t kv_head, std::int64_t first,
                   std::vector<RowRun>& runs) const;

  struct Block {
    AlignedBytes rows;  // [layer, KV head, 64, row]
    // Of a processor with memory of its own, and how many rows of each layer it has.
    std::shared_ptr<DeviceCopy> device;
    std::vector<std::int32_t> device_rows;
  };
  // Blocks in use, the first at begin(); shared ones are the same in every fork.
  const std::deque<std::shared_ptr<Block>>& blocks() const { return blocks_; }
  std::int64_t block_bytes() const { return kBlockRows * shape_.token_bytes(); }

 private:
  Bf16* at(const Block& block, std::int32_t layer, std::int32_t kv_head,
           std::int64_t in_block) const;

  KvShape shape_;
  std::int64_t begin_;
  std::int64_t end_;
  std::deque<std::shared_ptr<Block>> blocks_;  // the first holds begin_
};

}  // namespace icefield
