#include "cache_node/value_records.h"

namespace icefield {
namespace {

constexpr std::uint32_t kNameMagic = 0x4e564349;       // "ICVN"
constexpr std::uint32_t kNamespaceMagic = 0x53564349;  // "ICVS"
constexpr std::uint32_t kVersion = 2;

void put_text(ByteWriter& writer, std::string_view text) {
  writer.put(static_cast<std::uint32_t>(text.size()));
  writer.put_bytes(as_bytes(text));
}

std::string get_text(ByteReader& reader) {
  return std::string(as_text(reader.get_bytes(reader.get<std::uint32_t>())));
}

void start(ByteWriter& writer, std::uint32_t magic) {
  writer.put(magic);
  writer.put(kVersion);
}

Status check(const ByteReader& reader, bool starts_well, const char* what) {
  if (starts_well && reader.ok() && reader.left() == 0) return Status();
  return Status(Code::kDataLoss, std::string(what) + " cannot be read", MissReason::kIntegrity);
}

bool starts_with(ByteReader& reader, std::uint32_t magic) {
  const auto first = reader.get<std::uint32_t>();
  const auto version = reader.get<std::uint32_t>();
  return first == magic && version == kVersion;
}

}  // namespace

Bytes ValueName::encode() const {
  Bytes bytes;
  ByteWriter writer(bytes);
  start(writer, kNameMagic);
  writer.put(flush_number);
  put_text(writer, name_space);
  put_text(writer, key);
  return bytes;
}

Result<ValueName> ValueName::parse(ConstByteSpan bytes) {
  ByteReader reader(bytes);
  const bool starts_well = starts_with(reader, kNameMagic);
  ValueName name;
  name.flush_number = reader.get<std::uint64_t>();
  name.name_space = get_text(reader);
  name.key = get_text(reader);
  ICE_TRY(check(reader, starts_well, "name of a value"));
  return name;
}

ObjectKey NamespaceRecord::key() const {
  ObjectKey object;
  object.segment.bytes = namespace_id(name_space).bytes;
  store(object.build.bytes.data(), flush_number);
  object.part.kind = PartKind::kNamespace;
  return object;
}

Bytes NamespaceRecord::encode() const {
  Bytes bytes;
  ByteWriter writer(bytes);
  start(writer, kNamespaceMagic);
  writer.put(flush_number);
  put_text(writer, name_space);
  return bytes;
}

Result<NamespaceRecord> NamespaceRecord::parse(ConstByteSpan bytes) {
  ByteReader reader(bytes);
  const bool starts_well = starts_with(reader, kNamespaceMagic);
  NamespaceRecord record;
  record.flush_number = reader.get<std::uint64_t>();
  record.name_space = get_text(reader);
  ICE_TRY(check(reader, starts_well, "record of a namespace"));
  return record;
}

}  // namespace icefield
