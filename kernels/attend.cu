// Attention on the GPU: exact rows through tensor cores, split over blocks; the tail's means in the
// same launch; the splits merged by their largest logits.
//
// A warp takes 16 rows at a time through its own ring of shared memory, so that the main loop has
// no barrier of the block. Queries and weights are multiplied as two bf16 numbers each (x = high +
// low), which keeps about 16 bits of them: rows are bf16 anyway.
#include "kernels/attend_cuda.h"
#include "kernels/attend_sums.h"
#include "kernels/launch.h"

namespace icefield {
namespace gpu {
namespace {

// Query rows [first, first + 16) to shared memory as two bf16 halves; zeros beyond the group's.
template <int kDim>
ICE_DEVICE void load_queries(const GpuAttendGroup& group, int first, std::byte* shared) {
  for (int i = thread(); i < kQueryTile * kDim / 2; i += thread_count()) {
    const int h = i / (kDim / 2);
    const int j = i % (kDim / 2) * 2;
    float x[2] = {0, 0};
    if (first + h < group.row_count) {
      const float* q = group.q + static_cast<std::int64_t>(first + h) * kDim + j;
      x[0] = read(q);
      x[1] = read(q + 1);
    }
    const unsigned high = pack_bf16(x[0], x[1]);
    const unsigned low = pack_bf16(x[0] - bf16_value(static_cast<Bf16>(high & 0xffffu)),
                                   x[1] - bf16_value(static_cast<Bf16>(high >> 16)));
    std::byte* at = shared + h * Shape<kDim>::kQueryPitch + 2 * j;
    *reinterpret_cast<unsigned*>(at) = high;
    *reinterpret_cast<unsigned*>(at + Shape<kDim>::kQueryBytes) = low;
  }
}

// logit[n][e] = q · k for the 16 keys in shared memory. The high and the low halves of q have sums
// of their own where there are registers for it: a chain of dependent products half as long.
template <int kDim>
ICE_DEVICE void key_products(const std::byte* queries, const std::byte* rows, float logit[2][4]) {
  using S = Shape<kDim>;
  constexpr int kChains = kDim <= 128 ? 2 : 1;
  const int lane = lane_index();
  const std::byte* q = queries + (lane % 16) * S::kQueryPitch + lane / 16 * 16;
  const std::byte* k = rows + (lane % 8 + lane / 16 * 8) * S::kRowPitch + lane / 8 % 2 * 16;
  float sum[kChains][2][4] = {};
#ifdef __CUDACC__
#pragma unroll 4  // all 16 steps of d = 256 would not fit the registers
#endif
  for (int step = 0; step < kDim / 16; ++step) {
    unsigned high[4];
    unsigned low[4];
    unsigned keys[4];
    load_matrices(high, q + step * 32);
    load_matrices(low, q + S::kQueryBytes + step * 32);
    load_matrices(keys, k + step * 32);
    multiply_add(sum[0][0], high, keys[0], keys[1]);
    multiply_add(sum[kChains - 1][0], low, keys[0], keys[1]);
    multiply_add(sum[0][1], high, keys[2], keys[3]);
    multiply_add(sum[kChains - 1][1], low, keys[2], keys[3]);
  }
  ICE_UNROLL
  for (int e = 0; e < 8; ++e) {
    logit[e / 4][e % 4] = sum[0][e / 4][e % 4];
    if (kChains == 2) logit[e / 4][e % 4] += sum[kChains - 1][e / 4][e % 4];
  }
}

// What the lanes of a warp need to know about their share of the rows.
struct RowWork {
  const GpuAttendGroup& group;
  int first_query;
  int count;       // rows of the group
  int visible[2];  // that this lane's two query rows see
  bool tail;       // selected rows are taken out of the rests of their clusters
};

// The row that lane % 16 copies of a tile; beyond the last row, the last: its weight is 0.
ICE_DEVICE const Bf16* row_of(const RowWork& work, int tile) {
  const int i = tile * kTileRows + lane_index() % kTileRows;
  return read(work.group.rows + (i < work.count ? i : work.count - 1));
}

template <int kDim>
ICE_DEVICE void copy_tile(const Bf16* row, std::byte* stage) {
  using S = Shape<kDim>;
  constexpr int kChunks = kTileRows * S::kRowChunks;
  static_assert(kChunks % 32 == 0);
  const auto address = reinterpret_cast<unsigned long long>(row);
#ifdef __CUDACC__
#pragma unroll 8  // all 32 copies of d = 256 would not fit the registers
#endif
  for (int i = 0; i < kChunks / 32; ++i) {
    const TileChunk at = tile_chunk(i * 32 + lane_index(), S::kRowChunks);
    const auto from = reinterpret_cast<const std::byte*>(shuffle(address, at.row));
    copy_async16(stage + at.row * S::kRowPitch + at.chunk * 16, from + at.chunk * 16);
  }
}

// Logits of the rests that the tile's rows are taken out of, and the rows' shares in them.
struct RestTerms {
  float logit[2][4];
  float share[2][2];  // of the lane's four rows
};
ICE_DEVICE void load_rests(const RowWork& work, int tile, RestTerms& rests) {
  const GpuAttendGroup& group = work.group;
  const std::int64_t terms = group.size.clusters + group.size.lists;
  ICE_UNROLL
  for (int n = 0; n < 2; ++n) {
    ICE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int i = tile * kTileRows + accumulator_column(lane_index(), n, e);
      SelectedShare share;
      if (work.tail && i < work.count) share = group.shares[i];
      rests.share[n][e] = share.share;
      ICE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int h = work.first_query + accumulator_row(lane_index(), 2 * half);
        const bool used = share.share > 0 && h < group.row_count;
        rests.logit[n][2 * half + e] =
            used ? group.terms[h * terms + share.cluster].logit : kMinusInfinity;
      }
    }
  }
}

// One tile of exact rows: logits to weights, weights times values.
template <int kDim>
ICE_DEVICE void add_tile(const RowWork& work, float beta, int tile, const std::byte* queries,
                         const std::byte* stage, Sums<kDim>& sums) {
  RestTerms rests;
  if (work.tail) load_rests(work, tile, rests);
  float logit[2][4];
  key_products<kDim>(queries, stage, logit);
  ICE_UNROLL
  for (int half = 0; half < 2; ++half) {
    float largest = kMinusInfinity;
    ICE_UNROLL
    for (int n = 0; n < 2; ++n) {
      ICE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int i = tile * kTileRows + accumulator_column(lane_index(), n, e);
        float& x = logit[n][2 * half + e];
        x = i < work.visible[half] ? beta * x : kMinusInfinity;
        largest = max_of(largest, x);
        if (work.tail) largest = max_of(largest, rests.logit[n][2 * half + e]);
      }
    }
    raise_largest(sums, half, largest);
    Stat& stat = sums.stat[half];
    ICE_UNROLL
    for (int n = 0; n < 2; ++n) {
      ICE_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& x = logit[n][2 * half + e];
        x = weight_of(x, stat.largest);
        stat.total += x;
        if (work.tail) {
          x -= rests.share[n][e] * weight_of(rests.logit[n][2 * half + e], stat.largest);
        }
      }
    }
  }
  add_values(pack_weights(logit), stage + 2 * kDim, Shape<kDim>::kRowPitch, sums);
}

