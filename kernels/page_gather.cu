#include "kernels/attend_cuda.h"
#include "kernels/launch.h"

namespace icefield {
namespace gpu {
namespace {

constexpr int kGatherThreads = 256;

// Grid: as many warps as pages, up to 4 096 blocks; a warp copies a page. Bound: bandwidth of
// wherever the pages are; estimate 90 % of it from pages of 512 bytes on.
ICE_KERNEL __launch_bounds__(kGatherThreads, 1)
    page_gather_kernel(const std::byte* const* pages, std::byte* out, std::int64_t page_bytes,
                       int page_count) {
  const int warps = static_cast<int>(gridDim.x) * warp_count();
  for (int p = static_cast<int>(blockIdx.x) * warp_count() + warp_index(); p < page_count;
       p += warps) {
    const auto* from = reinterpret_cast<const uint4*>(read(pages + p));
    auto* to = reinterpret_cast<uint4*>(out + p * page_bytes);
    for (std::int64_t i = lane_index(); i < page_bytes / 16; i += 32) to[i] = from[i];
  }
}

}  // namespace
}  // namespace gpu

Status page_gather_cuda(const PageGatherArgs& args, Stream stream) {
  if (args.page_bytes % 16 != 0) {
    return Status(Code::kInvalidArgument, "pages of " + std::to_string(args.page_bytes) + " bytes");
  }
  constexpr std::int32_t kMaxBlocks = 4096;
  const std::int32_t blocks = gpu::div_up(args.page_count, gpu::kGatherThreads / 32);
  return gpu::start({.grid_x = blocks < kMaxBlocks ? blocks : kMaxBlocks,
                     .threads = gpu::kGatherThreads,
                     .stream = stream},
                    gpu::page_gather_kernel, args.pages, args.out, args.page_bytes,
                    args.page_count);
}

}  // namespace icefield
