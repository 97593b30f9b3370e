// kernels/gpu.h — memory, streams and graphs of the GPU, for whoever calls the CUDA kernels. No
// CUDA header is needed to include this one.
//
// Threads: as the CUDA runtime, any; the current device is the calling thread's.
// Errors: kResourceExhausted when memory is short, kUnavailable without a device, kInternal with
// the runtime's message for everything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "common/status.h"

struct CUstream_st;

namespace icefield {

using Stream = CUstream_st*;  // a cudaStream_t; null is the default stream

// False where there is no device, no driver, or one older than sm_80 or with less than 160 KB of
// shared memory for a block (A100, H100 and their like have it; sm_86, sm_89 and sm_120 do not).
bool gpu_available();
// Multiprocessors of the current device: decides how finely kernels split their work.
Result<std::int32_t> gpu_processors();

// Memory of the current device; 256-byte aligned, contents undefined.
class GpuMemory {
 public:
  GpuMemory() = default;
  GpuMemory(GpuMemory&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  GpuMemory& operator=(GpuMemory&& other) noexcept;
  ~GpuMemory();

  static Result<GpuMemory> allocate(std::int64_t bytes);

  template <class T = std::byte>
  T* data() const {
    return static_cast<T*>(at_);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  void* at_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Memory of the host that the GPU reads and writes by itself; 64-byte aligned, contents undefined.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(PinnedMemory&& other) noexcept
      : at_(std::exchange(other.at_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  ~PinnedMemory();

  static Result<PinnedMemory> allocate(std::int64_t bytes);

  std::byte* data() const { return static_cast<std::byte*>(at_); }
  std::int64_t bytes() const { return bytes_; }

 private:
  void* at_ = nullptr;
  std::int64_t bytes_ = 0;
};

// Asynchronous in `stream`; either side may be memory of the host.
Status copy_on_gpu(void* to, const void* from, std::int64_t bytes, Stream stream);
Status fill_on_gpu(void* at, int byte, std::int64_t bytes, Stream stream);

class GpuStream {
 public:
  GpuStream() = default;
  GpuStream(GpuStream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  GpuStream& operator=(GpuStream&& other) = delete;
  ~GpuStream();

  static Result<GpuStream> create();
  Stream get() const { return handle_; }
  Status wait() const;  // until everything submitted is done

 private:
  Stream handle_ = nullptr;
};

// A recorded sequence of launches. The memory that they name must stay.
class GpuGraph {
 public:
  GpuGraph(GpuGraph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  GpuGraph& operator=(GpuGraph&& other) = delete;
  ~GpuGraph();

  // Runs `submit` once with `stream` in capture; what it submits is recorded and not done.
  static Result<GpuGraph> record(Stream stream, const std::function<Status()>& submit);
  Status launch(Stream stream) const;

 private:
  explicit GpuGraph(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;  // a cudaGraphExec_t
};

// Milliseconds that `submit` takes on the device, by events around it.
Result<float> gpu_time_ms(Stream stream, const std::function<Status()>& submit);

}  // namespace icefield