// This warp's share of the exact rows.
template <int kDim>
ICE_DEVICE void add_rows(const RowWork& work, float beta, int split, int splits,
                         const std::byte* queries, std::byte* ring, Sums<kDim>& sums) {
  using S = Shape<kDim>;
  const int tiles = div_up(work.count, kTileRows);
  const int warp = split * kAttendWarps + warp_index();
  const int begin = share_begin(tiles, warp, splits * kAttendWarps);
  const int end = share_begin(tiles, warp + 1, splits * kAttendWarps);
  if (begin == end) return;
  // Pointers are read one tile before the copy that needs them.
  const Bf16* next = row_of(work, begin);
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) {
      copy_tile<kDim>(next, ring + i * S::kStageBytes);
      next = row_of(work, begin + i + 1);
    }
    copy_commit();
  }
  for (int tile = begin; tile < end; ++tile) {
    copy_wait<S::kStages - 2>();
    sync_warp();
    // The stage that is filled now was read in the last round, by all lanes.
    const int ahead = tile + S::kStages - 1;
    if (ahead < end) {
      copy_tile<kDim>(next, ring + (ahead - begin) % S::kStages * S::kStageBytes);
      next = row_of(work, ahead + 1);
    }
    copy_commit();
    add_tile(work, beta, tile, queries, ring + (tile - begin) % S::kStages * S::kStageBytes, sums);
  }
}

