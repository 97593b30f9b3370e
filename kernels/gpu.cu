#include "kernels/gpu.h"
#include "kernels/launch.h"

namespace icefield {

using gpu::from_cuda;

namespace {

constexpr int kSharedBytes = 160 << 10;  // of a block; sm_86, sm_89 and sm_120 have less

// -1: not known.
int device_attribute(cudaDeviceAttr which) {
  int device = 0;
  int value = -1;
  if (cudaGetDevice(&device) != cudaSuccess) return -1;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : -1;
}

}  // namespace

bool gpu_available() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8 &&
         device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= kSharedBytes;
}

Result<std::int32_t> gpu_processors() {
  int device = 0;
  int count = 0;
  if (!gpu_available()) {
    return Status(Code::kUnavailable,
                  "no GPU of sm_80 or later with 160 KB of shared memory for a block");
  }
  ICE_TRY(from_cuda(cudaGetDevice(&device)));
  ICE_TRY(from_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device)));
  return count;
}

GpuMemory& GpuMemory::operator=(GpuMemory&& other) noexcept {
  std::swap(at_, other.at_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

GpuMemory::~GpuMemory() {
  if (at_ != nullptr) cudaFree(at_);
}

Result<GpuMemory> GpuMemory::allocate(std::int64_t bytes) {
  GpuMemory memory;
  if (bytes == 0) return Result<GpuMemory>(std::move(memory));
  ICE_TRY(from_cuda(cudaMalloc(&memory.at_, static_cast<std::size_t>(bytes))));
  memory.bytes_ = bytes;
  return Result<GpuMemory>(std::move(memory));
}

PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(at_, other.at_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedMemory::~PinnedMemory() {
  if (at_ != nullptr) cudaFreeHost(at_);
}

Result<PinnedMemory> PinnedMemory::allocate(std::int64_t bytes) {
  PinnedMemory memory;
  if (bytes == 0) return Result<PinnedMemory>(std::move(memory));
  ICE_TRY(from_cuda(cudaMallocHost(&memory.at_, static_cast<std::size_t>(bytes))));
  memory.bytes_ = bytes;
  return Result<PinnedMemory>(std::move(memory));
}

Status copy_on_gpu(void* to, const void* from, std::int64_t bytes, Stream stream) {
  if (bytes == 0) return Status();
  return from_cuda(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream));
}

Status fill_on_gpu(void* at, int byte, std::int64_t bytes, Stream stream) {
  if (bytes == 0) return Status();
  return from_cuda(cudaMemsetAsync(at, byte, static_cast<std::size_t>(bytes), stream));
}

GpuStream::~GpuStream() {
  if (handle_ != nullptr) cudaStreamDestroy(handle_);
}

Result<GpuStream> GpuStream::create() {
  GpuStream stream;
  ICE_TRY(from_cuda(cudaStreamCreateWithFlags(&stream.handle_, cudaStreamNonBlocking)));
  return Result<GpuStream>(std::move(stream));
}

Status GpuStream::wait() const { return from_cuda(cudaStreamSynchronize(handle_)); }

GpuGraph::~GpuGraph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

Result<GpuGraph> GpuGraph::record(Stream stream, const std::function<Status()>& submit) {
  ICE_TRY(from_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal)));
  const Status submitted = submit();
  cudaGraph_t graph = nullptr;
  const Status ended = from_cuda(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  const Status captured = submitted.ok() ? ended : submitted;
  const Status made = captured.ok() ? from_cuda(cudaGraphInstantiate(&exec, graph, 0)) : captured;
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  if (!made.ok()) return made;
  return GpuGraph(exec);
}

Status GpuGraph::launch(Stream stream) const {
  return from_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), stream));
}

Result<float> gpu_time_ms(Stream stream, const std::function<Status()>& submit) {
  cudaEvent_t begin{};
  cudaEvent_t end{};
  ICE_TRY(from_cuda(cudaEventCreate(&begin)));
  ICE_TRY(from_cuda(cudaEventCreate(&end)));
  ICE_TRY(from_cuda(cudaEventRecord(begin, stream)));
  ICE_TRY(submit());
  ICE_TRY(from_cuda(cudaEventRecord(end, stream)));
  ICE_TRY(from_cuda(cudaEventSynchronize(end)));
  float ms = 0;
  ICE_TRY(from_cuda(cudaEventElapsedTime(&ms, begin, end)));
  ICE_TRY(from_cuda(cudaEventDestroy(begin)));
  ICE_TRY(from_cuda(cudaEventDestroy(end)));
  return ms;
}

}  // namespace icefield
