// common/xxh3_kernels.h — XXH3 compiled once per instruction set; hash.cc picks one at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/bytes.h"

namespace icefield::internal {

constexpr std::size_t kXxh3StateBytes = 576;

struct Xxh3Kernel {
  std::uint64_t (*whole)(const std::byte* data, std::size_t size, std::uint64_t seed);
  std::uint64_t (*pieces)(std::span<const ConstByteSpan> pieces, std::uint64_t seed);
  // Of a state of kXxh3StateBytes, 64-byte aligned.
  void (*reset)(void* state, std::uint64_t seed);
  void (*update)(void* state, const std::byte* data, std::size_t size);
  std::uint64_t (*digest)(const void* state);
};

extern const Xxh3Kernel kXxh3Baseline;
#if defined(__x86_64__)
extern const Xxh3Kernel kXxh3Avx2;
extern const Xxh3Kernel kXxh3Avx512;
#endif

}  // namespace icefield::internal
