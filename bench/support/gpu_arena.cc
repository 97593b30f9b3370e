#include "bench/support/gpu_arena.h"

#include <algorithm>
#include <cstdio>

#include "common/check.h"

namespace icefield {

void check_gpu(const Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.to_string().c_str());
  ICE_CHECK(status.ok());
}

GpuArena::GpuArena() : stream_(GpuStream::create().value()) {}

void GpuArena::wait() const { check_gpu(stream_.wait()); }

void* GpuArena::raw(std::int64_t bytes, int poison) {
  constexpr std::int64_t kLeast = 16;  // kernels may be given the address of nothing
  Result<GpuMemory> memory = GpuMemory::allocate(std::max(bytes, kLeast));
  if (!memory.has_value()) check_gpu(memory.error());
  blocks_.push_back(std::move(memory).value());
  check_gpu(fill_on_gpu(blocks_.back().data(), poison, std::max(bytes, kLeast), stream()));
  return blocks_.back().data();
}

void GpuArena::copy(void* to, const void* from, std::size_t bytes) const {
  check_gpu(copy_on_gpu(to, from, static_cast<std::int64_t>(bytes), stream()));
  wait();
}

}  // namespace icefield
