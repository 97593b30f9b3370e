#include "transport/transport.h"

#include <cstring>

namespace icefield {

std::int64_t payload_bytes(std::span<const ConstByteSpan> pieces) {
  std::size_t size = 0;
  for (const ConstByteSpan piece : pieces) size += piece.size();
  return static_cast<std::int64_t>(size);
}

void gather(std::span<const ConstByteSpan> pieces, Buffer& into) {
  into.resize(payload_bytes(pieces));
  std::byte* at = into.bytes().data();
  for (const ConstByteSpan piece : pieces) {
    if (piece.empty()) continue;
    std::memcpy(at, piece.data(), piece.size());
    at += piece.size();
  }
}

}  // namespace icefield
