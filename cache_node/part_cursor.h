// cache_node/part_cursor.h — cuts scattered bytes anew.
#pragma once

#include <span>
#include <vector>

#include "common/bytes.h"

namespace icefield {

// Takes bytes off the front of parts that together are one run of bytes.
class PartCursor {
 public:
  explicit PartCursor(std::span<const ConstByteSpan> parts) : parts_(parts) {}

  // Appends the next `bytes` to `out`; there must be as many.
  void take(std::int64_t bytes, std::vector<ConstByteSpan>& out) {
    while (bytes > 0) {
      ICE_CHECK(!parts_.empty());
      const ConstByteSpan rest = parts_.front().subspan(at_);
      const auto taken = rest.first(std::min(rest.size(), static_cast<std::size_t>(bytes)));
      if (!taken.empty()) out.push_back(taken);
      bytes -= static_cast<std::int64_t>(taken.size());
      at_ += taken.size();
      if (at_ < parts_.front().size()) continue;
      parts_ = parts_.subspan(1);
      at_ = 0;
    }
  }

 private:
  std::span<const ConstByteSpan> parts_;
  std::size_t at_ = 0;  // in the first
};

}  // namespace icefield