// ------------------------------------------------------------------------------------- means

// The value means of 16 clusters, as a lane holds its part of them on their way to shared memory.
template <int kDim>
struct Means {
  static constexpr int kRowChunks = kDim / 16;
  static constexpr int kChunks = (kTileRows * kRowChunks + 31) / 32;
  int4 bytes[kChunks];
};

template <int kDim>
ICE_DEVICE void read_means(const LevelView& level, int first, Means<kDim>& means) {
  ICE_UNROLL
  for (int i = 0; i < Means<kDim>::kChunks; ++i) {
    const TileChunk at = tile_chunk(i * 32 + lane_index(), Means<kDim>::kRowChunks);
    means.bytes[i] = {0, 0, 0, 0};
    if (at.row < kTileRows && first + at.row < level.count) {
      means.bytes[i] = read(reinterpret_cast<const int4*>(
          level.value_means + static_cast<std::int64_t>(first + at.row) * kDim + at.chunk * 16));
    }
  }
}

// To shared memory as bf16, which is exact.
template <int kDim>
ICE_DEVICE void write_means(const Means<kDim>& means, std::byte* stage) {
  ICE_UNROLL
  for (int i = 0; i < Means<kDim>::kChunks; ++i) {
    const TileChunk at = tile_chunk(i * 32 + lane_index(), Means<kDim>::kRowChunks);
    if (at.row >= kTileRows) continue;
    const int words[4] = {means.bytes[i].x, means.bytes[i].y, means.bytes[i].z, means.bytes[i].w};
    unsigned packed[8];
    ICE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const unsigned two = static_cast<unsigned>(words[j / 2]) >> (16 * (j % 2));
      packed[j] = pack_bf16(static_cast<float>(static_cast<std::int8_t>(two)),
                            static_cast<float>(static_cast<std::int8_t>(two >> 8)));
    }
    auto* to = reinterpret_cast<uint4*>(stage + at.row * Shape<kDim>::kQueryPitch + at.chunk * 32);
    to[0] = {packed[0], packed[1], packed[2], packed[3]};
    to[1] = {packed[4], packed[5], packed[6], packed[7]};
  }
}

// Weights of a tile's terms, without the scale of their values; sums of them to `sums`.
template <int kDim>
ICE_DEVICE void weigh_terms(const GpuAttendGroup& group, int count, int first, int first_term,
                            int first_query, float weight[2][4], Sums<kDim>& sums) {
  const std::int64_t terms = group.size.clusters + group.size.lists;
  TermWeight term[4];
  ICE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int c = first + accumulator_column(lane_index(), i / 2, i % 2);
    term[i] = TermWeight();
    if (c < count) term[i] = group.weights[first_term + c];
  }
  ICE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int h = first_query + accumulator_row(lane_index(), 2 * half);
    float largest = kMinusInfinity;
    float drift[4];
    ICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int c = first + accumulator_column(lane_index(), i / 2, i % 2);
      TailTerm of_row = {kMinusInfinity, 0};
      if (c < count && h < group.row_count) of_row = group.terms[h * terms + first_term + c];
      weight[i / 2][2 * half + i % 2] = of_row.logit;
      drift[i] = of_row.drift;
      largest = max_of(largest, of_row.logit);
    }
    raise_largest(sums, half, largest);
    Stat& stat = sums.stat[half];
    ICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      float& x = weight[i / 2][2 * half + i % 2];
      x = weight_of(x, stat.largest);
      stat.total += x;
      stat.tail += x;
      if (term[i].fault != 0) stat.fault += x;
      stat.drift += x * drift[i];
      x *= term[i].scale;
    }
  }
}

