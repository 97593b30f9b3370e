#include "cache_node/value_messages.h"

namespace icefield {
namespace {

Status invalid(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

}  // namespace

Status PutOptions::validate() const {
  if (level > WriteLevel::kDurable || pin > PinKind::kHard) return invalid("unknown put option");
  if (ttl_ms < 0 || pin_ttl_ms < 0) return invalid("a time to live is negative");
  if (pin == PinKind::kSoft && pin_ttl_ms == 0) return invalid("a soft pin needs a time to live");
  return Status();
}

std::int64_t PutValue::end() const {
  return std::min(value_bytes,
                  (first_chunk + static_cast<std::int64_t>(checksums.size())) * kValueChunkBytes);
}

Status validate_namespace(std::string_view name_space) {
  if (static_cast<std::int64_t>(name_space.size()) <= kMaxNamespaceBytes) return Status();
  return invalid("namespace of " + std::to_string(name_space.size()) + " bytes, at most " +
                 std::to_string(kMaxNamespaceBytes));
}

Status validate_value_key(std::string_view key) {
  if (key.empty()) return invalid("the key is empty");
  if (static_cast<std::int64_t>(key.size()) <= kMaxValueKeyBytes) return Status();
  return invalid("key of " + std::to_string(key.size()) + " bytes, at most " +
                 std::to_string(kMaxValueKeyBytes));
}

Status validate_value_bytes(std::int64_t bytes) {
  if (bytes >= 0 && bytes <= kMaxValueBytes) return Status();
  return invalid("value of " + std::to_string(bytes) + " bytes, at most " +
                 std::to_string(kMaxValueBytes));
}

ChunkRange chunk_range(std::int64_t value_bytes, std::int64_t chunk, std::int64_t begin,
                       std::int64_t end) {
  const std::int64_t first = chunk * kValueChunkBytes;
  ChunkRange range{.chunk_bytes = std::min(value_bytes - first, kValueChunkBytes)};
  range.begin = std::clamp<std::int64_t>(begin - first, 0, range.chunk_bytes);
  range.end = std::clamp<std::int64_t>(end - first, 0, range.chunk_bytes);
  return range;
}

}  // namespace icefield
