#include "proto/manifest.h"

#include <algorithm>

namespace icefield {
namespace {

constexpr std::uint32_t kManifestMagic = 0x4d454349;  // "ICEM"

void put_hash(ByteWriter& writer, const Hash128& hash) { writer.put_bytes(hash.span()); }

template <class T>
T get_hash(ByteReader& reader) {
  T hash;
  const ConstByteSpan bytes = reader.get_bytes(hash.bytes.size());
  std::copy(bytes.begin(), bytes.end(), hash.bytes.begin());
  return hash;
}

void put_u16(ByteWriter& writer, std::int32_t value) {
  writer.put(static_cast<std::uint16_t>(value));
}

Status bad_manifest(const std::string& what) {
  return Status(Code::kInvalidArgument, "manifest: " + what);
}

// Of everything before it, seeded like any part of the segment.
std::uint64_t manifest_checksum(const SegmentId& segment, ConstByteSpan bytes) {
  return xxh3(bytes, checksum_seed(segment, PartKind::kManifest, 0, 0, 0));
}

Status check_meaning(const Manifest& manifest) {
  const Slice& slice = manifest.slice;
  ICE_TRY(validate(manifest.model).with_context("manifest"));
  ICE_TRY(validate_alignment(manifest.segment.first_token, manifest.segment.token_count)
              .with_context("manifest"));
  if (slice.layer_count < 1 || slice.kv_head_count < 1 ||
      slice.first_layer + slice.layer_count > manifest.model.layer_count ||
      slice.first_kv_head + slice.kv_head_count > manifest.model.kv_head_count) {
    return bad_manifest("its slice is not inside the model");
  }
  const std::vector<PartId> expected = parts_of(slice, manifest.segment.token_count);
  const auto same_id = [](const PartEntry& entry, const PartId& id) { return entry.id == id; };
  if (!std::equal(manifest.parts.begin(), manifest.parts.end(), expected.begin(), expected.end(),
                  same_id)) {
    return bad_manifest("its parts are not those of its slice");
  }
  return Status();
}

}  // namespace

Bytes Manifest::serialise() const {
  Bytes bytes;
  ByteWriter writer(bytes);
  writer.put(kManifestMagic);
  writer.put(kLayoutVersion);
  writer.put<std::uint16_t>(0);
  writer.put(static_cast<std::uint32_t>(parts.size()));
  writer.put(static_cast<std::uint32_t>(segment.token_count));
  writer.put(static_cast<std::uint64_t>(segment.first_token));
  put_hash(writer, fingerprint);
  put_hash(writer, segment.before);
  put_hash(writer, segment.end);
  writer.put<std::uint64_t>(segment.origin.exact() ? 0 : 1);
  writer.put(segment.origin.approx_tag.value_or(0));
  for (const std::int32_t value :
       {model.layer_count, model.kv_head_count, model.d_k, model.d_v, slice.first_layer,
        slice.layer_count, slice.first_kv_head, slice.kv_head_count}) {
    put_u16(writer, value);
  }
  put_hash(writer, name_space);
  for (const PartEntry& part : parts) {
    writer.put(static_cast<std::uint16_t>(part.id.kind));
    writer.put(part.id.layer);
    writer.put(part.id.kv_head);
    writer.put(part.id.extent);
    writer.put(part.bytes);
    writer.put(part.checksum);
  }
  writer.put(manifest_checksum(segment.id(), bytes));
  return bytes;
}

Result<Manifest> Manifest::parse(ConstByteSpan bytes) {
  ByteReader reader(bytes);
  if (reader.get<std::uint32_t>() != kManifestMagic) return bad_manifest("wrong magic");
  const auto version = reader.get<std::uint16_t>();
  if (version != kLayoutVersion) {
    return bad_manifest("layout version " + std::to_string(version) +
                        ", this program reads version " + std::to_string(kLayoutVersion) +
                        ": rebuild the store with this version");
  }
  reader.get<std::uint16_t>();
  Manifest manifest;
  const auto part_count = reader.get<std::uint32_t>();
  manifest.segment.token_count = static_cast<std::int32_t>(reader.get<std::uint32_t>());
  manifest.segment.first_token = static_cast<std::int64_t>(reader.get<std::uint64_t>());
  manifest.fingerprint = get_hash<FingerprintHash>(reader);
  manifest.segment.before = get_hash<PrefixHash>(reader);
  manifest.segment.end = get_hash<PrefixHash>(reader);
  const bool approx = reader.get<std::uint64_t>() != 0;
  const auto tag = reader.get<std::uint64_t>();
  if (approx) manifest.segment.origin.approx_tag = tag;
  for (std::int32_t* value :
       {&manifest.model.layer_count, &manifest.model.kv_head_count, &manifest.model.d_k,
        &manifest.model.d_v, &manifest.slice.first_layer, &manifest.slice.layer_count,
        &manifest.slice.first_kv_head, &manifest.slice.kv_head_count}) {
    *value = reader.get<std::uint16_t>();
  }
  manifest.name_space = get_hash<NamespaceId>(reader);
  constexpr std::size_t kEntryBytes = 24;
  if (!reader.ok() || reader.left() != part_count * kEntryBytes + sizeof(std::uint64_t)) {
    return bad_manifest(std::to_string(bytes.size()) + " bytes do not hold " +
                        std::to_string(part_count) + " parts");
  }
  for (std::uint32_t i = 0; i < part_count; ++i) {
    PartEntry part;
    part.id.kind = static_cast<PartKind>(reader.get<std::uint16_t>());
    part.id.layer = reader.get<std::uint16_t>();
    part.id.kv_head = reader.get<std::uint16_t>();
    part.id.extent = reader.get<std::uint16_t>();
    part.bytes = reader.get<std::uint64_t>();
    part.checksum = reader.get<std::uint64_t>();
    manifest.parts.push_back(part);
  }
  const ConstByteSpan covered = bytes.first(bytes.size() - sizeof(std::uint64_t));
  if (reader.get<std::uint64_t>() != manifest_checksum(manifest.segment.id(), covered)) {
    return Status(Code::kDataLoss, "manifest: checksum mismatch");
  }
  ICE_TRY(check_meaning(manifest));
  return manifest;
}

std::int64_t Manifest::part_bytes() const {
  std::uint64_t sum = 0;
  for (const PartEntry& part : parts) sum += part.bytes;
  return static_cast<std::int64_t>(sum);
}

std::vector<PartId> parts_of(const Slice& slice, std::int32_t token_count) {
  std::vector<PartId> ids;
  for (const PartKind kind :
       {PartKind::kLists, PartKind::kClusters, PartKind::kCodes, PartKind::kOrder}) {
    for (std::int32_t layer = 0; layer < slice.layer_count; ++layer) {
      ids.push_back({.kind = kind,
                     .layer = static_cast<std::uint16_t>(slice.first_layer + layer),
                     .kv_head = PartId::kAllHeads});
    }
  }
  for (std::int32_t layer = 0; layer < slice.layer_count; ++layer) {
    for (std::int32_t head = 0; head < slice.kv_head_count; ++head) {
      for (std::int32_t extent = 0; extent < token_count / kExtentRows; ++extent) {
        ids.push_back({.kind = PartKind::kExtent,
                       .layer = static_cast<std::uint16_t>(slice.first_layer + layer),
                       .kv_head = static_cast<std::uint16_t>(slice.first_kv_head + head),
                       .extent = static_cast<std::uint16_t>(extent)});
      }
    }
  }
  return ids;
}

Status validate_alignment(std::int64_t first_token, std::int64_t token_count) {
  if (std::find(kSegmentTokens.begin(), kSegmentTokens.end(), token_count) ==
      kSegmentTokens.end()) {
    return Status(Code::kInvalidArgument, "segment of " + std::to_string(token_count) +
                                              " tokens, expected 256, 1024 or 4096");
  }
  if (first_token < 0 || first_token % token_count != 0) {
    return Status(Code::kInvalidArgument, "segment of " + std::to_string(token_count) +
                                              " tokens at position " + std::to_string(first_token) +
                                              ", expected a multiple of its length");
  }
  return Status();
}

}  // namespace icefield