// One level's terms of a segment: `first_term` is where they begin in the group's terms.
template <int kDim>
ICE_DEVICE void add_means(const GpuAttendGroup& group, const LevelView& level, int first_term,
                          int first_query, std::byte* stage, Sums<kDim>& sums) {
  constexpr int kStep = kAttendWarps * kTileRows;
  int first = warp_index() * kTileRows;
  Means<kDim> means;
  if (first < level.count) read_means(level, first, means);
  for (; first < level.count; first += kStep) {
    sync_warp();  // the last tile's means have been used
    write_means(means, stage);
    if (first + kStep < level.count) read_means(level, first + kStep, means);
    float weight[2][4];
    weigh_terms(group, level.count, first, first_term, first_query, weight, sums);
    sync_warp();
    add_values(pack_weights(weight), stage, Shape<kDim>::kQueryPitch, sums);
  }
}

// ------------------------------------------------------------------------------------ splits

// What the block's warps hand to each other at the end, beside their sums in their rings.
struct BlockStats {
  Stat stat[kAttendWarps][kQueryTile];
  float factor[kAttendWarps][kQueryTile];  // of a warp's sums in the block's
};

// This warp's sums to its ring, which it no longer reads, and its totals.
template <int kDim>
ICE_DEVICE void hand_over(std::byte* ring, BlockStats& block, Sums<kDim>& sums) {
  const int lane = lane_index();
  sync_warp();
  ICE_UNROLL
  for (int half = 0; half < 2; ++half) {
    Stat& stat = sums.stat[half];
    stat.total = quad_sum(stat.total);
    stat.tail = quad_sum(stat.tail);
    stat.fault = quad_sum(stat.fault);
    stat.drift = quad_sum(stat.drift);
    if (lane % 4 == 0) block.stat[warp_index()][lane / 4 + 8 * half] = stat;
    float* row = reinterpret_cast<float*>(ring) + (lane / 4 + 8 * half) * Shape<kDim>::kOutPitch;
    ICE_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(row + accumulator_column(lane, n, 0)) = {
          sums.out[n][2 * half], sums.out[n][2 * half + 1]};
    }
  }
}

// Adds the sums of the block's warps, in their order, and writes them for the merge.
template <int kDim>
ICE_DEVICE void write_partial(const GpuAttendGroup& group, int first_query, int split, int splits,
                              std::byte* rings, BlockStats& block, Sums<kDim>& sums) {
  using S = Shape<kDim>;
  hand_over(rings + warp_index() * S::kWarpRingBytes, block, sums);
  sync_threads();
  const PartialPlace place = partial_place(group, splits, split, kDim);
  const int rows = group.row_count - first_query;
  const int used = rows < kQueryTile ? rows : kQueryTile;
  if (thread() < used) {
    Stat all = {kMinusInfinity, 0, 0, 0, 0};
    for (int w = 0; w < kAttendWarps; ++w) {
      all.largest = max_of(all.largest, block.stat[w][thread()].largest);
    }
    for (int w = 0; w < kAttendWarps; ++w) {
      const Stat& stat = block.stat[w][thread()];
      const float factor = weight_of(stat.largest, all.largest);
      block.factor[w][thread()] = factor;
      all.total += factor * stat.total;
      all.tail += factor * stat.tail;
      all.fault += factor * stat.fault;
      all.drift += factor * stat.drift;
    }
    place.stats[first_query + thread()] = all;
  }
  sync_threads();
  for (int i = thread(); i < used * kDim; i += thread_count()) {
    const int row = i / kDim;
    float sum = 0;
    ICE_UNROLL
    for (int w = 0; w < kAttendWarps; ++w) {
      const float* out = reinterpret_cast<const float*>(rings + w * S::kWarpRingBytes);
      sum += block.factor[w][row] * out[row * S::kOutPitch + i % kDim];
    }
    place.out[static_cast<std::int64_t>(first_query) * kDim + i] = sum;
  }
}

