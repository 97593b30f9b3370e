// Attention on the CPU: the tail's terms, then online softmax over blocks of rows. Bound: the bytes
// of the rows for one query, the dot products for several.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/attend_logits-inl.h"
#include "kernels/attend_softmax-inl.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/attend_tail-inl.h"
#include "kernels/attend_tiles-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/simd_target.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void attend_target(const AttendArgs& args) { attend_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

// Rows per softmax block: at d 128 this one, the next, which is being fetched, and the sums fit the
// L1 cache of what has such vectors (AVX2: 32 KB, where 32 rows take 7 % longer; AVX-512: 48 KB).
// Fewer rows would spend their time on loading and storing the sums.
constexpr int kBlock = std::max(16, 2 * kLanes);

// Exact rows: seen[r] of them for query row r.
template <int kRows>
void add_rows(const HeadShape& shape, const AttendGroup& group, const float* q,
              const std::int64_t* seen, const TailSums& tail, Sums& sums) {
  static_assert(kBlock % kTileRows == 0);
  RowReader reader(group, shape.d_k + shape.d_v);
  const Queries<kRows> queries(q, shape.d_k);
  const Bf16* blocks[2][kBlock];
  const Bf16** rows = blocks[0];
  const Bf16** next = blocks[1];
  HWY_ALIGN float weight[kRows][kBlock];
  for (int r = 0; r < kRows; ++r) std::fill_n(sums.out[r], units_of(shape.d_v) * kUnit, 0.0f);
  std::int64_t done = 0;
  for (int count = reader.next(rows, kBlock), next_count = 0; count > 0; count = next_count) {
    next_count = reader.next(next, kBlock);
    std::fill(rows + count, rows + kBlock, rows[0]);  // fills the last tile
    std::fill(next + next_count, next + kBlock, rows[0]);
    for (int i = 0; i < count; i += kTileRows) {
      tile_logits<kRows>(rows + i, next + i, queries, shape.d_k, shape.beta, weight[0] + i, kBlock);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto visible = std::clamp<std::int64_t>(seen[r] - done, 0, count);
      weigh_block<1>(sums, r, visible, kBlock, shape.d_v, weight[r]);
      if (tail.taken_out != nullptr) {
        take_out(tail.taken_out + r * tail.selected_stride + done, sums.tail_factor[r], count,
                 weight[r]);
      }
    }
    add_values<kRows>(rows, next, count, weight[0], kBlock, shape.d_k, shape.d_v, sums.out);
    done += count;
    std::swap(rows, next);
  }
}

template <int kRows>
void finish(const HeadShape& shape, std::int32_t first_row, const Sums& sums, const TailSums* tail,
            const Partial& result) {
  for (int r = 0; r < kRows; ++r) {
    const std::int32_t h = first_row + r;
    const float factor = tail == nullptr ? 0 : sums.tail_factor[r];
    const float of_tail = tail == nullptr ? 0 : tail->weight[r] * factor;
    const float total = sum_lanes(FloatTag(), hn::Load(FloatTag(), sums.total[r])) + of_tail;
    const float inverse = total > 0 ? 1.0f / total : 0.0f;
    result.lse[h] = total > 0 ? sums.largest[r] + std::log(total) : -HUGE_VALF;
    result.tail[h] = of_tail * inverse;
    result.fault[h] = tail == nullptr ? 0 : tail->fault[r] * factor * inverse;
    result.drift[h] = tail == nullptr ? 0 : tail->drift[r] * factor * inverse;
    float* out = result.out + static_cast<std::int64_t>(h) * shape.d_v;
    for (std::int32_t j = 0; j < shape.d_v; ++j) {
      out[j] = sums.out[r][split_at(j)] * inverse;
    }
    if (tail == nullptr) continue;
    for (std::int32_t j = 0; j < shape.d_v; ++j) out[j] += tail->out[r][j] * factor * inverse;
  }
}

void attend(const HeadShape& shape, const AttendGroup& group) {
  ICE_CHECK(shape.d_k <= kMaxHeadDim && shape.d_v <= kMaxHeadDim);
  std::int64_t rows = 0;
  for (std::int32_t r = 0; r < group.run_count; ++r) {
    rows += __builtin_popcountll(group.runs[r].mask);
  }
  const bool has_tail = group.segment_count > 0;
  for_row_blocks<kMostRows>(group.row_count, [&](auto row_count, std::int32_t first) {
    constexpr int kRows = row_count();
    TailSums tail;
    if (has_tail) make_tail<kRows>(shape, group, first, tail);
    Sums sums;
    std::int64_t seen[kRows];
    for (int r = 0; r < kRows; ++r) {
      sums.largest[r] = has_tail ? tail.largest[r] : -HUGE_VALF;
      sums.tail_factor[r] = 1;
      std::fill_n(sums.total[r], kLanes, 0.0f);
      seen[r] = rows - (group.hidden == nullptr ? 0 : group.hidden[first + r]);
    }
    const float* q = group.q + static_cast<std::int64_t>(first) * shape.d_k;
#if HWY_TARGET <= HWY_AVX3_DL  // of x86
    if (kRows == kTileQueries && attends_by_tiles(shape, kRows, rows)) {
      add_rows_by_tiles(shape, group, q, seen, tail, sums);
    } else {
      add_rows<kRows>(shape, group, q, seen, tail, sums);
    }
#else
    add_rows<kRows>(shape, group, q, seen, tail, sums);
#endif
    finish<kRows>(shape, first, sums, has_tail ? &tail : nullptr, group.result);
  });
}

}  // namespace

void attend_target(const AttendArgs& args) {
  for (std::int32_t g = 0; g < args.group_count; ++g) attend(args.shape, args.groups[g]);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(attend_target);

bool attends_by_tiles(const HeadShape& shape, std::int32_t row_count, std::int64_t exact_rows) {
  // With fewer rows the preparation of tiles takes longer than they save; for four query rows
  // vectors are as fast.
  constexpr std::int32_t kLeastQueries = 8;
  constexpr std::int64_t kLeastRows = 128;
  if (row_count < kLeastQueries || exact_rows < kLeastRows || !tiles_usable()) return false;
  const std::int32_t d = shape.d_k;
  return d == shape.d_v && (d == 64 || d == 80 || d == 96 || d == 128 || d == 256);
}

void attend_cpu(const AttendArgs& args) { HWY_DYNAMIC_DISPATCH(attend_target)(args); }

}  // namespace icefield
#endif
