// Ranking of the candidates' tokens by their codes, and the way from selected rows to memory.
#include "kernels/cut.h"
#include "kernels/launch.h"
#include "kernels/select_cuda.h"

namespace icefield {
namespace gpu {
namespace {

constexpr int kRankThreads = 128;
constexpr std::uint16_t kNoCluster = 0xffff;

// Which counter and which part of `ranking` a row of segment s belongs to: one list for the whole
// table, or one per segment where segments have budgets of their own.
ICE_DEVICE std::uint32_t* ranking_count(const GpuSelectGroup& group, int s) {
  return group.counters + 1 + (group.rule.segment_budgets == nullptr ? 0 : 1 + s);
}
ICE_DEVICE RankedRow* ranking_of(const GpuSelectGroup& group, const GpuSegment& segment) {
  return group.ranking + (group.rule.segment_budgets == nullptr ? 0 : segment.first_row);
}

// The cluster of every candidate row of the chunk, kNoCluster for other rows. True: there is one.
ICE_DEVICE bool map_candidates(const GpuSelectGroup& group, const GpuSegment& segment, int begin,
                               std::uint16_t* cluster_of) {
  for (int i = thread(); i < kRankChunk; i += thread_count()) cluster_of[i] = kNoCluster;
  sync_threads();
  bool any = false;
  const LevelView& clusters = segment.index.clusters;
  for (int c = thread(); c < clusters.count; c += thread_count()) {
    if (group.candidate[segment.first_cluster + c] == 0) continue;
    const int first = read(clusters.first_row + c) - begin;
    const int end = first + read(clusters.token_count + c);
    for (int i = first < 0 ? 0 : first; i < (end < kRankChunk ? end : kRankChunk); ++i) {
      cluster_of[i] = static_cast<std::uint16_t>(c);
      any = true;
    }
  }
  return any_thread(any);
}

ICE_DEVICE void load_code_words(const GpuSelectGroup& group, const RoundedLayout& layout,
                                int* words) {
  const int4* from = reinterpret_cast<const int4*>(group.rounded + layout.codes_begin());
  int4* to = reinterpret_cast<int4*>(words);
  for (int i = thread(); i < layout.code_ints() / 4; i += thread_count()) to[i] = read(from + i);
}

// Σ q8 c of one row for kRows query rows from h on.
template <int kRows>
ICE_DEVICE void code_dots(const std::uint32_t* codes, const int* words, const RoundedLayout& layout,
                          int h, int (&sum)[kRows]) {
  ICE_UNROLL
  for (int r = 0; r < kRows; ++r) sum[r] = 0;
#ifdef __CUDACC__
#pragma unroll 2
#endif
  for (int g = 0; g < layout.words / 4; ++g) {
    const std::uint32_t word = read(codes + g * kCodePanel);
    ICE_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int codes4 = static_cast<int>(four_codes(word, k));
      const int4* q = reinterpret_cast<const int4*>(words + layout.code_at(4 * g + k, h));
      ICE_UNROLL
      for (int r = 0; r < kRows; r += 4) {
        const int4 four = q[r / 4];
        sum[r] = dot4(codes4, four.x, sum[r]);
        sum[r + 1] = dot4(codes4, four.y, sum[r + 1]);
        sum[r + 2] = dot4(codes4, four.z, sum[r + 2]);
        sum[r + 3] = dot4(codes4, four.w, sum[r + 3]);
      }
    }
  }
}

// One row of a candidate, as a lane scores it.
struct CodedRow {
  const std::uint32_t* codes;
  float scale;  // β scale
  int cluster;  // in the group's arrays
  int table_row;
};

// x̂ of the row for kRows query rows from h on; returns the sum of their votes.
template <int kRows>
ICE_DEVICE float score_rows(const GpuSelectGroup& group, const RoundedLayout& layout,
                            const int* words, const CodedRow& row, int h) {
  int sum[kRows];
  code_dots<kRows>(row.codes, words, layout, h, sum);
  float vote = 0;
  ICE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (h + r >= group.row_count) continue;
    const float step = std::bit_cast<float>(read(group.rounded + layout.code_step() + h + r));
    const int dot = level_dot(sum[r], read(group.rounded + layout.code_sum() + h + r));
    const float logit = read(group.cluster_logit +
                             static_cast<std::int64_t>(h + r) * group.size.clusters + row.cluster) +
                        row.scale * step * static_cast<float>(dot);
    group.token_logit[static_cast<std::int64_t>(h + r) * group.size.rows + row.table_row] = logit;
    const float reference = read(group.reference_level + h + r);
    // One query row alone: x̂ - R orders as its vote does, and never ends at 0.
    vote += group.row_count == 1 ? logit - reference : vote_of(logit, reference);
  }
  return vote;
}

ICE_DEVICE float score_row(const GpuSelectGroup& group, const RoundedLayout& layout,
                           const int* words, const CodedRow& row) {
  float vote = 0;
  int h = 0;
  for (; group.row_count - h > 4; h += 8) vote += score_rows<8>(group, layout, words, row, h);
  for (; h < group.row_count; h += 4) vote += score_rows<4>(group, layout, words, row, h);
  return vote;
}

// Appends the rows of the warp's lanes for which `has` is set.
ICE_DEVICE void append_ranked(RankedRow* ranking, std::uint32_t* count, bool has, RankedRow row) {
  const unsigned lanes = ballot(has);
  if (lanes == 0) return;
  std::uint32_t first = 0;
  if (lane_index() == 0) {
    first = atomic_add(count, static_cast<std::uint32_t>(count_bits(lanes)));
  }
  first = shuffle(first, 0);
  const unsigned below = lanes & ((1u << lane_index()) - 1u);
  if (has) ranking[first + static_cast<unsigned>(count_bits(below))] = row;
}

// Grid: (chunks of 512 rows x segments, groups); a warp scores two panels of 16 rows at a time, a
// lane a row; panels without a candidate are skipped. Bound: the bytes of the codes when most are
// candidates, 34 per row at d = 128: all of 128 K tokens x 8 heads are 36 MB, 11 us of an H100's
// bandwidth, estimate 50 % of it at 8 query rows (2 operations and 8 dp4a for 4 dims of a row);
// with 4 K candidates per head, latency: about 4 us.
ICE_KERNEL __launch_bounds__(kRankThreads, 1)
    score_codes_kernel(const GpuSelectGroup* groups, HeadShape shape, int chunks) {
  const GpuSelectGroup& group = groups[blockIdx.y];
  const int s = static_cast<int>(blockIdx.x) / chunks;
  if (s >= group.segment_count) return;
  const GpuSegment& segment = group.segments[s];
  const CodesView& codes = segment.index.codes;
  const int begin = static_cast<int>(blockIdx.x) % chunks * kRankChunk;
  if (begin >= codes.row_count) return;
  auto* cluster_of = reinterpret_cast<std::uint16_t*>(shared_memory());
  int* words = reinterpret_cast<int*>(shared_memory() + kRankChunk * sizeof(std::uint16_t));
  if (!map_candidates(group, segment, begin, cluster_of)) return;
  const RoundedLayout layout = rounded_layout(group.row_count, shape.d_k);
  load_code_words(group, layout, words);
  sync_threads();
  for (int i = thread(); i < kRankChunk; i += thread_count()) {
    const int c = cluster_of[i];
    const bool candidate = c != kNoCluster;
    RankedRow ranked;
    if (candidate) {
      const int row = begin + i;
      ranked.index = segment.first_row + row;
      ranked.vote = score_row(group, layout, words,
                              {.codes = codes.codes + code_word_at(row, 0, shape.d_k),
                               .scale = shape.beta * fp16_value(read(codes.scale + row)),
                               .cluster = segment.first_cluster + c,
                               .table_row = ranked.index});
    }
    append_ranked(ranking_of(group, segment), ranking_count(group, s), candidate, ranked);
  }
}

// --------------------------------------------------------------------------------------- take

struct RankedItems {
  const RankedRow* rows;
  ICE_DEVICE CutItem at(int i) const {
    const RankedRow row = rows[i];
    return {selection_key(std::bit_cast<std::uint32_t>(row.vote),
                          static_cast<std::uint32_t>(row.index)),
            1u};
  }
};

// The segment that holds a row of the table.
ICE_DEVICE int segment_of(const GpuSegment* segments, int count, int table_row) {
  int low = 0;
  int high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (segments[middle].first_row <= table_row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// One selection: of the whole table, or of one segment.
struct Taking {
  int first_row = 0;  // in the table
  int rows = 0;
  int ranked = 0;  // candidates
  int budget = 0;
  int out = 0;  // where in `selected` it begins
};

ICE_DEVICE Taking taking_of_segment(const GpuSelectGroup& group, int s) {
  const GpuSegment& segment = group.segments[s];
  Taking taking{.first_row = segment.first_row,
                .rows = segment.index.codes.row_count,
                .ranked = static_cast<int>(*ranking_count(group, s)),
                .budget = group.rule.segment_budgets[s]};
  for (int before = 0; before < s; ++before) {
    const int ranked = static_cast<int>(*ranking_count(group, before));
    const int budget = group.rule.segment_budgets[before];
    taking.out += ranked < budget ? ranked : budget;
  }
  return taking;
}

// Writes the rows whose bits are set, ascending.
ICE_DEVICE void write_selected(const GpuSelectGroup& group, const Taking& taking,
                               const unsigned* bitmap, unsigned* scan) {
  const int words = div_up(taking.rows, 32);
  const int per_thread = div_up(words, thread_count());
  const int begin = thread() * per_thread;
  const int end = begin + per_thread < words ? begin + per_thread : words;
  unsigned count = 0;
  for (int w = begin; w < end; ++w) count += static_cast<unsigned>(count_bits(bitmap[w]));
  unsigned total = 0;
  unsigned at = block_exclusive_sum(count, scan, total);
  if (count == 0) return;
  TableRow* out = group.selected + taking.out;
  int s = segment_of(group.segments, group.segment_count, taking.first_row + begin * 32);
  for (int w = begin; w < end; ++w) {
    for (unsigned bits = bitmap[w]; bits != 0; bits &= bits - 1) {
      const int row = taking.first_row + w * 32 + lowest_bit(bits);
      while (s + 1 < group.segment_count && row >= group.segments[s + 1].first_row) ++s;
      out[at++] = {s, row - group.segments[s].first_row};
    }
  }
}

// Grid: (1, or segments with budgets of their own; groups), 1024 threads. The budget's rows with
// the largest votes, ties to the lower row: a cut by radix, marks in a bitmap of the table's rows,
// rows in the order of their bits. Bound: latency of up to four passes over the candidates of one
// group: 4 K of them about 5 us, 32 K about 12 us (one multiprocessor reads 8 bytes each from L2).
ICE_KERNEL __launch_bounds__(kCutThreads, 1) take_rows_kernel(const GpuSelectGroup* groups) {
  const GpuSelectGroup& group = groups[blockIdx.y];
  const int s = static_cast<int>(blockIdx.x);
  const bool by_segment = group.rule.segment_budgets != nullptr;
  const int last = by_segment && group.segment_count > 0 ? group.segment_count - 1 : 0;
  if (s > last) return;
  Taking taking{.rows = group.size.rows,
                .ranked = static_cast<int>(*ranking_count(group, 0)),
                .budget = group.rule.budget};
  if (by_segment) taking = group.segment_count > 0 ? taking_of_segment(group, s) : Taking();
  const int taken = taking.ranked < taking.budget ? taking.ranked : taking.budget;
  if (thread() == 0 && s == last) *group.selected_count = taking.out + taken;
  if (taken == 0) return;
  CutShared& shared = *reinterpret_cast<CutShared*>(shared_memory());
  auto* bitmap = reinterpret_cast<unsigned*>(shared_memory() + sizeof(CutShared));
  for (int w = thread(); w < div_up(taking.rows, 32); w += thread_count()) bitmap[w] = 0;
  const RankedItems items{group.ranking + (by_segment ? taking.first_row : 0)};
  const std::uint64_t cut =
      taken < taking.ranked ? find_cut(items, taking.ranked, taken, shared) : 0;
  sync_threads();
  for (int i = thread(); i < taking.ranked; i += thread_count()) {
    const std::uint64_t key = items.at(i).key;
    if (key < cut) continue;
    const unsigned row = key_index(key) - static_cast<unsigned>(taking.first_row);
    atomic_or(&bitmap[row / 32], 1u << (row % 32));
  }
  sync_threads();
  write_selected(group, taking, bitmap, shared.scan);
}

// ---------------------------------------------------------------------------------- find rows

constexpr int kFindThreads = 512;

struct PagePlaces {
  const std::byte* pool;
  const std::byte* overflow;
  int slot_count;
};

// The cluster of a level that holds `row`; first rows ascend.
ICE_DEVICE int cluster_of_row(const LevelView& clusters, int row) {
  int low = 0;
  int high = clusters.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (read(clusters.first_row + middle) <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Grid: a block per group. Bound: latency, 3 us for 256 rows; for large budgets the scattered reads
// of page_slot, about 1 us per 1 000 rows.
ICE_KERNEL __launch_bounds__(kFindThreads, 1)
    find_rows_kernel(const FindRowsGroup* groups, PagePlaces places, int page_rows, int row_bytes) {
  const FindRowsGroup& group = groups[blockIdx.x];
  auto* scan = reinterpret_cast<unsigned*>(shared_memory());
  // The barriers of the sums below come before a flag is set.
  for (int c = thread(); c < group.cluster_count; c += thread_count()) group.faulty[c] = 0;
  const int count = *group.selected_count;
  unsigned found_before = 0;
  for (int first = 0; first < count; first += thread_count()) {
    const int i = first + thread();
    const bool wanted = i < count;
    const TableRow at = wanted ? group.selected[i] : TableRow();
    int slot = -1;
    if (wanted) {
      slot = read(group.segments[at.segment].page_slot + at.row / page_rows);
    }
    const bool found = slot >= 0;
    unsigned found_here = 0;
    const unsigned place = found_before + block_exclusive_sum(found ? 1u : 0u, scan, found_here);
    if (found) {
      const bool in_pool = slot < places.slot_count;
      const std::int64_t page = in_pool ? slot : slot - places.slot_count;
      const std::byte* row = (in_pool ? places.pool : places.overflow) +
                             (page * page_rows + at.row % page_rows) * row_bytes;
      group.rows[place] = reinterpret_cast<const Bf16*>(row);
      group.found[place] = at;
    } else if (wanted) {
      const GpuSegment& segment = group.segments[at.segment];
      group.missing[static_cast<unsigned>(i) - place] = at;
      group.faulty[segment.first_cluster + cluster_of_row(segment.index.clusters, at.row)] = 1;
    }
    found_before += found_here;
  }
  if (thread() == 0) {
    *group.found_count = static_cast<int>(found_before);
    *group.missing_count = count - static_cast<int>(found_before);
  }
}

}  // namespace
}  // namespace gpu

Status rank_cuda(const GpuSelectArgs& args, Stream stream) {
  if (args.capacity.rows > kGpuMaxTableRows) {
    return Status(Code::kInvalidArgument,
                  std::to_string(args.capacity.rows) + " rows of one table");
  }
  const gpu::RoundedLayout layout = gpu::rounded_layout(args.capacity.row_count, args.shape.d_k);
  const std::int32_t chunks = kMaxSegmentTokens / gpu::kRankChunk;
  ICE_TRY(gpu::start({.grid_x = args.capacity.segments * chunks,
                      .grid_y = args.group_count,
                      .threads = gpu::kRankThreads,
                      .shared_bytes = gpu::kRankChunk * 2 + 4 * layout.code_ints(),
                      .stream = stream},
                     gpu::score_codes_kernel, args.groups, args.shape, chunks));
  return gpu::start(
      {.grid_x = args.segment_budgets && args.capacity.segments > 0 ? args.capacity.segments : 1,
       .grid_y = args.group_count,
       .threads = gpu::kCutThreads,
       .shared_bytes = static_cast<std::int64_t>(sizeof(gpu::CutShared)) +
                       4 * gpu::div_up(args.capacity.rows, 32),
       .stream = stream},
      gpu::take_rows_kernel, args.groups);
}

Status find_rows_cuda(const FindRowsArgs& args, Stream stream) {
  const std::int32_t p = args.page_rows;
  if (p < 1 || p > 16 || (p & (p - 1)) != 0) {
    return Status(Code::kInvalidArgument, "pages of " + std::to_string(p) + " rows");
  }
  return gpu::start({.grid_x = args.group_count,
                     .threads = gpu::kFindThreads,
                     .shared_bytes = 33 * 4,
                     .stream = stream},
                    gpu::find_rows_kernel, args.groups,
                    gpu::PagePlaces{args.pool, args.overflow, args.slot_count}, p,
                    2 * (args.shape.d_k + args.shape.d_v));
}

}  // namespace icefield
