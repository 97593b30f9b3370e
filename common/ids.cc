#include "common/ids.h"

#include <algorithm>

namespace icefield {
namespace {

template <class T>
T typed(const Hash128& hash) {
  T result;
  result.bytes = hash.bytes;
  return result;
}

template <class T>
std::array<std::byte, sizeof(T)> le_bytes(T value) {
  std::array<std::byte, sizeof(T)> bytes;
  store(bytes.data(), value);
  return bytes;
}

void put_be16(std::byte* at, std::uint16_t value) {
  at[0] = static_cast<std::byte>(value >> 8);
  at[1] = static_cast<std::byte>(value & 0xff);
}
std::uint16_t get_be16(const std::byte* at) {
  return static_cast<std::uint16_t>((std::to_integer<unsigned>(at[0]) << 8) |
                                    std::to_integer<unsigned>(at[1]));
}

}  // namespace

PrefixHash prefix_root(const PrefixRoot& root) {
  constexpr std::uint64_t kFirstPosition = 0;
  return typed<PrefixHash>(hash_fields({as_bytes("root"), as_bytes(root.name_space),
                                        as_bytes(root.salt), root.fingerprint.span(),
                                        le_bytes(root.flush_number), le_bytes(kFirstPosition)}));
}

PrefixHash prefix_next(const PrefixHash& previous, std::span<const std::uint32_t> tokens,
                       std::vector<BlockExtra> extras) {
  ICE_CHECK(tokens.size() == static_cast<std::size_t>(kBlockTokens));
  std::sort(extras.begin(), extras.end());
  std::vector<ConstByteSpan> fields = {as_bytes("block"), previous.span(), std::as_bytes(tokens)};
  for (const BlockExtra& extra : extras) {
    fields.push_back(as_bytes(extra.first));
    fields.push_back(extra.second);
  }
  return typed<PrefixHash>(hash_fields(fields));
}

std::vector<PrefixHash> prefix_chain(const PrefixRoot& root,
                                     std::span<const std::uint32_t> tokens) {
  std::vector<PrefixHash> chain = {prefix_root(root)};
  while (tokens.size() >= static_cast<std::size_t>(kBlockTokens)) {
    chain.push_back(prefix_next(chain.back(), tokens.first(kBlockTokens)));
    tokens = tokens.subspan(kBlockTokens);
  }
  return chain;
}

SegmentId segment_id(const PrefixHash& before, const PrefixHash& end, const Origin& origin) {
  Bytes field;
  ByteWriter writer(field);
  writer.put<std::uint8_t>(origin.exact() ? 0 : 1);
  if (!origin.exact()) writer.put(*origin.approx_tag);
  return typed<SegmentId>(hash_fields({as_bytes("segment"), before.span(), end.span(), field}));
}

NamespaceId namespace_id(std::string_view name_space) {
  return typed<NamespaceId>(hash_fields({as_bytes("namespace"), as_bytes(name_space)}));
}

BuildId build_id(ConstByteSpan manifest) { return typed<BuildId>(sha256_prefix(manifest)); }

std::array<std::byte, ObjectKey::kBytes> ObjectKey::bytes() const {
  std::array<std::byte, kBytes> out;
  std::copy(segment.bytes.begin(), segment.bytes.end(), out.begin());
  std::copy(build.bytes.begin(), build.bytes.end(), out.begin() + 16);
  out[32] = static_cast<std::byte>(part.kind);
  put_be16(&out[33], part.layer);
  put_be16(&out[35], part.kv_head);
  put_be16(&out[37], part.extent);
  return out;
}

Result<ObjectKey> ObjectKey::parse(ConstByteSpan bytes) {
  if (bytes.size() != kBytes) {
    return Status(Code::kInvalidArgument,
                  "object key of " + std::to_string(bytes.size()) + " bytes, expected 39");
  }
  if (std::to_integer<int>(bytes[32]) >= kPartKindCount) {
    return Status(Code::kInvalidArgument,
                  "object key of kind " + std::to_string(std::to_integer<int>(bytes[32])));
  }
  ObjectKey key;
  std::copy_n(bytes.begin(), 16, key.segment.bytes.begin());
  std::copy_n(bytes.begin() + 16, 16, key.build.bytes.begin());
  key.part.kind = static_cast<PartKind>(bytes[32]);
  key.part.layer = get_be16(&bytes[33]);
  key.part.kv_head = get_be16(&bytes[35]);
  key.part.extent = get_be16(&bytes[37]);
  return key;
}

std::string to_string(const ObjectKey& key) {
  if (key.part.kind >= PartKind::kValue) {
    std::string text = to_string(key.segment).substr(0, 8) + " ";
    text += to_string(key.part.kind);
    if (key.part.kind == PartKind::kValue) text += " " + std::to_string(key.part.extent);
    return text;
  }
  std::string text =
      to_string(key.segment).substr(0, 8) + "/" + to_string(key.build).substr(0, 8) + " ";
  text += to_string(key.part.kind);
  if (key.part.kind == PartKind::kManifest || key.part.kind == PartKind::kFingerprint) return text;
  text += " layer " + std::to_string(key.part.layer);
  if (key.part.kind == PartKind::kExtent) {
    text += " head " + std::to_string(key.part.kv_head);
    text += " no " + std::to_string(key.part.extent);
  }
  return text;
}

ValueHash value_hash(std::string_view name_space, std::uint64_t flush_number,
                     std::string_view key) {
  return typed<ValueHash>(hash_fields(
      {as_bytes("value"), as_bytes(name_space), le_bytes(flush_number), as_bytes(key)}));
}

ObjectKey value_chunk_key(const ValueHash& hash, std::int64_t chunk_count, std::int64_t chunk) {
  ObjectKey key;
  key.segment.bytes = hash.bytes;
  key.part = {.kind = PartKind::kValue,
              .layer = static_cast<std::uint16_t>(chunk_count - 1),
              .kv_head = PartId::kAllHeads,
              .extent = static_cast<std::uint16_t>(chunk)};
  return key;
}

ObjectKey value_name_key(const ValueHash& hash) {
  ObjectKey key;
  key.segment.bytes = hash.bytes;
  key.part.kind = PartKind::kValueName;
  return key;
}

std::size_t ObjectKeyHasher::operator()(const ObjectKey& key) const {
  return static_cast<std::size_t>(xxh3(key.bytes(), 0));
}

std::uint64_t checksum_seed(const SegmentId& segment, PartKind kind, std::uint16_t layer,
                            std::uint16_t kv_head, std::uint32_t ordinal) {
  const std::uint64_t place = (static_cast<std::uint64_t>(kind) << 56) |
                              (static_cast<std::uint64_t>(layer) << 40) |
                              (static_cast<std::uint64_t>(kv_head) << 24) | ordinal;
  return segment.low64() ^ place;
}

std::uint64_t checksum_seed(const ObjectKey& key) {
  return checksum_seed(key.segment, key.part.kind, key.part.layer, key.part.kv_head,
                       key.part.extent);
}

std::uint64_t value_piece_check(const ValueHash& hash, std::int64_t piece, ConstByteSpan bytes) {
  SegmentId place;
  place.bytes = hash.bytes;
  return xxh3(bytes,
              checksum_seed(place, PartKind::kValue, 0, 0, static_cast<std::uint32_t>(piece)));
}

void value_piece_checks(const ObjectKey& chunk, std::span<const ConstByteSpan> parts,
                        std::vector<std::uint64_t>& checks) {
  std::vector<ConstByteSpan> piece;  // of one piece
  std::int64_t missing = kValuePieceBytes;
  std::uint32_t number = chunk.part.extent * (kValueChunkBytes / kValuePieceBytes);
  const auto finish = [&] {
    checks.push_back(xxh3(piece, checksum_seed(chunk.segment, PartKind::kValue, 0, 0, number++)));
    piece.clear();
    missing = kValuePieceBytes;
  };
  for (ConstByteSpan part : parts) {
    while (!part.empty()) {
      const ConstByteSpan taken = part.first(std::min(part.size(), std::size_t(missing)));
      piece.push_back(taken);
      part = part.subspan(taken.size());
      missing -= static_cast<std::int64_t>(taken.size());
      if (missing == 0) finish();
    }
  }
  if (!piece.empty()) finish();
}

std::uint64_t value_chunk_checksum(const ObjectKey& chunk, std::span<const std::uint64_t> checks) {
  return xxh3(std::as_bytes(checks), checksum_seed(chunk));
}

std::uint64_t object_checksum(const ObjectKey& key, std::span<const ConstByteSpan> parts) {
  if (key.part.kind != PartKind::kValue) return xxh3(parts, checksum_seed(key));
  std::vector<std::uint64_t> checks;
  value_piece_checks(key, parts, checks);
  return value_chunk_checksum(key, checks);
}

std::uint32_t row_check(ConstByteSpan row, const SegmentId& segment, std::uint16_t layer,
                        std::uint16_t kv_head, std::uint32_t row_index) {
  return static_cast<std::uint32_t>(
      xxh3(row, checksum_seed(segment, PartKind::kExtent, layer, kv_head, row_index)));
}

}  // namespace icefield
