// transport/ucx/assembly.h — one message put together from its fragments.
#pragma once

#include <string>

#include "common/bytes.h"
#include "transport/buffer.h"
#include "transport/ucx/wire.h"

namespace icefield::ucx {

// Fragments may come in any order; each is copied once, to its place.
class Assembly {
 public:
  // `payload` must have the capacity for the payload of the message that `first` belongs to.
  Assembly(const FragmentHeader& first, Buffer payload);

  // False when the fragment belongs to no such message.
  bool add(const FragmentHeader& fragment, ConstByteSpan bytes);
  bool complete() const { return received_ == header_.size() + payload_bytes(); }

  std::string& header() { return header_; }
  Buffer& payload() { return payload_; }

 private:
  std::uint64_t payload_bytes() const { return static_cast<std::uint64_t>(payload_.size()); }

  std::string header_;
  Buffer payload_;
  std::uint64_t received_ = 0;
};

}  // namespace icefield::ucx
