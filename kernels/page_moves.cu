#include "kernels/launch.h"
#include "kernels/launch_math.h"
#include "kernels/page_moves_cuda.h"

namespace icefield {
namespace gpu {
namespace {

constexpr int kScatterThreads = 256;
constexpr int kNameThreads = 256;
constexpr std::int32_t kMaxScatterBlocks = 4096;

// Grid: as many warps as pages, up to 4 096 blocks; a warp copies a page. Bound: bandwidth; for the
// few rows of a step, latency.
ICE_KERNEL __launch_bounds__(kScatterThreads, 1)
    page_scatter_kernel(const std::byte* from, std::byte* const* pages, std::int64_t page_bytes,
                        int page_count) {
  const int warps = static_cast<int>(gridDim.x) * warp_count();
  for (int p = static_cast<int>(blockIdx.x) * warp_count() + warp_index(); p < page_count;
       p += warps) {
    const auto* page = reinterpret_cast<const uint4*>(from + p * page_bytes);
    auto* to = reinterpret_cast<uint4*>(read(pages + p));
    for (std::int64_t i = lane_index(); i < page_bytes / 16; i += 32) to[i] = page[i];
  }
}

// Grid: a thread per entry. Bound: latency.
ICE_KERNEL __launch_bounds__(kScatterThreads, 1)
    set_slots_kernel(const SlotUpdate* updates, int count) {
  const int i = static_cast<int>(blockIdx.x) * thread_count() + thread();
  if (i < count) *updates[i].at = updates[i].slot;
}

// Grid: a block per group. Bound: latency; 8 bytes are written per row that attention reads 256 to
// 1 024 of.
ICE_KERNEL __launch_bounds__(kNameThreads, 1)
    name_rows_kernel(const NameRowsGroup* groups, int row_width) {
  const NameRowsGroup& group = groups[blockIdx.x];
  for (int i = thread(); i < group.span_count * RowSpan::kMaxRows; i += thread_count()) {
    const RowSpan span = group.spans[i / RowSpan::kMaxRows];
    const int row = i % RowSpan::kMaxRows;
    if (row < span.count) {
      group.rows[span.first + row] = span.rows + static_cast<std::int64_t>(row) * row_width;
    }
  }
}

}  // namespace
}  // namespace gpu

Status page_scatter_cuda(const PageScatterArgs& args, Stream stream) {
  if (args.page_bytes % 16 != 0) {
    return Status(Code::kInvalidArgument, "pages of " + std::to_string(args.page_bytes) + " bytes");
  }
  const std::int32_t blocks = gpu::div_up(args.page_count, gpu::kScatterThreads / 32);
  return gpu::start({.grid_x = blocks < gpu::kMaxScatterBlocks ? blocks : gpu::kMaxScatterBlocks,
                     .threads = gpu::kScatterThreads,
                     .stream = stream},
                    gpu::page_scatter_kernel, args.from, args.pages, args.page_bytes,
                    args.page_count);
}

Status set_slots_cuda(const SetSlotsArgs& args, Stream stream) {
  return gpu::start({.grid_x = gpu::div_up(args.count, gpu::kScatterThreads),
                     .threads = gpu::kScatterThreads,
                     .stream = stream},
                    gpu::set_slots_kernel, args.updates, args.count);
}

Status name_rows_cuda(const NameRowsArgs& args, Stream stream) {
  return gpu::start({.grid_x = args.group_count, .threads = gpu::kNameThreads, .stream = stream},
                    gpu::name_rows_kernel, args.groups, args.shape.d_k + args.shape.d_v);
}

}  // namespace icefield
