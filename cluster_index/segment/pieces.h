// cluster_index/segment/pieces.h — where a run of tokens is cut into segments, and which stored
// segments cover a sequence best. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"
#include "proto/manifest.h"

namespace icefield {

struct Piece {
  std::int64_t first_token = 0;
  std::int32_t token_count = 0;
  friend bool operator==(const Piece&, const Piece&) = default;
};

// [begin, end) as the fewest aligned segments: from the left the largest length that starts at a
// multiple of itself and fits. Both ends are multiples of a block. Independent writers that seal at
// the same positions cut alike.
std::vector<Piece> aligned_pieces(std::int64_t begin, std::int64_t end);

// The first token of the window of a context of `end` tokens: the multiple of 256 for which
// 256 <= end - w < 512; 0 while the context is shorter.
std::int64_t window_begin(std::int64_t end);

// A build that a node offered in answer to a prefix lookup.
struct StoredBuild {
  SegmentName segment;
  BuildId build;
  Slice slice;
  NamespaceId name_space;  // the node's affair: it does not travel
  FingerprintHash fingerprint;
  std::int64_t stored_bytes = 0;  // of all its parts
  std::int64_t manifest_bytes = 0;
};

// The chain of exact whole-model builds that reaches furthest into `prefix` (h_0 … h_n), then with
// the fewest segments, then with the smallest ids. Builds that do not fit the prefix are ignored.
// Empty when nothing matches.
std::vector<StoredBuild> best_chain(std::span<const PrefixHash> prefix,
                                    std::span<const StoredBuild> builds, const Slice& whole);

}  // namespace icefield
