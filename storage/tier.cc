#include "storage/tier.h"

namespace icefield {

std::int64_t ObjectBytes::size() const {
  std::size_t size = 0;
  for (const ConstByteSpan piece : pieces_) size += piece.size();
  return static_cast<std::int64_t>(size);
}

const std::byte* ObjectBytes::find(std::int64_t offset, std::int64_t count) const {
  for (const ConstByteSpan piece : pieces_) {
    const auto size = static_cast<std::int64_t>(piece.size());
    if (offset < size) return offset + count <= size ? piece.data() + offset : nullptr;
    offset -= size;
  }
  return nullptr;
}

Bytes ObjectBytes::copy() const {
  Bytes bytes;
  bytes.reserve(static_cast<std::size_t>(size()));
  for (const ConstByteSpan piece : pieces_) bytes.insert(bytes.end(), piece.begin(), piece.end());
  return bytes;
}

Status check_info(const ObjectInfo& info) {
  if (info.bytes >= 0 && info.bytes <= UINT32_MAX) return Status();
  return Status(Code::kInvalidArgument,
                "object of " + std::to_string(info.bytes) + " bytes, expected less than 4 GiB");
}

const Clock& system_clock() {
  static const SystemClock clock;
  return clock;
}

Status verify_object(const ObjectKey& key, const ObjectInfo& info,
                     std::span<const ConstByteSpan> pieces) {
  std::size_t size = 0;
  for (const ConstByteSpan piece : pieces) size += piece.size();
  if (static_cast<std::int64_t>(size) != info.bytes ||
      object_checksum(key, pieces) != info.checksum) {
    return Status(Code::kDataLoss, "checksum mismatch, object " + to_string(key),
                  MissReason::kIntegrity);
  }
  return Status();
}

}  // namespace icefield
