// client/value_check.h — what a node sent as the bytes of values, verified.
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
};

// Hashes every piece that came once and holds it against the chunks' checksums. kInternal when the
// reply does not fit what was asked.
Result<std::vector<CheckedValue>> check_values(std::span<const AskedValue> asked,
                                               const GetValuesReply& reply);

}  // namespace icefield
