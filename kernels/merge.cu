// Merges of partial results: of the splits of one call, and of shards for callers.
#include "kernels/attend_parts.h"
#include "kernels/launch.h"

namespace icefield {
namespace gpu {
namespace {

constexpr int kMergeThreads = 128;
constexpr int kMergeWarps = kMergeThreads / 32;

// What a block that merges splits keeps, before the weights of the splits.
struct MergeShared {
  float largest[kMergeWarps];
  Stat total[kMergeWarps];
  float out[kMergeWarps][kMaxHeadDim];
};

// The weights of the splits of query row h, to shared memory, and what they add up to.
ICE_DEVICE Stat weigh_splits(const Stat* stats, int split_count, int row_count, int h,
                             float* weights, MergeShared& shared) {
  float largest = kMinusInfinity;
  for (int split = thread(); split < split_count; split += thread_count()) {
    largest = max_of(largest, stats[split * row_count + h].largest);
  }
  largest = warp_max(largest);
  if (lane_index() == 0) shared.largest[warp_index()] = largest;
  sync_threads();
  for (int w = 0; w < kMergeWarps; ++w) largest = max_of(largest, shared.largest[w]);
  Stat sum = {largest, 0, 0, 0, 0};
  for (int split = thread(); split < split_count; split += thread_count()) {
    const Stat stat = stats[split * row_count + h];
    const float weight = weight_of(stat.largest, largest);
    weights[split] = weight;
    sum.total += weight * stat.total;
    sum.tail += weight * stat.tail;
    sum.fault += weight * stat.fault;
    sum.drift += weight * stat.drift;
  }
  sum.total = warp_sum(sum.total);
  sum.tail = warp_sum(sum.tail);
  sum.fault = warp_sum(sum.fault);
  sum.drift = warp_sum(sum.drift);
  if (lane_index() == 0) shared.total[warp_index()] = sum;
  sync_threads();
  sum = {largest, 0, 0, 0, 0};
  for (int w = 0; w < kMergeWarps; ++w) {
    sum.total += shared.total[w].total;
    sum.tail += shared.total[w].tail;
    sum.fault += shared.total[w].fault;
    sum.drift += shared.total[w].drift;
  }
  return sum;
}

// Grid: (query rows, groups); a warp takes every fourth split, a lane four dimensions. Bound:
// latency of two reads of the partial results, 1.3 MB for 8 groups of 8 rows in 40 splits: about
// 2 us.
ICE_KERNEL __launch_bounds__(kMergeThreads, 1)
    merge_splits_kernel(const GpuAttendGroup* groups, int split_count, int dim) {
  const GpuAttendGroup& group = groups[blockIdx.y];
  const int h = static_cast<int>(blockIdx.x);
  if (h >= group.row_count) return;
  MergeShared& shared = *reinterpret_cast<MergeShared*>(shared_memory());
  float* weights = reinterpret_cast<float*>(shared_memory() + sizeof(MergeShared));
  const PartialPlace place = partial_place(group, split_count, 0, dim);
  const Stat all = weigh_splits(place.stats, split_count, group.row_count, h, weights, shared);
  for (int j = 4 * lane_index(); j < dim; j += 128) {
    float4 sum = {0, 0, 0, 0};
    const float* at = place.out + static_cast<std::int64_t>(h) * dim + j;
#ifdef __CUDACC__
#pragma unroll 4
#endif
    for (int split = warp_index(); split < split_count; split += kMergeWarps) {
      const float weight = weights[split];
      if (weight > 0) {  // else nothing was in this split, and its sums may be anything
        const float4 part = read(reinterpret_cast<const float4*>(
            at + static_cast<std::int64_t>(split) * group.row_count * dim));
        sum.x += weight * part.x;
        sum.y += weight * part.y;
        sum.z += weight * part.z;
        sum.w += weight * part.w;
      }
    }
    *reinterpret_cast<float4*>(&shared.out[warp_index()][j]) = sum;
  }
  sync_threads();
  const float inverse = all.total > 0 ? 1.0f / all.total : 0.0f;
  for (int j = thread(); j < dim; j += thread_count()) {
    float sum = 0;
    for (int w = 0; w < kMergeWarps; ++w) sum += shared.out[w][j];
    group.result.out[static_cast<std::int64_t>(h) * dim + j] = sum * inverse;
  }
  if (thread() == 0) {
    group.result.lse[h] = all.total > 0 ? all.largest + logarithm(all.total) : kMinusInfinity;
    group.result.tail[h] = all.tail * inverse;
    group.result.fault[h] = all.fault * inverse;
    group.result.drift[h] = all.drift * inverse;
  }
}

// Grid: (query rows, groups), a thread per dimension. Bound: latency, about 2 us.
ICE_KERNEL __launch_bounds__(kMergeThreads, 1) merge_kernel(const GpuMergeGroup* groups, int dim) {
  const GpuMergeGroup& group = groups[blockIdx.y];
  const int h = static_cast<int>(blockIdx.x);
  if (h >= group.row_count) return;
  float largest = kMinusInfinity;
  for (int p = 0; p < group.part_count; ++p) largest = max_of(largest, group.parts[p].lse[h]);
  float total = 0;
  for (int p = 0; p < group.part_count; ++p) total += weight_of(group.parts[p].lse[h], largest);
  const float inverse = total > 0 ? 1.0f / total : 0.0f;
  for (int j = thread(); j < dim; j += thread_count()) {
    float sum = 0;
    for (int p = 0; p < group.part_count; ++p) {
      const float weight = weight_of(group.parts[p].lse[h], largest);
      if (weight > 0) sum += weight * group.parts[p].out[static_cast<std::int64_t>(h) * dim + j];
    }
    group.result.out[static_cast<std::int64_t>(h) * dim + j] = sum * inverse;
  }
  if (thread() > 0) return;
  float tail = 0;
  float fault = 0;
  float drift = 0;
  for (int p = 0; p < group.part_count; ++p) {
    const float weight = weight_of(group.parts[p].lse[h], largest);
    if (weight > 0) {
      tail += weight * group.parts[p].tail[h];
      fault += weight * group.parts[p].fault[h];
      drift += weight * group.parts[p].drift[h];
    }
  }
  group.result.lse[h] = total > 0 ? largest + logarithm(total) : kMinusInfinity;
  group.result.tail[h] = tail * inverse;
  group.result.fault[h] = fault * inverse;
  group.result.drift[h] = drift * inverse;
}

}  // namespace

Status merge_splits(const GpuAttendArgs& args, Stream stream) {
  const std::int32_t splits = gpu_attend_splits(args);
  return start({.grid_x = args.capacity.row_count,
                .grid_y = args.group_count,
                .threads = kMergeThreads,
                .shared_bytes = static_cast<std::int64_t>(sizeof(MergeShared)) + 4 * splits,
                .stream = stream},
               merge_splits_kernel, args.groups, splits, args.shape.d_v);
}

}  // namespace gpu

Status merge_cuda(const GpuMergeArgs& args, Stream stream) {
  return gpu::start({.grid_x = args.max_row_count,
                     .grid_y = args.group_count,
                     .threads = gpu::kMergeThreads,
                     .stream = stream},
                    gpu::merge_kernel, args.groups, args.d_v);
}

}  // namespace icefield
