// cache_node/value_records.h — what a store keeps beside the chunks of values
// (docs/formats/value.md).
#pragma once

#include <cstdint>
#include <string>

#include "common/ids.h"

namespace icefield {

// What a value is called. Stored after its chunks: a value on disk counts from then on.
struct ValueName {
  std::uint64_t flush_number = 0;  // under which it was put
  std::string name_space;
  std::string key;

  Bytes encode() const;
  // kDataLoss when it is none.
  static Result<ValueName> parse(ConstByteSpan bytes);
};

// The highest flush number of a namespace. A raised one is a new object: the highest counts.
struct NamespaceRecord {
  std::uint64_t flush_number = 0;
  std::string name_space;

  ObjectKey key() const;
  Bytes encode() const;
  static Result<NamespaceRecord> parse(ConstByteSpan bytes);
};

}  // namespace icefield
