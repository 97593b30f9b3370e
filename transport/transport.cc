#include "transport/transport.h"

#include <cstring>

namespace icefield {

std::string_view to_string(PeerState state) {
  switch (state) {
    case PeerState::kClosed: return "closed";
    case PeerState::kConnecting: return "connecting";
    case PeerState::kUp: return "up";
    case PeerState::kFailing: return "failing";
  }
  return "unknown";
}

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

Status check_read(const RegionSpan& from, std::int64_t region_bytes, const Buffer& into) {
  if (from.offset < 0 || from.bytes < 0 || from.offset > region_bytes ||
      from.bytes > region_bytes - from.offset) {
    return Status(Code::kInvalidArgument, std::to_string(from.bytes) + " bytes from " +
                                              std::to_string(from.offset) + " on of a region of " +
                                              std::to_string(region_bytes));
  }
  if (from.bytes > into.capacity()) {
    return Status(Code::kResourceExhausted, "read of " + std::to_string(from.bytes) +
                                                " bytes, buffer of " +
                                                std::to_string(into.capacity()));
  }
  return Status();
}

}  // namespace icefield
