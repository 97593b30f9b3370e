// common/bytes.h — spans of bytes, and little-endian numbers read from and written to them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common/check.h"

static_assert(std::endian::native == std::endian::little,
              "stored and wire bytes are little-endian and used in place");

namespace icefield {

// Allocates at multiples of 64 bytes: a cache line, the widest vector register.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlign{64};

  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlign));
  }
  void deallocate(T* at, std::size_t) { ::operator delete(at, kAlign); }
  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
};

using Bytes = std::vector<std::byte>;
using AlignedBytes = std::vector<std::byte, AlignedAllocator<std::byte>>;
using ByteSpan = std::span<std::byte>;
using ConstByteSpan = std::span<const std::byte>;

inline ConstByteSpan as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view as_text(ConstByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// `value` rounded up to a multiple of `grain` (> 0).
constexpr std::int64_t round_up(std::int64_t value, std::int64_t grain) {
  return (value + grain - 1) / grain * grain;
}
constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t grain) {
  return (value + grain - 1) / grain;
}

template <class T>
T load(const std::byte* at) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <class T>
void store(std::byte* at, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(at, &value, sizeof value);
}

// Appends numbers and bytes to a vector.
class ByteWriter {
 public:
  explicit ByteWriter(Bytes& out) : out_(out) {}
  template <class T>
  void put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    put_bytes(std::as_bytes(std::span(&value, 1)));
  }
  void put_bytes(ConstByteSpan bytes) {
    const std::size_t at = out_.size();
    out_.resize(at + bytes.size());
    std::copy(bytes.begin(), bytes.end(), out_.begin() + static_cast<std::ptrdiff_t>(at));
  }

 private:
  Bytes& out_;
};

// Reads what ByteWriter wrote. Reading past the end gives zeros and turns ok() false for good, so
// a decoder checks once, at the end.
class ByteReader {
 public:
  explicit ByteReader(ConstByteSpan bytes) : rest_(bytes) {}
  template <class T>
  T get() {
    static_assert(std::is_arithmetic_v<T>);
    const ConstByteSpan bytes = get_bytes(sizeof(T));
    return bytes.empty() ? T{} : load<T>(bytes.data());
  }
  // `count` bytes, or an empty span when fewer are left.
  ConstByteSpan get_bytes(std::size_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const ConstByteSpan bytes = rest_.first(count);
    rest_ = rest_.subspan(count);
    return bytes;
  }
  bool ok() const { return ok_; }
  std::size_t left() const { return rest_.size(); }

 private:
  ConstByteSpan rest_;
  bool ok_ = true;
};

std::string to_hex(ConstByteSpan bytes);

}  // namespace icefield
