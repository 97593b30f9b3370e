// The terms of the tail: what every cluster that is not attended exactly weighs, and what selected
// rows take out of the rests of their clusters.
#include "kernels/attend_parts.h"
#include "kernels/launch.h"
namespace icefield {
namespace gpu {
namespace {

constexpr int kBitmapWords = kMaxSegmentTokens / 32;

// What a block keeps about its segment.
struct TailShared {
  unsigned bitmap[kBitmapWords];  // rows of S
  int before[kBitmapWords];       // rows of S in earlier words
  float cluster_weight[kGpuMaxQueryRows];
  float list_weight[kGpuMaxQueryRows];
};

// How many rows of S are of segments before s: every warp looks at 32 places at a time.
ICE_DEVICE int first_selected(const TableRow* selected, int count, int s) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int step = div_up(high - low, 32);
    const int at = low + lane_index() * step;
    const bool before = at < high && selected[at].segment < s;
    const int passed = count_bits(ballot(before));  // rows ascend: the first lanes
    if (passed == 0) return low;
    const int next = low + passed * step;
    if (passed < 32 && next < high) high = next;
    low += (passed - 1) * step + 1;
  }
  return low;
}

// Marks the rows of S of segment s; returns how many of S come before them.
ICE_DEVICE int mark_selected(const GpuAttendGroup& group, int s, TailShared& shared) {
  for (int w = thread(); w < kBitmapWords; w += thread_count()) shared.bitmap[w] = 0;
  sync_threads();
  const int count = *group.exact_count;
  const int begin = first_selected(group.selected, count, s);
  const int end = first_selected(group.selected, count, s + 1);
  for (int i = begin + thread(); i < end; i += thread_count()) {
    const int row = group.selected[i].row;
    atomic_or(&shared.bitmap[row / 32], 1u << (row % 32));
    group.shares[i] = {group.segments[s].first_cluster, 0.0f};
  }
  sync_threads();
  if (warp_index() == 0) {
    int sum = 0;
    for (int first = 0; first < kBitmapWords; first += 32) {
      const int here = count_bits(shared.bitmap[first + lane_index()]);
      int inclusive = here;
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int below = shuffle_up(inclusive, lanes);
        if (lane_index() >= lanes) inclusive += below;
      }
      shared.before[first + lane_index()] = sum + inclusive - here;
      sum += shuffle(inclusive, 31);
    }
  }
  sync_threads();
  return begin;
}

// The bits of the rows of S in cluster c, its first row in bit 0.
ICE_DEVICE std::uint64_t selected_bits(const LevelView& clusters, int c, const TailShared& shared) {
  return bits_at(shared.bitmap, read(clusters.first_row + c), read(clusters.token_count + c));
}

ICE_DEVICE float mean_logit(float ln_count, float dot, float spread) {
  return ln_count + dot + (spread < kTermVarianceCap ? spread : kTermVarianceCap);
}

// The term of a candidate's rows that are not selected: LSE of their logits, -inf without such
// rows, and by how much they exceed the plain mean of the rest. `mean` is that of all rows. Eight
// rows at a time: their reads do not wait for each other.
ICE_DEVICE TailTerm rest_term(const float* logit, int count, std::uint64_t selected, float mean) {
  float largest = kMinusInfinity;
  float sum = 0;
  float drift = 0;
  float taken_out = 0;  // Σ x - mean of the selected rows
  for (int begin = 0; begin < count; begin += 8) {
    float x[8];
    float most = largest;
    ICE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const int i = begin + j;
      x[j] = i < count ? read(logit + i) : kMinusInfinity;
      if (i < count && (selected >> i & 1) != 0) {
        taken_out += x[j] - mean;
        x[j] = kMinusInfinity;
      }
      most = max_of(most, x[j]);
    }
    if (most == kMinusInfinity) continue;
    const float factor = weight_of(largest, most);
    sum *= factor;
    drift *= factor;
    largest = most;
    ICE_UNROLL
    for (int j = 0; j < 8; ++j) {
      const float weight = weight_of(x[j], largest);
      sum += weight;
      if (weight > 0) drift += weight * (x[j] - mean);
    }
  }
  if (largest == kMinusInfinity) return {largest, 0};
  const auto left = static_cast<float>(count - count_bits(selected));
  return {largest + logarithm(sum), drift / sum + taken_out / left};
}

// Scale and fault of cluster c's term, and the shares of its selected rows.
ICE_DEVICE void weigh_cluster(const GpuAttendGroup& group, const GpuSegment& segment,
                              const SegmentAccount& account, int c, int selected_before,
                              const TailShared& shared) {
  const LevelView& clusters = segment.index.clusters;
  const int at = segment.first_cluster + c;
  const int count = read(clusters.token_count + c);
  const int first = read(clusters.first_row + c);
  const std::uint64_t selected = selected_bits(clusters, c, shared);
  const int taken = count_bits(selected);
  const bool ranked = account.by == Accounting::kTokens && group.candidate[at] != 0;
  const bool partly = ranked && taken > 0 && taken < count;
  const float share = partly ? 1.0f / static_cast<float>(count - taken) : 0.0f;
  TermWeight weight;
  weight.scale = read(clusters.value_scale + c);
  if (partly) weight.scale *= static_cast<float>(count) * share;
  const bool missing = ranked && group.faulty != nullptr && group.faulty[at] != 0;
  weight.fault = account.fault || missing ? 1u : 0u;
  group.weights[at] = weight;
  int i = selected_before + shared.before[first / 32] +
          count_bits(shared.bitmap[first / 32] & ((1u << (first % 32)) - 1u));
  for (int left = taken; left > 0; --left) group.shares[i++] = {at, share};
}

