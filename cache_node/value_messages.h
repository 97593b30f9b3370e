// cache_node/value_messages.h — what a cache node can be asked about values, as domain types.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "storage/tier.h"
#include "transport/transport.h"

namespace icefield {

// What an acknowledged put has survived: nothing yet, or the flush that contains it.
enum class WriteLevel : std::uint8_t { kMemory = 0, kDurable = 1 };
// Soft: stays in memory for pin_ttl_ms while there is room for it. Hard: until it is removed or
// expires; counts against a quota.
enum class PinKind : std::uint8_t { kNone = 0, kSoft = 1, kHard = 2 };

struct PutOptions {
  WriteLevel level = WriteLevel::kMemory;
  std::int64_t ttl_ms = 0;  // 0: until it is evicted
  PinKind pin = PinKind::kNone;
  std::int64_t pin_ttl_ms = 0;  // of a soft pin, > 0

  Status validate() const;
};

// Whose values, and how often the asker knows them to have been flushed.
struct ValueScope {
  std::string_view name_space;
  std::uint64_t flush_number = 0;
};

// What starts every reply. A flush number that was behind the node's is kAborted: nothing was done.
struct ValueHead {
  Status status;
  std::uint64_t flush_number = 0;  // the node's
};

// A value, or consecutive whole chunks of one. The last chunk is as long as what is left.
struct PutValue {
  std::string_view key;
  std::int64_t value_bytes = 0;  // of all of it
  std::int64_t first_chunk = 0;
  std::span<const std::uint64_t> checksums;  // of the chunks that are here; they travel behind all
  std::span<const ConstByteSpan> parts;      // their bytes, cut anywhere

  std::int64_t begin() const { return first_chunk * kValueChunkBytes; }
  std::int64_t end() const;  // in the value
};
struct PutValues {
  ValueScope scope;
  std::vector<PutValue> values;
  Departure* departure = nullptr;  // may fill in the checksums while the values leave
  std::uint64_t upload = 0;        // of whoever sends the chunks of one value in several requests
  PutOptions options;
};
struct PutValuesReply {
  ValueHead head;
  std::vector<Result<PutOutcome>> outcomes;  // one per value
};

// At most `room` bytes from `offset` on. The offset stands at the start of a piece; what is read
// ends at the end of one, so a room that is not whole pieces must hold all of the rest.
struct GetValue {
  std::string_view key;
  std::int64_t offset = 0;
  std::int64_t room = 0;
};
struct GetValues {
  ValueScope scope;
  std::vector<GetValue> values;
  bool scrub = false;  // a piece failed its check: drop what is damaged
};

// What is known of the bytes of a batch of gets; one entry per value in the first three.
struct ValueFacts {
  std::vector<Status> statuses;
  std::vector<std::int64_t> value_bytes;  // 0 where the status is an error
  std::vector<std::uint64_t> versions;    // value_version(): equal for equal bytes of one key
  std::vector<std::uint64_t> checksums;   // of all chunks touched
  // Of all pieces of the chunks that are read in part: then the others' checks are needed, too.
  std::vector<std::uint64_t> piece_checks;
};

// Per key: its size, or why it is a miss.
struct FoundValues {
  ValueHead head;
  std::vector<Result<std::int64_t>> sizes;
};

struct ListedValue {
  std::string key;
  std::int64_t bytes = 0;
  friend bool operator==(const ListedValue&, const ListedValue&) = default;
};
struct ListedValues {
  ValueHead head;
  std::vector<ListedValue> values;  // sorted by key
  bool more = false;
};

struct NamedCount {
  std::string name;
  std::int64_t value = 0;
};
struct NamespaceStats {
  std::string name_space;
  std::uint64_t flush_number = 0;
  std::int64_t value_count = 0;
  std::int64_t value_bytes = 0;
};
struct NodeStats {
  std::vector<TierUsage> tiers;
  std::vector<NamedCount> counters;
  std::vector<NamespaceStats> namespaces;
};

// One-sided goes what is larger, in runs that are not small: below, a second look at the reply, or
// room granted ahead, costs more than one more copy.
constexpr std::int64_t kPlacedBytes = 16 << 10;
constexpr std::int64_t kPlacedRunBytes = 4 << 10;

Status validate_namespace(std::string_view name_space);
Status validate_value_key(std::string_view key);
Status validate_value_bytes(std::int64_t bytes);

// The part of chunk `chunk` that [begin, end) of a value of `value_bytes` covers; offsets in the
// chunk.
struct ChunkRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t chunk_bytes = 0;

  bool whole() const { return begin == 0 && end == chunk_bytes; }
};
ChunkRange chunk_range(std::int64_t value_bytes, std::int64_t chunk, std::int64_t begin,
                       std::int64_t end);

}  // namespace icefield
