// Rounded queries, list scores and proposals on the GPU: everything that reads means.
#include <cmath>

#include "kernels/cut.h"
#include "kernels/launch.h"
#include "kernels/rotation.h"
#include "kernels/rounded_query.h"
#include "kernels/select_cuda.h"

namespace icefield {
namespace gpu {
namespace {

// ---------------------------------------------------------------------------------- rounding

struct RotationTable {
  float sign[kMaxHeadDim];
};

// What round_query() computes for a row, with the same operations: kernels/rounded_query.h.
struct Rounding {
  float inverse = 0;  // 0: a row of zeros, or one that is not finite
  float step = 0;
  float limit = 0;
};
ICE_DEVICE Rounding rounding_of(const float* row, int d, float limit) {
  float largest = 0;
  bool finite = true;
  for (int j = lane_index(); j < d; j += 32) {
    const float size = fabsf(row[j]);
    finite &= size <= 3.4e38f;
    largest = max_of(size, largest);
  }
  largest = warp_max(largest);
  finite = ballot(!finite) == 0;
  if (!finite || largest < 1e-30f) return {.limit = limit};
  return {.inverse = exact_quotient(limit, largest),
          .step = exact_quotient(largest, limit),
          .limit = limit};
}
ICE_DEVICE int rounded(float x, const Rounding& rounding) {
  if (rounding.inverse == 0) return 0;  // x may be NaN
  const float y = exact_product(x, rounding.inverse);
  return round_to_even(y > rounding.limit ? rounding.limit
                                          : (y < -rounding.limit ? -rounding.limit : y));
}

// In place, the b-dimensional blocks of row[d]: the same sums in the same order as rotate().
ICE_DEVICE void rotate_row(float* row, int d, float factor, const RotationTable& table) {
  const int block = d & -d;
  for (int j = lane_index(); j < d; j += 32) {
    row[j] = exact_product(exact_product(row[j], table.sign[j]), factor);
  }
  sync_warp();
  for (int half = 1; half < block; half *= 2) {
    for (int pair = lane_index(); pair < d / 2; pair += 32) {
      const int at = pair / half * 2 * half + pair % half;
      const float a = row[at];
      const float b = row[at + half];
      row[at] = a + b;
      row[at + half] = a - b;
    }
    sync_warp();
  }
}

// The words and the step of one row, to arrays laid out as those of `rounded`.
ICE_DEVICE void round_means(const float* row, int h, const RoundedLayout& layout, int* words,
                            int* steps) {
  const Rounding rounding = rounding_of(row, layout.words * 4, internal::kMeanQueryLimit);
  for (int w = lane_index(); w < layout.words; w += 32) {
    int high[4];
    int low[4];
    for (int b = 0; b < 4; ++b) {
      const int q16 = rounded(row[4 * w + b], rounding);
      high[b] = high_byte(q16);
      low[b] = low_byte(q16);
    }
    words[layout.mean_at(w, h)] = pack_bytes(high[0], high[1], high[2], high[3]);
    words[layout.mean_at(w, h) + 1] = pack_bytes(low[0], low[1], low[2], low[3]);
  }
  if (lane_index() == 0) steps[h] = std::bit_cast<int>(rounding.step);
}

ICE_DEVICE void round_codes(const float* row, int h, const RoundedLayout& layout, int* out) {
  const Rounding rounding = rounding_of(row, layout.words * 4, internal::kCodeQueryLimit);
  int sum = 0;
  for (int w = lane_index(); w < layout.words; w += 32) {
    int q8[4];
    for (int b = 0; b < 4; ++b) {
      q8[b] = rounded(row[4 * w + b], rounding);
      sum += q8[b];
    }
    out[layout.codes_begin() + layout.code_at(w, h)] = pack_bytes(q8[0], q8[1], q8[2], q8[3]);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) {
    out[layout.code_step() + h] = std::bit_cast<int>(rounding.step);
    out[layout.code_sum() + h] = sum;
  }
}

// Query row h, zeros beyond the group's, to this warp's row of shared memory.
ICE_DEVICE void load_query(const GpuSelectGroup& group, int h, int d_k, float* row) {
  sync_warp();
  for (int j = lane_index(); j < d_k; j += 32) {
    row[j] = h < group.row_count ? read(group.q + static_cast<std::int64_t>(h) * d_k + j) : 0.0f;
  }
  sync_warp();
}

// The rounded queries of a group, for the kernels that follow. A warp does a row.
ICE_DEVICE void round_queries(const GpuSelectGroup& group, int d_k, float factor,
                              const RotationTable& table, float* row) {
  const RoundedLayout layout = rounded_layout(group.row_count, d_k);
  for (int h = warp_index(); h < layout.padded; h += warp_count()) {
    load_query(group, h, d_k, row);
    round_means(row, h, layout, group.rounded, group.rounded + layout.mean_step());
    sync_warp();
    rotate_row(row, d_k, factor, table);
    round_codes(row, h, layout, group.rounded);
  }
}

// ------------------------------------------------------------------------------------- scores

// What a block of the scoring kernels keeps in shared memory.
struct ScoreShared {
  int* words;     // of the means, as in the group's rounded queries
  int* steps;     // [padded]
  float* weight;  // [padded] w
  float* rows;    // [warps, kMaxHeadDim], while queries are rounded
};
ICE_DEVICE ScoreShared score_shared(const RoundedLayout& layout) {
  int* words = reinterpret_cast<int*>(shared_memory());
  int* steps = words + layout.mean_ints();
  float* weight = reinterpret_cast<float*>(steps + layout.padded);
  return {words, steps, weight, weight + layout.padded};
}
constexpr std::int64_t score_shared_bytes(std::int32_t row_count, std::int32_t d_k,
                                          std::int32_t rounding_warps) {
  const RoundedLayout layout = rounded_layout(row_count, d_k);
  return 4 * (static_cast<std::int64_t>(layout.mean_ints()) + 2 * layout.padded +
              rounding_warps * kMaxHeadDim);
}

// The query words of the means and their steps, from where they were rounded.
ICE_DEVICE void load_mean_words(const GpuSelectGroup& group, const RoundedLayout& layout,
                                const ScoreShared& shared) {
  const int4* from = reinterpret_cast<const int4*>(group.rounded);
  int4* to = reinterpret_cast<int4*>(shared.words);
  for (int i = thread(); i < layout.mean_ints() / 4; i += thread_count()) to[i] = read(from + i);
  for (int h = thread(); h < layout.padded; h += thread_count()) {
    shared.steps[h] = read(group.rounded + layout.mean_step() + h);
  }
}

// Σ q16 m of this lane's cluster of a panel for kRows query rows from h on.
template <int kRows>
ICE_DEVICE void panel_dots(const std::int8_t* panel, int width, const int* words,
                           const RoundedLayout& layout, int h, int (&sum)[kRows]) {
  int high[kRows] = {};
  int low[kRows] = {};
  const int lane = lane_index();
  const int* at = reinterpret_cast<const int*>(panel) + (lane < width ? lane : 0);
#ifdef __CUDACC__
#pragma unroll 8
#endif
  for (int w = 0; w < layout.words; ++w) {
    const int means = read(at + w * width);
    const int4* q = reinterpret_cast<const int4*>(words + layout.mean_at(w, h));
    ICE_UNROLL
    for (int r = 0; r < kRows; r += 2) {
      const int4 two = q[r / 2];
      high[r] = dot4(means, two.x, high[r]);
      low[r] = dot4(means, two.y, low[r]);
      high[r + 1] = dot4(means, two.z, high[r + 1]);
      low[r + 1] = dot4(means, two.w, low[r + 1]);
    }
  }
  ICE_UNROLL
  for (int r = 0; r < kRows; ++r) sum[r] = 256 * high[r] + low[r];
}

// Calls use(h, β q·μ) for this lane's cluster and all query rows. All lanes call it.
template <class Use>
ICE_DEVICE void for_each_dot(const LevelView& level, int panel, float beta,
                             const ScoreShared& shared, const GpuSelectGroup& group,
                             const RoundedLayout& layout, const Use& use) {
  const std::int8_t* means =
      level.key_means + static_cast<std::int64_t>(panel) * kClusterPanel * level.d_k;
  const int width = panel_width(level.stored_count, panel);
  const int cluster = panel * kClusterPanel + lane_index();
  const float scale = cluster < level.count ? read(level.key_scale + cluster) : 0.0f;
  const auto give = [&](int h, int sum) {
    const float step = std::bit_cast<float>(shared.steps[h]);
    use(h, beta * step * scale * static_cast<float>(sum));
  };
  int h = 0;
  for (; group.row_count - h > 4; h += 8) {
    int sum[8];
    panel_dots<8>(means, width, shared.words, layout, h, sum);
    ICE_UNROLL
    for (int r = 0; r < 8; ++r) {
      if (h + r < group.row_count) give(h + r, sum[r]);
    }
  }
  for (; h < group.row_count; h += 4) {
    int sum[4];
    panel_dots<4>(means, width, shared.words, layout, h, sum);
    ICE_UNROLL
    for (int r = 0; r < 4; ++r) {
      if (h + r < group.row_count) give(h + r, sum[r]);
    }
  }
}

constexpr int kListThreads = 128;

// λ of the lists of one segment.
ICE_DEVICE void score_segment_lists(const GpuSelectGroup& group, const GpuSegment& segment,
                                    const HeadShape& shape) {
  const LevelView& lists = segment.index.lists;
  const RoundedLayout layout = rounded_layout(group.row_count, shape.d_k);
  const ScoreShared shared = score_shared(layout);
  // The rounded queries are another block's work at this moment.
  float* row = shared.rows + warp_index() * kMaxHeadDim;
  for (int h = warp_index(); h < layout.padded; h += warp_count()) {
    load_query(group, h, shape.d_k, row);
    round_means(row, h, layout, shared.words, shared.steps);
  }
  variance_weights(group.q, group.row_count, lists.gamma, shape.d_k, shape.beta, shared.weight);
  sync_threads();
  for (int panel = warp_index(); panel * kClusterPanel < lists.count; panel += warp_count()) {
    const int l = panel * kClusterPanel + lane_index();
    const bool used = l < lists.count;
    const float sigma = used ? fp16_value(read(lists.sigma + l)) : 0.0f;
    const float ln_count = used ? read(lists.ln_count + l) : 0.0f;
    for_each_dot(lists, panel, shape.beta, shared, group, layout, [&](int h, float dot) {
      const float spread = shared.weight[h] * sigma;
      if (!used) return;
      group.list_logit[static_cast<std::int64_t>(h) * group.size.lists + segment.first_list + l] =
          ln_count + dot + (spread < kVoteVarianceCap ? spread : kVoteVarianceCap);
    });
  }
}

// Largest logit of a segment's lists and Σ e^(λ - largest), per query row, to list_partial.
ICE_DEVICE void sum_segment_lists(const GpuSelectGroup& group, const GpuSegment& segment, int s) {
  for (int h = warp_index(); h < group.row_count; h += warp_count()) {
    const float* logit =
        group.list_logit + static_cast<std::int64_t>(h) * group.size.lists + segment.first_list;
    float largest = kMinusInfinity;
    for (int l = lane_index(); l < segment.index.lists.count; l += 32) {
      largest = max_of(largest, logit[l]);
    }
    largest = warp_max(largest);
    float sum = 0;
    for (int l = lane_index(); l < segment.index.lists.count; l += 32) {
      sum += largest == kMinusInfinity ? 0.0f : exponential(logit[l] - largest);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      float* partial = group.list_partial + 2 * (s * group.row_count + h);
      partial[0] = largest;
      partial[1] = sum;
    }
  }
}

// R of every query row and the masses of the segments, from the partial sums of all segments.
ICE_DEVICE void finish_levels(const GpuSelectGroup& group) {
  for (int h = warp_index(); h < group.row_count; h += warp_count()) {
    const float exact = group.exact_lse[h];
    float largest = exact;
    for (int s = lane_index(); s < group.segment_count; s += 32) {
      largest = max_of(largest, group.list_partial[2 * (s * group.row_count + h)]);
    }
    largest = warp_max(largest);
    float sum = 0;
    for (int s = lane_index(); s < group.segment_count; s += 32) {
      const float* partial = group.list_partial + 2 * (s * group.row_count + h);
      if (partial[1] > 0) sum += partial[1] * exponential(partial[0] - largest);
    }
    sum = warp_sum(sum) + (exact == kMinusInfinity ? 0.0f : exponential(exact - largest));
    if (lane_index() == 0) {
      group.reference_level[h] = sum > 0 ? largest + logarithm(sum) : largest;
    }
  }
  sync_threads();
  for (int s = thread(); s < group.segment_count; s += thread_count()) {
    float mass = 0;
    for (int h = 0; h < group.row_count; ++h) {
      const float* partial = group.list_partial + 2 * (s * group.row_count + h);
      // λ <= R, so the cap of 80 never bites here.
      if (partial[1] > 0) mass += partial[1] * exponential(partial[0] - group.reference_level[h]);
    }
    group.segment_mass[s] = mass;
  }
}

// Grid: (1 + segments, groups). The first block of a group rounds its queries for what follows; of
// the others a warp does a panel of 32 lists, and the last of them adds up. Bound: latency; 128 K
// tokens x 8 heads read 2.3 MB, 1 us of an H100's bandwidth, in about 4 us.
ICE_KERNEL __launch_bounds__(kListThreads, 1)
    score_lists_kernel(const GpuSelectGroup* groups, HeadShape shape, float factor,
                       RotationTable table) {
  const GpuSelectGroup& group = groups[blockIdx.y];
  if (blockIdx.x == 0) {
    float* rows = reinterpret_cast<float*>(shared_memory());
    round_queries(group, shape.d_k, factor, table, rows + warp_index() * kMaxHeadDim);
    return;
  }
  const int s = static_cast<int>(blockIdx.x) - 1;
  const int blocks = group.segment_count > 0 ? group.segment_count : 1;
  if (s >= blocks) return;
  if (s < group.segment_count) {
    score_segment_lists(group, group.segments[s], shape);
    sync_threads();
    sum_segment_lists(group, group.segments[s], s);
  }
  if (is_last_block(group.counters, static_cast<unsigned>(blocks))) finish_levels(group);
}

// ------------------------------------------------------------------------------------ propose

constexpr int kProposeThreads = 256;
constexpr int kProposeParts = 2;  // blocks that share a segment's panels

// Grid: (2 x segments, groups); a warp per panel of 32 clusters, a lane per cluster. Bound: the
// bytes of L1 and as many dp4a: 128 K tokens x 8 heads x 8 query rows read 8.4 MB and write 2.6,
// 3.3 us of an H100's bandwidth and 2.4 us of its integer units; estimate 60 % of the bandwidth.
ICE_KERNEL __launch_bounds__(kProposeThreads, 1)
    score_clusters_kernel(const GpuSelectGroup* groups, HeadShape shape) {
  const GpuSelectGroup& group = groups[blockIdx.y];
  const int s = static_cast<int>(blockIdx.x) / kProposeParts;
  if (blockIdx.x == 0) {  // the ranking that follows starts empty
    for (int i = thread(); i < group.segment_count + 1; i += thread_count()) {
      group.counters[1 + i] = 0;
    }
  }
  if (s >= group.segment_count) return;
  const GpuSegment& segment = group.segments[s];
  const LevelView& clusters = segment.index.clusters;
  const RoundedLayout layout = rounded_layout(group.row_count, shape.d_k);
  const ScoreShared shared = score_shared(layout);
  load_mean_words(group, layout, shared);
  variance_weights(group.q, group.row_count, clusters.gamma, shape.d_k, shape.beta, shared.weight);
  sync_threads();
  const int part = static_cast<int>(blockIdx.x) % kProposeParts;
  for (int panel = part + kProposeParts * warp_index(); panel * kClusterPanel < clusters.count;
       panel += kProposeParts * warp_count()) {
    const int c = panel * kClusterPanel + lane_index();
    const bool used = c < clusters.count;
    const float sigma = used ? fp16_value(read(clusters.sigma + c)) : 0.0f;
    float vote = 0;
    for_each_dot(clusters, panel, shape.beta, shared, group, layout, [&](int h, float dot) {
      const float reach = dot + kReachDeviations * square_root(2 * shared.weight[h] * sigma);
      vote += vote_of(reach, read(group.reference_level + h));
      if (!used) return;
      group.cluster_logit[static_cast<std::int64_t>(h) * group.size.clusters +
                          segment.first_cluster + c] = dot;
    });
    if (used) {
      group.cluster_vote[segment.first_cluster + c] = {vote, read(clusters.token_count + c)};
    }
  }
}

// The clusters of a group, or of one of its segments, as things to take the largest of.
struct ClusterItems {
  const ClusterVote* votes;
  ICE_DEVICE CutItem at(int i) const {
    const ClusterVote vote = votes[i];
    return {selection_key(std::bit_cast<std::uint32_t>(vote.vote), static_cast<std::uint32_t>(i)),
            static_cast<std::uint32_t>(vote.tokens)};
  }
};

// The tokens of the clusters whose votes are kReachingVote or more, in all threads of the block.
ICE_DEVICE int reaching_rows(const ClusterItems& items, int count, CutShared& shared) {
  unsigned mine = 0;
  for (int i = thread(); i < count; i += thread_count()) {
    const ClusterVote& vote = items.votes[i];
    if (vote.vote >= kReachingVote) mine += static_cast<unsigned>(vote.tokens);
  }
  unsigned total = 0;
  (void)block_exclusive_sum(mine, shared.scan, total);
  sync_threads();  // the scratch is used again
  return static_cast<int>(total);
}

// Grid: (1, or segments with budgets of their own; groups), 1024 threads. C of one selection.
// Bound: latency of four passes over the votes of one group, 64 KB at 128 K tokens: about 4 us.
ICE_KERNEL __launch_bounds__(kCutThreads, 1) take_clusters_kernel(const GpuSelectGroup* groups) {
  const GpuSelectGroup& group = groups[blockIdx.y];
  const SelectionRule& rule = group.rule;
  int begin = 0;
  int count = group.size.clusters;
  int rows = group.size.indexed_rows;
  int budget = rule.budget;
  if (rule.segment_budgets != nullptr) {
    const int s = static_cast<int>(blockIdx.x);
    if (s >= group.segment_count) return;
    const GpuSegment& segment = group.segments[s];
    begin = segment.first_cluster;
    count = segment.index.clusters.count;
    rows = segment.index.end_row - segment.index.first_row;
    budget = rule.segment_budgets[s];
  } else if (blockIdx.x > 0) {
    return;
  }
  std::uint8_t* candidate = group.candidate + begin;
  CutShared& shared = *reinterpret_cast<CutShared*>(shared_memory());
  const ClusterItems items{group.cluster_vote + begin};
  std::int64_t wanted = budget > 0 ? candidate_rows(rule.breadth, budget, rows, 0) : 0;
  if (wanted > 0 && wanted < rows && wanted < kMostReachingRows) {
    wanted = candidate_rows(rule.breadth, budget, rows, reaching_rows(items, count, shared));
  }
  if (wanted == 0 || wanted >= rows) {
    for (int i = thread(); i < count; i += thread_count()) candidate[i] = wanted > 0 ? 1 : 0;
    return;
  }
  const std::uint64_t cut = find_cut(items, count, wanted, shared);
  for (int i = thread(); i < count; i += thread_count()) {
    candidate[i] = items.at(i).key >= cut ? 1 : 0;
  }
}

Status check(const GpuSelectArgs& args) {
  const std::int32_t d = args.shape.d_k;
  if (d < 16 || d > kMaxHeadDim || d % 16 != 0) {
    return Status(Code::kUnimplemented, "head dimension " + std::to_string(d));
  }
  if (args.capacity.row_count < 1 || args.capacity.row_count > kGpuMaxQueryRows) {
    return Status(Code::kInvalidArgument, std::to_string(args.capacity.row_count) +
                                              " query rows, expected 1 to " +
                                              std::to_string(kGpuMaxQueryRows));
  }
  if (args.capacity.rows < 0 || args.capacity.rows > kGpuMaxTableRows) {
    return Status(Code::kInvalidArgument, std::to_string(args.capacity.rows) +
                                              " rows of one table, at most " +
                                              std::to_string(kGpuMaxTableRows));
  }
  return Status();
}

}  // namespace
}  // namespace gpu

Status score_lists_cuda(const GpuSelectArgs& args, Stream stream) {
  ICE_TRY(gpu::check(args));
  gpu::RotationTable table;
  for (std::int32_t j = 0; j < kMaxHeadDim; ++j) table.sign[j] = rotation_sign(j);
  const std::int32_t block = args.shape.d_k & -args.shape.d_k;
  const std::int32_t segments = args.capacity.segments > 0 ? args.capacity.segments : 1;
  return gpu::start({.grid_x = 1 + segments,
                     .grid_y = args.group_count,
                     .threads = gpu::kListThreads,
                     .shared_bytes = gpu::score_shared_bytes(
                         args.capacity.row_count, args.shape.d_k, gpu::kListThreads / 32),
                     .stream = stream},
                    gpu::score_lists_kernel, args.groups, args.shape,
                    1.0f / std::sqrt(static_cast<float>(block)), table);
}

Status propose_cuda(const GpuSelectArgs& args, Stream stream) {
  ICE_TRY(gpu::check(args));
  ICE_TRY(gpu::start(
      {.grid_x = args.capacity.segments * gpu::kProposeParts,
       .grid_y = args.group_count,
       .threads = gpu::kProposeThreads,
       .shared_bytes = gpu::score_shared_bytes(args.capacity.row_count, args.shape.d_k, 0),
       .stream = stream},
      gpu::score_clusters_kernel, args.groups, args.shape));
  return gpu::start({.grid_x = args.segment_budgets ? args.capacity.segments : 1,
                     .grid_y = args.group_count,
                     .threads = gpu::kCutThreads,
                     .shared_bytes = sizeof(gpu::CutShared),
                     .stream = stream},
                    gpu::take_clusters_kernel, args.groups);
}

}  // namespace icefield
