// kernels/launch.h — how the host side of the .cu files starts a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/status.h"
#include "kernels/device.h"
#include "kernels/gpu.h"
#include "kernels/gpu_table.h"

namespace icefield::gpu {

inline Status from_cuda(cudaError_t error) {
  if (error == cudaSuccess) return Status();
  const Code code = error == cudaErrorMemoryAllocation ? Code::kResourceExhausted : Code::kInternal;
  return Status(code, std::string("cuda: ") + cudaGetErrorString(error));
}

struct Launch {
  std::int32_t grid_x = 1, grid_y = 1, grid_z = 1;
  std::int32_t threads = 0;
  std::int64_t shared_bytes = 0;
  Stream stream = nullptr;
};

#ifdef __CUDACC__
template <class... P, class... A>
Status start(const Launch& launch, void (*kernel)(P...), const A&... args) {
  if (launch.grid_x == 0 || launch.grid_y == 0 || launch.grid_z == 0) return Status();
  constexpr std::int64_t kWithoutAsking = 48 << 10;
  if (launch.shared_bytes > kWithoutAsking) {
    ICE_TRY(from_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(launch.shared_bytes))));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(launch.grid_x), static_cast<unsigned>(launch.grid_y),
                        static_cast<unsigned>(launch.grid_z));
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(launch.shared_bytes);
  config.stream = launch.stream;
  return from_cuda(cudaLaunchKernelEx(&config, kernel, P(args)...));
}
#else
template <class... P, class... A>
Status start(const Launch& launch, void (*kernel)(P...), const A&... args) {
  ICE_CHECK(launch.threads % 32 == 0 && launch.threads <= 1024);
  ICE_CHECK(launch.grid_y <= kGpuMaxGroups && launch.grid_z <= kGpuMaxGroups);
  emulation::launch({.x = static_cast<unsigned>(launch.grid_x),
                     .y = static_cast<unsigned>(launch.grid_y),
                     .z = static_cast<unsigned>(launch.grid_z)},
                    static_cast<unsigned>(launch.threads),
                    static_cast<std::size_t>(launch.shared_bytes), [=] { kernel(args...); });
  return Status();
}
#endif

}  // namespace icefield::gpu
