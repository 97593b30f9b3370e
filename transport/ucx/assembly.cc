#include "transport/ucx/assembly.h"

namespace icefield::ucx {

bool Assembly::fits(const FragmentHeader& fragment, ConstByteSpan bytes) const {
  return fragment.header_bytes == header_.size() && fragment.payload_bytes == payload_bytes_ &&
         fragment.method == method_ && fragment.offset == received_ &&
         bytes.size() <= message_bytes() - received_;
}

ConstByteSpan Assembly::add_to_header(ConstByteSpan bytes) {
  if (received_ >= header_.size()) return bytes;
  const std::size_t part = std::min<std::size_t>(bytes.size(), header_.size() - received_);
  if (part > 0) std::memcpy(header_.data() + received_, bytes.data(), part);
  received_ += part;
  return bytes.subspan(part);
}

void Assembly::set_payload(Payload payload) {
  placed_ = true;
  payload_ = std::move(payload);
  const auto bytes = static_cast<std::int64_t>(payload_bytes_);
  if (payload_.landing == nullptr) payload_.buffer.resize(bytes);
}

void Assembly::add_to_payload(ConstByteSpan bytes) {
  if (bytes.empty()) return;
  const std::size_t at = received_ - header_.size();
  received_ += bytes.size();
  if (payload_.landing == nullptr) {
    std::memcpy(payload_.buffer.bytes().data() + at, bytes.data(), bytes.size());
  } else {
    payload_.landing->add(bytes);
  }
}

}  // namespace icefield::ucx
