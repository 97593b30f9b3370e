#include "storage/rocks_crc32c.h"

#if defined(__x86_64__)
#include <dlfcn.h>
#include <nmmintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/check.h"

namespace rocksdb::crc32c {

// The CRC of what has the CRC `crc`, followed by `size` bytes: declared in RocksDB's util/crc32c.h,
// which is not installed.
[[gnu::visibility("default")]] std::uint32_t Extend(std::uint32_t crc, const char* data,
                                                    std::size_t size);

}  // namespace rocksdb::crc32c

namespace icefield {
namespace {

using Extend = std::uint32_t (*)(std::uint32_t, const char*, std::size_t);

[[gnu::target("sse4.2")]] std::uint32_t extend_sse42(std::uint32_t crc, const char* data,
                                                     std::size_t size) {
  std::uint64_t state = crc ^ 0xffffffffu;
  for (; size >= 8; data += 8, size -= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data, sizeof word);
    state = _mm_crc32_u64(state, word);
  }
  auto last = static_cast<std::uint32_t>(state);
  for (; size > 0; ++data, --size) last = _mm_crc32_u8(last, static_cast<std::uint8_t>(*data));
  return last ^ 0xffffffffu;
}

// RocksDB's own where the processor has no such instruction.
Extend choose() {
  if (__builtin_cpu_supports("sse4.2") != 0) return extend_sse42;
  void* const theirs = ::dlsym(RTLD_NEXT, "_ZN7rocksdb6crc32c6ExtendEjPKcm");
  ICE_CHECK(theirs != nullptr);  // RocksDB linked statically: this one is in the place of its own
  return reinterpret_cast<Extend>(theirs);
}

}  // namespace

bool has_fast_crc32c() {
  // The address that RocksDB calls.
  void* const called = ::dlsym(RTLD_DEFAULT, "_ZN7rocksdb6crc32c6ExtendEjPKcm");
  return called == reinterpret_cast<void*>(&rocksdb::crc32c::Extend);
}

}  // namespace icefield

std::uint32_t rocksdb::crc32c::Extend(std::uint32_t crc, const char* data, std::size_t size) {
  static const icefield::Extend extend = icefield::choose();
  return extend(crc, data, size);
}

#else  // RocksDB's own stays

bool icefield::has_fast_crc32c() { return false; }

#endif
