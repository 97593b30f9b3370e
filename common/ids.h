// common/ids.h — what things are called: prefix hashes, segments, builds, objects, checksums.
//
// Wrong identity returns somebody else's KV silently, so every rule here is also in
// docs/formats/ids.md with test vectors made by an independent program.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/hash.h"
#include "common/status.h"

namespace icefield {

constexpr std::int64_t kBlockTokens = 256;  // the grain of prefix hashing

// Hashes of different meaning do not convert into each other.
template <class Tag>
struct TypedHash : Hash128 {
  friend auto operator<=>(const TypedHash&, const TypedHash&) = default;
};
using PrefixHash = TypedHash<struct PrefixHashTag>;    // h_k: all tokens up to a block's end
using SegmentId = TypedHash<struct SegmentIdTag>;      // tokens and origin, not bytes
using BuildId = TypedHash<struct BuildIdTag>;          // exact bytes: hash of the manifest
using NamespaceId = TypedHash<struct NamespaceIdTag>;  // of a namespace's name
using FingerprintHash = TypedHash<struct FingerprintHashTag>;  // common/fingerprint.h

// What every prefix hash of a sequence starts from.
struct PrefixRoot {
  std::string name_space;          // tenants never share KV
  std::string salt;                // chosen by the caller; empty by default
  FingerprintHash fingerprint;     // of the model
  std::uint64_t flush_number = 0;  // raised to drop a namespace
};

// h_0.
PrefixHash prefix_root(const PrefixRoot& root);

// What else than its tokens decides a block's KV: (type, bytes), for example the content hash of
// an image, or an adapter's id and revision. Sorted by prefix_next().
using BlockExtra = std::pair<std::string, Bytes>;

// h_k from h_{k-1} and the block's `kBlockTokens` token ids.
PrefixHash prefix_next(const PrefixHash& previous, std::span<const std::uint32_t> tokens,
                       std::vector<BlockExtra> extras = {});

// h_0, h_1 … h_n for the n whole blocks of `tokens`.
std::vector<PrefixHash> prefix_chain(const PrefixRoot& root, std::span<const std::uint32_t> tokens);

// How the K/V of a segment came about. Exact: dense attention (or budget >= length) over exact
// parents; found by prefix lookup. Approx: at a small budget; carries a random tag and belongs to
// its own context and its forks.
struct Origin {
  std::optional<std::uint64_t> approx_tag;  // empty: exact

  bool exact() const { return !approx_tag.has_value(); }
  friend bool operator==(const Origin&, const Origin&) = default;
};

// The segment that covers the blocks (a, b].
SegmentId segment_id(const PrefixHash& before, const PrefixHash& end, const Origin& origin);

// What a manifest says of the namespace it belongs to.
NamespaceId namespace_id(std::string_view name_space);

// Build id of a manifest, whose bytes list every part with length and checksum.
BuildId build_id(ConstByteSpan manifest);

// ---------------------------------------------------------------------------------- object keys

enum class PartKind : std::uint8_t {
  kManifest = 0,
  kLists = 1,     // L0
  kClusters = 2,  // L1
  kCodes = 3,     // L2
  kOrder = 4,
  kExtent = 5,
  kFingerprint = 6,  // the text whose hash is the fingerprint; segment field = that hash, build 0
  // Below, the segment field is the key hash of a value, or a namespace's, and build is 0.
  kValue = 7,      // a chunk of a value: layer = number of the last chunk, extent = its own
  kValueName = 8,  // what a value is called; its commit (docs/formats/value.md)
  kNamespace = 9,  // a namespace's flush number
};
constexpr int kPartKindCount = 10;
std::string_view to_string(PartKind kind);  // "manifest", "L0" …

// One part of a build. Kinds 1 to 4 hold all KV heads of a layer: kv_head = kAllHeads.
struct PartId {
  static constexpr std::uint16_t kAllHeads = 0xffff;

  PartKind kind = PartKind::kManifest;
  std::uint16_t layer = 0;
  std::uint16_t kv_head = 0;
  std::uint16_t extent = 0;  // 256 rows each, in stored order

  friend auto operator<=>(const PartId&, const PartId&) = default;
};

// Name of a stored object.
struct ObjectKey {
  static constexpr std::size_t kBytes = 16 + 16 + 1 + 2 + 2 + 2;

  SegmentId segment;
  BuildId build;
  PartId part;

  // segment ‖ build ‖ kind u8 ‖ layer u16be ‖ head u16be ‖ extent u16be: sorts by build, then part.
  std::array<std::byte, kBytes> bytes() const;
  static Result<ObjectKey> parse(ConstByteSpan bytes);

  friend auto operator<=>(const ObjectKey&, const ObjectKey&) = default;
};
std::string to_string(const ObjectKey& key);  // "4f21ab09/77c01d52 extent layer 3 head 1 no 7"

struct ObjectKeyHasher {
  std::size_t operator()(const ObjectKey& key) const;
};

// --------------------------------------------------------------------------------------- values

constexpr std::int64_t kMaxValueKeyBytes = 1 << 10;
constexpr std::int64_t kMaxNamespaceBytes = 256;
constexpr std::int64_t kMaxValueBytes = 1 << 30;
constexpr std::int64_t kValueChunkBytes = 1 << 20;   // the unit of storage
constexpr std::int64_t kValuePieceBytes = 64 << 10;  // the unit of verification

using ValueHash = TypedHash<struct ValueHashTag>;  // of namespace, flush number and key

ValueHash value_hash(std::string_view name_space, std::uint64_t flush_number, std::string_view key);

// Chunks of a value of `bytes` bytes: at least one, so that empty values exist, too.
constexpr std::int64_t value_chunk_count(std::int64_t bytes) {
  return bytes == 0 ? 1 : (bytes + kValueChunkBytes - 1) / kValueChunkBytes;
}
ObjectKey value_chunk_key(const ValueHash& hash, std::int64_t chunk_count, std::int64_t chunk);
ObjectKey value_name_key(const ValueHash& hash);

// ------------------------------------------------------------------------------------ checksums

// Seed of the XXH3-64 checksum of one part or row: right bytes in a wrong place fail too.
// `ordinal` is the row's number in the segment, or the part's extent number.
std::uint64_t checksum_seed(const SegmentId& segment, PartKind kind, std::uint16_t layer,
                            std::uint16_t kv_head, std::uint32_t ordinal);
std::uint64_t checksum_seed(const ObjectKey& key);

// The checksum of a stored object: of a value's chunk the XXH3-64 over the checks of its pieces
// (u64 each), so whoever holds the checks needs no second pass over the bytes; of everything else
// the XXH3-64 of its bytes. `parts` together are the object, cut anywhere.
std::uint64_t object_checksum(const ObjectKey& key, std::span<const ConstByteSpan> parts);

// The check of one piece; `piece` counts from the start of the value.
std::uint64_t value_piece_check(const ValueHash& hash, std::int64_t piece, ConstByteSpan bytes);
// The checks of the pieces of a chunk, cut anywhere, appended to `checks`.
void value_piece_checks(const ObjectKey& chunk, std::span<const ConstByteSpan> parts,
                        std::vector<std::uint64_t>& checks);
std::uint64_t value_chunk_checksum(const ObjectKey& chunk, std::span<const std::uint64_t> checks);

// The check of one row: the low 32 bits of its seeded XXH3-64.
std::uint32_t row_check(ConstByteSpan row, const SegmentId& segment, std::uint16_t layer,
                        std::uint16_t kv_head, std::uint32_t row_index);

}  // namespace icefield