// The terms of all clusters of a segment, a thread for each (query row, cluster).
ICE_DEVICE void cluster_terms(const GpuAttendGroup& group, const GpuSegment& segment,
                              const SegmentAccount& account, const TailShared& shared) {
  const LevelView& clusters = segment.index.clusters;
  const std::int64_t terms = group.size.clusters + group.size.lists;
  for (int i = thread(); i < group.row_count * clusters.count; i += thread_count()) {
    const int h = i / clusters.count;
    const int c = i % clusters.count;
    const int at = segment.first_cluster + c;
    TailTerm term = {kMinusInfinity, 0};
    if (account.by != Accounting::kLists) {
      const float dot =
          read(group.cluster_logit + static_cast<std::int64_t>(h) * group.size.clusters + at);
      if (account.by == Accounting::kTokens && group.candidate[at] != 0) {
        const float* tokens = group.token_logit + static_cast<std::int64_t>(h) * group.size.rows +
                              segment.first_row + read(clusters.first_row + c);
        term = rest_term(tokens, read(clusters.token_count + c), selected_bits(clusters, c, shared),
                         dot);
      } else {
        const float spread = shared.cluster_weight[h] * fp16_value(read(clusters.sigma + c));
        term = {mean_logit(read(clusters.ln_count + c), dot, spread),
                2 * spread < kTermDriftCap ? 2 * spread : kTermDriftCap};
      }
    }
    group.terms[h * terms + at] = term;
  }
}

// The same for its lists, whose logits score_lists() gave with the cap of votes. Their drift nobody
// knows.
ICE_DEVICE void list_terms(const GpuAttendGroup& group, const GpuSegment& segment,
                           const SegmentAccount& account, const TailShared& shared) {
  const LevelView& lists = segment.index.lists;
  const std::int64_t terms = group.size.clusters + group.size.lists;
  for (int i = thread(); i < group.row_count * lists.count; i += thread_count()) {
    const int h = i / lists.count;
    const int at = segment.first_list + i % lists.count;
    float logit = kMinusInfinity;
    if (account.by == Accounting::kLists) {
      const float spread = shared.list_weight[h] * fp16_value(read(lists.sigma + i % lists.count));
      const float vote_spread = spread < kVoteVarianceCap ? spread : kVoteVarianceCap;
      logit =
          mean_logit(0.0f,
                     read(group.list_logit + static_cast<std::int64_t>(h) * group.size.lists + at),
                     spread) -
          vote_spread;
    }
    group.terms[h * terms + group.size.clusters + at] = {logit, 0};
  }
  for (int l = thread(); l < lists.count; l += thread_count()) {
    group.weights[group.size.clusters + segment.first_list + l] = {read(lists.value_scale + l),
                                                                   account.fault ? 1u : 0u};
  }
}

constexpr int kTermThreads = 256;

// Grid: (segments, groups); a thread per (query row, cluster). Bound: latency and the logits that
// it reads and writes; 128 K tokens x 8 heads x 8 query rows move 9 MB, all in L2: about 4 us.
ICE_KERNEL __launch_bounds__(kTermThreads, 1)
    tail_terms_kernel(const GpuAttendGroup* groups, HeadShape shape) {
  const GpuAttendGroup& group = groups[blockIdx.y];
  const int s = static_cast<int>(blockIdx.x);
  if (s >= group.segment_count) return;
  const GpuSegment& segment = group.segments[s];
  SegmentAccount account;
  if (group.accounts != nullptr) account = group.accounts[s];
  TailShared& shared = *reinterpret_cast<TailShared*>(shared_memory());
  variance_weights(group.q, group.row_count, segment.index.clusters.gamma, shape.d_k, shape.beta,
                   shared.cluster_weight);
  variance_weights(group.q, group.row_count, segment.index.lists.gamma, shape.d_k, shape.beta,
                   shared.list_weight);
  const int selected_before = mark_selected(group, s, shared);
  for (int c = thread(); c < segment.index.clusters.count; c += thread_count()) {
    weigh_cluster(group, segment, account, c, selected_before, shared);
  }
  cluster_terms(group, segment, account, shared);
  list_terms(group, segment, account, shared);
}

}  // namespace

Status tail_terms(const GpuAttendArgs& args, Stream stream) {
  return start({.grid_x = args.capacity.segments,
                .grid_y = args.group_count,
                .threads = kTermThreads,
                .shared_bytes = sizeof(TailShared),
                .stream = stream},
               tail_terms_kernel, args.groups, args.shape);
}

}  // namespace gpu
}  // namespace icefield
