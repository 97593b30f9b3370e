// The second-order tail on the GPU.
#include "kernels/launch.h"
#include "kernels/launch_math.h"
#include "kernels/slope_cuda.h"

namespace icefield {
namespace gpu {
namespace {

constexpr int kSlopeRows = kQueryBlock;  // query rows of a block, one for each warp to prepare
constexpr int kSlopeThreads = 32 * kSlopeRows;
constexpr int kSlopeLanes = 8;                           // lanes side by side, of four columns each
constexpr int kSlopeColumns = 4 * kSlopeLanes;           // columns of a block
constexpr int kSlopeDims = kSlopeThreads / kSlopeLanes;  // key dimensions at a time

struct SlopeShared {
  float4 weight[kMaxHeadDim][kSlopeRows / 4];         // drift β q scale / 2w
  float sums[kSlopeRows][kSlopeRows][kSlopeColumns];  // of each warp, for each row
};

// The weights of this warp's query row h, 0 for one beyond the group's; false: nothing moves it.
ICE_DEVICE bool weigh_dims(const GpuSlopeGroup& group, const HeadShape& shape, int h,
                           SlopeShared& shared) {
  const float* q = group.q + static_cast<std::int64_t>(h) * shape.d_k;
  const bool used = h < group.row_count;
  const float variance =
      used ? 2 * variance_weight(q, group.slope.gamma, shape.d_k, shape.beta) : 0.0f;
  const bool moves = variance != 0;
  const float factor = moves ? group.drift[h] * shape.beta / variance : 0.0f;
  float* weight = reinterpret_cast<float*>(shared.weight) + warp_index();
  for (int k = lane_index(); k < shape.d_k; k += 32) {
    weight[k * kSlopeRows] =
        moves ? factor * (read(q + k) * read(group.slope.slope_scale + k)) : 0.0f;
  }
  return moves;
}

// Adds this thread's share of the key dimensions: of eight rows, four columns from `column` on.
ICE_DEVICE void multiply_slope(const GpuSlopeGroup& group, const HeadShape& shape, int column,
                               const SlopeShared& shared, float sums[kSlopeRows][4]) {
  const std::int8_t* at = group.slope.slope + column;
#ifdef __CUDACC__
#pragma unroll 4  // reads that do not wait for each other
#endif
  for (int k = thread() / kSlopeLanes; k < shape.d_k; k += kSlopeDims) {
    const int word = read(reinterpret_cast<const int*>(at + k * shape.d_v));
    float value[4];
    ICE_UNROLL
    for (int b = 0; b < 4; ++b) {
      value[b] = static_cast<float>(static_cast<std::int8_t>(static_cast<unsigned>(word) >> 8 * b));
    }
    ICE_UNROLL
    for (int r = 0; r < kSlopeRows; r += 4) {
      const float4 weight = shared.weight[k][r / 4];
      ICE_UNROLL
      for (int b = 0; b < 4; ++b) {
        sums[r][b] += weight.x * value[b];
        sums[r + 1][b] += weight.y * value[b];
        sums[r + 2][b] += weight.z * value[b];
        sums[r + 3][b] += weight.w * value[b];
      }
    }
  }
}

// Grid: (32 columns of the values, 8 query rows, groups); four key dimensions a warp and step.
// Bound: latency of q, then of the slope, 16 KB a head at d = 128, each word read once per 8 query
// rows: 2 to 3 us for a layer.
ICE_KERNEL __launch_bounds__(kSlopeThreads, 1)
    add_slope_kernel(const GpuSlopeGroup* groups, HeadShape shape) {
  const GpuSlopeGroup& group = groups[blockIdx.z];
  const int first_query = static_cast<int>(blockIdx.y) * kSlopeRows;
  if (group.slope.slope == nullptr || first_query >= group.row_count) return;
  SlopeShared& shared = *reinterpret_cast<SlopeShared*>(shared_memory());
  const int h = first_query + warp_index();
  const bool moves = weigh_dims(group, shape, h, shared);
  sync_threads();
  const int first_column = static_cast<int>(blockIdx.x) * kSlopeColumns;
  const int column = 4 * (lane_index() % kSlopeLanes);
  float sums[kSlopeRows][4] = {};
  if (first_column + column < shape.d_v) {
    multiply_slope(group, shape, first_column + column, shared, sums);
  }
  ICE_UNROLL
  for (int r = 0; r < kSlopeRows; ++r) {
    ICE_UNROLL
    for (int b = 0; b < 4; ++b) {
      sums[r][b] += shuffle_xor(sums[r][b], 8);
      sums[r][b] += shuffle_xor(sums[r][b], 16);
    }
    if (lane_index() < kSlopeLanes) {
      *reinterpret_cast<float4*>(&shared.sums[warp_index()][r][column]) = {sums[r][0], sums[r][1],
                                                                           sums[r][2], sums[r][3]};
    }
  }
  sync_threads();
  const int j = first_column + lane_index();
  if (!moves || j >= shape.d_v) return;
  float sum = 0;
  for (int w = 0; w < kSlopeRows; ++w) sum += shared.sums[w][warp_index()][lane_index()];
  group.out[static_cast<std::int64_t>(h) * shape.d_v + j] += sum;
}

constexpr bool head_dim_ok(std::int32_t d) { return d > 0 && d <= kMaxHeadDim && d % 16 == 0; }

}  // namespace
}  // namespace gpu

Status add_slope_cuda(const GpuSlopeArgs& args, Stream stream) {
  if (!gpu::head_dim_ok(args.shape.d_k) || !gpu::head_dim_ok(args.shape.d_v)) {
    return Status(Code::kUnimplemented, "head dimensions " + std::to_string(args.shape.d_k) +
                                            " and " + std::to_string(args.shape.d_v));
  }
  return gpu::start({.grid_x = gpu::div_up(args.shape.d_v, gpu::kSlopeColumns),
                     .grid_y = gpu::div_up(args.max_row_count, gpu::kSlopeRows),
                     .grid_z = args.group_count,
                     .threads = gpu::kSlopeThreads,
                     .shared_bytes = sizeof(gpu::SlopeShared),
                     .stream = stream},
                    gpu::add_slope_kernel, args.groups, args.shape);
}

}  // namespace icefield
