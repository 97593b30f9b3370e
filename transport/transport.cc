#include "transport/transport.h"

#include <atomic>
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

Result<std::int64_t> check_runs(std::span<const RegionRun> runs, std::int64_t region_bytes,
                                std::int64_t most) {
  std::int64_t bytes = 0;
  for (const RegionRun& run : runs) {
    if (run.offset < 0 || run.bytes < 0 || run.offset > region_bytes ||
        run.bytes > region_bytes - run.offset) {
      return Status(Code::kInvalidArgument, std::to_string(run.bytes) + " bytes from " +
                                                std::to_string(run.offset) + " on of a region of " +
                                                std::to_string(region_bytes));
    }
    if (run.bytes > most - bytes) {
      return Status(Code::kResourceExhausted,
                    "runs of more than " + std::to_string(most) + " bytes");
    }
    bytes += run.bytes;
  }
  return bytes;
}

void put_ticket(std::byte* at, std::uint64_t ticket) {
  std::atomic_ref(*reinterpret_cast<std::uint64_t*>(at)).store(ticket, std::memory_order_release);
}

bool take_ticket(std::byte* at, std::uint64_t ticket) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(at)).compare_exchange_strong(ticket, 0);
}

}  // namespace icefield
