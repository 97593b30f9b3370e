// cache_node/messages.h — what a cache node can be asked, as domain types.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cluster_index/segment/pieces.h"
#include "common/ids.h"
#include "storage/tier.h"
#include "transport/transport.h"

namespace icefield {

enum class NodeMethod : MethodId {
  kPut = 1,
  kGet = 2,
  kRemove = 3,
  kMatch = 4,
  kReadPages = 5,
  kListBuilds = 6,
  kPutValues = 7,
  kGetValues = 8,
  kFindValues = 9,
  kRemoveValues = 10,
  kListValues = 11,
  kFlushValues = 12,
  kStats = 13,
  kPing = 14,  // answers with nothing
};
constexpr int kNodeMethodCount = 15;            // numbers up to here
std::string_view to_string(NodeMethod method);  // "read_pages"; "unknown" for what is none

// Limits of one request; a client splits what is larger.
constexpr std::int64_t kMaxRequestBytes = 64 << 20;  // of objects and values, either way
constexpr std::int64_t kMaxRequestItems = 1 << 16;
constexpr std::int64_t kMaxRequestKeyBytes = 4 << 20;  // of values

// The keys of values that one request names.
class RequestKeys {
 public:
  // False: there is no room for it.
  bool take(std::string_view key) {
    const std::int64_t bytes = bytes_ + std::ssize(key);
    if (count_ == kMaxRequestItems || bytes > kMaxRequestKeyBytes) return false;
    ++count_;
    bytes_ = bytes;
    return true;
  }

 private:
  std::int64_t count_ = 0;
  std::int64_t bytes_ = 0;
};

struct PutObject {
  ObjectKey key;
  ObjectInfo info;
  ConstByteSpan bytes;
};

struct GetItem {
  Status status;
  ObjectInfo info;      // zero where the status is an error
  ConstByteSpan bytes;  // in the reply's payload
};
struct GetReply {
  std::vector<GetItem> items;  // one per key
  Buffer payload;
};

// Which builds of a namespace end at these prefixes?
struct MatchQuery {
  std::string name_space;
  std::vector<PrefixHash> ends;
  FingerprintHash fingerprint;
};
struct MatchReply {
  std::vector<StoredBuild> builds;
  // Another model's fingerprint, when builds are stored but none of the asking model.
  std::optional<FingerprintHash> other_fingerprint;
};

// Pages of one (segment, layer, KV head).
struct HeadPages {
  PrefixHash end;  // of the segment: says which node has it; does not travel
  SegmentId segment;
  BuildId build;
  std::int32_t layer = 0;
  std::int32_t kv_head = 0;
  std::vector<std::uint16_t> first_rows;  // of each page, ascending multiples of page_rows
};

// All pages that one step wants from a node, for all of its contexts.
struct PageRequest {
  std::int32_t page_rows = 1;
  std::int64_t row_bytes = 0;
  bool scrub = false;  // verify the extents first: a row failed its check
  std::vector<std::vector<HeadPages>> contexts;

  std::int64_t page_bytes() const { return page_rows * row_bytes; }
  std::int64_t page_count() const;
};

struct HeadOutcome {
  Status status;                            // the first error, or ok
  std::vector<std::uint16_t> failed_pages;  // positions in first_rows; their bytes are zero
};
struct PageReply {
  std::vector<HeadOutcome> heads;  // of all contexts, in order
  Buffer pages;                    // back to back
};

struct ListBuildsReply {
  std::vector<StoredBuild> builds;
  std::vector<TierUsage> tiers;
};

// Ok when a node can answer the request: page_rows 1, 2, 4, 8 or 16; rows of the format's sizes;
// first rows ascending, aligned and inside a segment; the reply within kMaxRequestBytes.
Status validate(const PageRequest& request);

}  // namespace icefield
