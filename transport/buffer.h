// transport/buffer.h — memory that a transfer reads or writes, as a lease.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

#include "common/bytes.h"

namespace icefield {

// A move-only run of 64-byte aligned memory with a size up to its capacity. A call that takes a
// Buffer owns it until it gives it back with its result: nobody else touches the memory meanwhile,
// and a call that fails keeps it until the transport has let go.
class Buffer {
 public:
  Buffer() = default;
  // Not initialised. size() is 0.
  explicit Buffer(std::int64_t capacity)
      : data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(capacity), kAlign))),
        capacity_(capacity) {}
  ~Buffer() {
    if (data_ != nullptr) ::operator delete(data_, kAlign);
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        capacity_(std::exchange(other.capacity_, 0)),
        size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::int64_t capacity() const { return capacity_; }
  std::int64_t size() const { return size_; }
  void resize(std::int64_t size) {
    ICE_CHECK(size >= 0 && size <= capacity_);
    size_ = size;
  }
  ByteSpan bytes() { return {data_, static_cast<std::size_t>(size_)}; }
  ConstByteSpan bytes() const { return {data_, static_cast<std::size_t>(size_)}; }

 private:
  static constexpr std::align_val_t kAlign{64};
  std::byte* data_ = nullptr;
  std::int64_t capacity_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace icefield
