// proto/manifest.h — the manifest of a build: what it covers, and every part with length and
// checksum. It is stored last: it is the commit. Bytes: docs/formats/manifest.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"
#include "proto/layout.h"

namespace icefield {

// The layers and KV heads that one writer holds (pipeline and tensor parallel ranks).
struct Slice {
  std::int32_t first_layer = 0;
  std::int32_t layer_count = 0;
  std::int32_t first_kv_head = 0;
  std::int32_t kv_head_count = 0;

  static Slice whole(const KvShape& shape) {
    return {.layer_count = shape.layer_count, .kv_head_count = shape.kv_head_count};
  }
  friend bool operator==(const Slice&, const Slice&) = default;
};

// A segment: which tokens, after which, and how their K/V came about.
struct SegmentName {
  PrefixHash before;  // h_a
  PrefixHash end;     // h_b
  Origin origin;
  std::int64_t first_token = 0;  // position of its first token
  std::int32_t token_count = 0;  // 256, 1024 or 4096

  SegmentId id() const { return segment_id(before, end, origin); }
  std::int64_t end_token() const { return first_token + token_count; }
  friend bool operator==(const SegmentName&, const SegmentName&) = default;
};

struct PartEntry {
  PartId id;
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;  // XXH3-64 with checksum_seed()

  friend bool operator==(const PartEntry&, const PartEntry&) = default;
};

struct Manifest {
  NamespaceId name_space;  // who may find the build
  FingerprintHash fingerprint;
  SegmentName segment;
  KvShape model;  // all layers and heads of the model
  Slice slice;
  std::vector<PartEntry> parts;  // sorted by id; complete

  Bytes serialise() const;
  // kInvalidArgument when the bytes are not a complete manifest of this layout version.
  static Result<Manifest> parse(ConstByteSpan bytes);

  std::int64_t part_bytes() const;  // of all parts together
  friend bool operator==(const Manifest&, const Manifest&) = default;
};

// The ids of all parts that a build of this slice has, sorted.
std::vector<PartId> parts_of(const Slice& slice, std::int32_t token_count);

// Ok when `token_count` is one of the aligned lengths and `first_token` a multiple of it.
Status validate_alignment(std::int64_t first_token, std::int64_t token_count);

}  // namespace icefield
