// client/value_check.h — what a node sends as the bytes of values, verified while they arrive.
#pragma once

#include <span>
#include <vector>

#include "cache_node/value_stub.h"

namespace icefield {

// A piece run of a value that a node was asked for, and what came.
struct AskedValue {
  ValueHash hash;
  std::int64_t offset = 0;  // at the start of a piece
  std::int64_t room = 0;
};
struct CheckedValue {
  Status status;                 // as the node said, or kDataLoss
  std::int64_t value_bytes = 0;  // of the whole value
  std::uint64_t version = 0;
  ConstByteSpan bytes;  // in the reply's payload: [offset, offset + room) as far as there is
  // Of the chunks that are touched, where they are not all of the value's.
  std::vector<std::uint64_t> checksums;
};

// Hashes every piece once, as soon as all of it is there, and at the end holds the pieces against
// the chunks' checksums; and these, where all of a value's are there, against its version.
//
// Threads  arrived() on one at a time; finish() when there will be no more of it.
class ValueChecker final : public ValueArrival {
 public:
  explicit ValueChecker(std::vector<AskedValue> asked) : asked_(std::move(asked)) {}

  void arrived(const ValueFacts& facts, ConstByteSpan payload) override;
  // One per value asked for; `reply` was found and its payload has been seen. kInternal when it
  // does not fit what was asked.
  Result<std::vector<CheckedValue>> finish(const GetValuesReply& reply);

 private:
  // What is to be hashed, in the order of the payload.
  struct Piece {
    std::size_t end = 0;  // in the payload
    std::size_t size = 0;
    std::size_t value = 0;  // index in asked_
    std::int64_t number = 0;
    std::size_t check = 0;  // index in checks_
  };
  // Pieces of one chunk: their checks are checks_[first_check, first_check + check_count).
  struct Chunk {
    ObjectKey key;
    std::size_t value = 0;
    std::size_t first_check = 0;
    std::size_t check_count = 0;
    std::uint64_t checksum = 0;
  };
  struct Facts;  // those not used up yet
  // Where the bytes of a value are in the payload, and what is known of its chunks together.
  struct Extent {
    std::size_t begin = 0;
    std::size_t size = 0;
    bool all = false;    // they are here
    bool mixed = false;  // and are of several values
  };

  Status plan(const ValueFacts& facts);
  Status plan_value(std::size_t value, std::int64_t value_bytes, Facts& facts);
  Status plan_chunk(std::size_t value, const ObjectKey& key, const ChunkRange& range, Facts& facts);

  const std::vector<AskedValue> asked_;
  bool planned_ = false;
  Status misfit_;
  std::vector<Extent> extents_;  // one per value
  std::vector<Piece> pieces_;
  std::vector<Chunk> chunks_;
  std::vector<std::uint64_t> checks_;
  std::size_t hashed_ = 0;         // of pieces_
  std::size_t planned_bytes_ = 0;  // of the payload
};

}  // namespace icefield
