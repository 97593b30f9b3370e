// bench/support/gpu_arena.h — memory of the GPU for tests and benchmarks.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/gpu.h"

namespace icefield {

// Stops the program when a call to the GPU went wrong.
void check_gpu(const Status& status);

// Memory of the GPU that lives as long as the arena, with a stream. Every array has memory of its
// own, so that checkers see what goes beyond an end. Copies wait until they are done.
class GpuArena {
 public:
  GpuArena();

  Stream stream() const { return stream_.get(); }
  void wait() const;

  // `count` poisoned elements: NaN as floats, -1 as integers.
  template <class T>
  T* make(std::int64_t count) {
    return static_cast<T*>(raw(count * static_cast<std::int64_t>(sizeof(T)), 0xff));
  }
  template <class T>
  T* zeros(std::int64_t count) {
    return static_cast<T*>(raw(count * static_cast<std::int64_t>(sizeof(T)), 0));
  }
  template <class T>
  T* put(const std::vector<T>& values) {
    T* at = make<T>(static_cast<std::int64_t>(values.size()));
    write(at, values);
    return at;
  }
  template <class T>
  void write(T* at, const std::vector<T>& values) {
    copy(at, values.data(), values.size() * sizeof(T));
  }
  template <class T>
  std::vector<T> get(const T* at, std::int64_t count) const {
    std::vector<T> values(static_cast<std::size_t>(count));
    copy(values.data(), at, values.size() * sizeof(T));
    return values;
  }

 private:
  void* raw(std::int64_t bytes, int poison);
  void copy(void* to, const void* from, std::size_t bytes) const;

  GpuStream stream_;
  std::vector<GpuMemory> blocks_;
};

}  // namespace icefield
