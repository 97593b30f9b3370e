// common/xxh3_stream.h — XXH3 of bytes that come in parts.
#pragma once

#include <array>

#include "common/hash.h"

namespace icefield {

// The same values as xxh3().
class Xxh3Stream {
 public:
  explicit Xxh3Stream(std::uint64_t seed) { reset(seed); }
  void reset(std::uint64_t seed);
  void update(ConstByteSpan bytes);
  std::uint64_t digest() const;  // of what has come so far

 private:
  alignas(64) std::array<std::byte, 576> state_;
};

}  // namespace icefield