// Grid: (row splits + segments, tiles of 16 query rows, groups), four warps. The first blocks share
// the exact rows, 16 at a time and warp; each of the others does the tail of one segment.
// Bound: the bytes of the rows. In flight per multiprocessor: 64 KB of them at d = 128 (2 stages of
// 8 KB for each of 4 warps, once on sm_80, twice on sm_90); 20 KB hide the latency of an H100's
// memory at full rate. Tensor cores: 64 products of 4 096 operations for 8 KB, a sixth of the rate
// at full bandwidth. Estimate 85 to 90 % of the bandwidth for long runs of rows.
template <int kDim>
ICE_KERNEL __launch_bounds__(kAttendThreads, 1)
    attend_kernel(const GpuAttendGroup* groups, float beta, int row_split_count, int split_count) {
  using S = Shape<kDim>;
  const GpuAttendGroup& group = groups[blockIdx.z];
  const int first_query = static_cast<int>(blockIdx.y) * kQueryTile;
  const int split = static_cast<int>(blockIdx.x);
  if (first_query >= group.row_count) return;
  std::byte* queries = shared_memory();
  std::byte* rings = queries + 2 * S::kQueryBytes;
  std::byte* ring = rings + warp_index() * S::kWarpRingBytes;
  BlockStats& block = *reinterpret_cast<BlockStats*>(rings + S::kRingBytes);
  Sums<kDim> sums;
  clear(sums);
  if (split < row_split_count) {
    load_queries<kDim>(group, first_query, queries);
    RowWork work{.group = group,
                 .first_query = first_query,
                 .count = *group.exact_count,
                 .visible = {0, 0},
                 .tail = group.segment_count > 0};
    ICE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int h = first_query + accumulator_row(lane_index(), 2 * half);
      const bool hides = group.hidden != nullptr && h < group.row_count;
      work.visible[half] = work.count - (hides ? group.hidden[h] : 0);
    }
    sync_threads();
    add_rows<kDim>(work, beta, split, row_split_count, queries, ring, sums);
  } else if (split - row_split_count < group.segment_count) {
    const int s = split - row_split_count;
    const GpuSegment& segment = group.segments[s];
    if (group.accounts != nullptr && group.accounts[s].by == Accounting::kLists) {
      add_means<kDim>(group, segment.index.lists, group.size.clusters + segment.first_list,
                      first_query, ring, sums);
    } else {
      add_means<kDim>(group, segment.index.clusters, segment.first_cluster, first_query, ring,
                      sums);
    }
  }
  write_partial(group, first_query, split, split_count, rings, block, sums);
}

template <int kDim>
Status attend_with(const GpuAttendArgs& args, Stream stream) {
  const std::int32_t query_tiles = div_up(args.capacity.row_count, kQueryTile);
  const std::int32_t splits = gpu_attend_splits(args);
  return start({.grid_x = splits,
                .grid_y = query_tiles,
                .grid_z = args.group_count,
                .threads = kAttendThreads,
                .shared_bytes = Shape<kDim>::kQueryBytes * 2 + Shape<kDim>::kRingBytes +
                                static_cast<std::int64_t>(sizeof(BlockStats)),
                .stream = stream},
               attend_kernel<kDim>, args.groups, args.shape.beta, splits - args.capacity.segments,
               splits);
}

Status attend_rows(const GpuAttendArgs& args, Stream stream) {
  switch (args.shape.d_k) {
    case 64: return attend_with<64>(args, stream);
    case 80: return attend_with<80>(args, stream);
    case 96: return attend_with<96>(args, stream);
    case 128: return attend_with<128>(args, stream);
    case 256: return attend_with<256>(args, stream);
    default:
      return Status(Code::kUnimplemented, "head dimension " + std::to_string(args.shape.d_k));
  }
}

}  // namespace
}  // namespace gpu

Status attend_cuda(const GpuAttendArgs& args, Stream stream) {
  if (args.shape.d_k != args.shape.d_v) {
    return Status(Code::kUnimplemented, "head dimensions " + std::to_string(args.shape.d_k) +
                                            " and " + std::to_string(args.shape.d_v) + " differ");
  }
  if (args.capacity.row_count < 1 || args.capacity.row_count > kGpuMaxQueryRows) {
    return Status(Code::kInvalidArgument, std::to_string(args.capacity.row_count) + " query rows");
  }
  if (args.capacity.segments > 0) ICE_TRY(gpu::tail_terms(args, stream));
  ICE_TRY(gpu::attend_rows(args, stream));
  return gpu::merge_splits(args, stream);
}

}  // namespace icefield
