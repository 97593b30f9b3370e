// transport/ucx/wire.h — what travels as UCX active messages.
#pragma once

#include <cstdint>
#include <type_traits>

namespace icefield::ucx {

// Version of the handshake, the fragments and the messages: both sides must speak the same.
constexpr std::uint32_t kWireVersion = 2;  // checksums of a put follow its values

// The one active message id in use.
constexpr unsigned kActiveMessage = 1;

// A message (header ‖ payload) travels in fragments of at most this many bytes, each one eager
// active message that fits a segment of its lane (ucx_worker.cc sets the segments): the receiver
// copies it from the segment to its place, and neither side ever needs a rendezvous. Over TCP every
// fragment is a system call: larger ones. The receiver takes any size.
constexpr std::int64_t kFragmentBytes = 32 << 10;
constexpr std::int64_t kTcpFragmentBytes = 480 << 10;

// A header is a Protobuf message; anything longer is garbage.
constexpr std::uint32_t kMaxHeaderBytes = 16 << 20;

// Answered by the connection itself, with nothing: a client measures the bandwidth with it.
constexpr std::uint16_t kProbeMethod = 0xffff;

enum class FragmentKind : std::uint8_t {
  kRequest = 1,
  kReply = 2,
  kAbort = 3,  // the rest of this request will not come
};

// Precedes every fragment. Little-endian, in place.
struct FragmentHeader {
  std::uint64_t connection = 0;      // as the receiver named it in the handshake
  std::uint64_t call = 0;            // as the caller numbered it
  std::uint64_t payload_bytes = 0;   // of the whole message
  std::uint64_t offset = 0;          // of this fragment in header ‖ payload
  std::uint64_t reply_capacity = 0;  // requests: the most payload that the caller can take
  std::uint32_t header_bytes = 0;    // of the whole message
  std::uint16_t method = 0;          // requests
  FragmentKind kind = FragmentKind::kRequest;
  std::uint8_t code = 0;  // replies: an icefield::Code; when not ok the header is its message

  std::uint64_t message_bytes() const { return header_bytes + payload_bytes; }
};
static_assert(std::is_trivially_copyable_v<FragmentHeader> && sizeof(FragmentHeader) == 48);

}  // namespace icefield::ucx
