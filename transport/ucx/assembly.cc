#include "transport/ucx/assembly.h"

namespace icefield::ucx {

Assembly::Assembly(const FragmentHeader& first, Buffer payload)
    : header_(first.header_bytes, '\0'), payload_(std::move(payload)) {
  payload_.resize(static_cast<std::int64_t>(first.payload_bytes));
}

bool Assembly::add(const FragmentHeader& fragment, ConstByteSpan bytes) {
  if (fragment.header_bytes != header_.size() || fragment.payload_bytes != payload_bytes() ||
      fragment.offset != received_ || bytes.size() > message_bytes() - received_) {
    return false;
  }
  received_ += bytes.size();
  std::uint64_t offset = fragment.offset;
  if (offset < header_.size()) {
    const std::size_t part = std::min<std::size_t>(bytes.size(), header_.size() - offset);
    std::memcpy(header_.data() + offset, bytes.data(), part);
    bytes = bytes.subspan(part);
    offset += part;
  }
  if (!bytes.empty()) {
    std::memcpy(payload_.bytes().data() + (offset - header_.size()), bytes.data(), bytes.size());
  }
  return true;
}

}  // namespace icefield::ucx
