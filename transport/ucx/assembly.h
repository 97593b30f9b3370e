// transport/ucx/assembly.h — one message put together from its fragments.
#pragma once

#include <string>

#include "common/bytes.h"
#include "transport/transport.h"
#include "transport/ucx/wire.h"

namespace icefield::ucx {

// Fragments come in order (a connection has one lane for them); each is copied once, to its place.
// So a message has no hole that would show old memory.
class Assembly {
 public:
  explicit Assembly(const FragmentHeader& first)
      : header_(first.header_bytes, '\0'),
        payload_bytes_(first.payload_bytes),
        method_(first.method) {}

  // False when the fragment is not the next one of this message. As soon as the header is there,
  // once, `place(header)` gives the Payload that the bytes behind it go to.
  template <class Place>
  bool add(const FragmentHeader& fragment, ConstByteSpan bytes, Place&& place) {
    if (!fits(fragment, bytes)) return false;
    bytes = add_to_header(bytes);
    if (!header_complete()) return true;
    if (!placed_) set_payload(place(std::string_view(header_)));
    add_to_payload(bytes);
    return true;
  }

  std::uint64_t message_bytes() const { return header_.size() + payload_bytes_; }
  bool complete() const { return placed_ && received_ == message_bytes(); }

  std::string& header() { return header_; }
  bool header_complete() const { return received_ >= header_.size(); }
  Payload& payload() { return payload_; }
  std::uint64_t payload_bytes() const { return payload_bytes_; }
  // What is there of a payload that goes to a buffer.
  ConstByteSpan payload_so_far() const {
    const std::uint64_t bytes = header_complete() ? received_ - header_.size() : 0;
    return payload_.buffer.bytes().first(static_cast<std::size_t>(bytes));
  }

 private:
  bool fits(const FragmentHeader& fragment, ConstByteSpan bytes) const;
  // What is not the header's.
  ConstByteSpan add_to_header(ConstByteSpan bytes);
  void set_payload(Payload payload);
  void add_to_payload(ConstByteSpan bytes);

  std::string header_;
  const std::uint64_t payload_bytes_;
  const std::uint16_t method_;  // whose Landing the payload goes to
  std::uint64_t received_ = 0;
  bool placed_ = false;
  Payload payload_;
};

}  // namespace icefield::ucx
