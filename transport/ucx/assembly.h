// transport/ucx/assembly.h — one message put together from its fragments.
#pragma once

#include <string>

#include "common/bytes.h"
#include "transport/buffer.h"
#include "transport/ucx/wire.h"

namespace icefield::ucx {

// Fragments come in order (a connection has one lane for them); each is copied once, to its place.
// So a message has no hole that would show old memory.
class Assembly {
 public:
  // `payload` must have the capacity for the payload of the message that `first` belongs to.
  Assembly(const FragmentHeader& first, Buffer payload);

  // False when the fragment is not the next one of this message.
  bool add(const FragmentHeader& fragment, ConstByteSpan bytes);
  std::uint64_t message_bytes() const { return header_.size() + payload_bytes(); }
  bool complete() const { return received_ == message_bytes(); }

  std::string& header() { return header_; }
  Buffer& payload() { return payload_; }
  bool header_complete() const { return received_ >= header_.size(); }
  // What is there of the payload.
  ConstByteSpan payload_so_far() const {
    const std::uint64_t bytes = header_complete() ? received_ - header_.size() : 0;
    return payload_.bytes().first(static_cast<std::size_t>(bytes));
  }

 private:
  std::uint64_t payload_bytes() const { return static_cast<std::uint64_t>(payload_.size()); }

  std::string header_;
  Buffer payload_;
  std::uint64_t received_ = 0;
};

}  // namespace icefield::ucx
