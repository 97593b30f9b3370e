// Bound: arithmetic. Two BLAS products per (query tile, key block); the softmax between them takes
// about a tenth of the time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/dense_attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: the code below needs the target.
#include <algorithm>
#include <cmath>

#include "engine/dense_attention.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::CappedTag<float, 16>;

// Turns one row of logits into weights e^(scale·x - largest) and returns the factor that what was
// summed before must be multiplied by. Logits from `visible` on are masked. count: a multiple
// of 16.
float softmax_row_target(float* x, std::int64_t count, std::int64_t visible, float scale,
                         float& largest, float& total) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::fill(x + visible, x + count, -HUGE_VALF);
  auto top = hn::Set(d, -HUGE_VALF);
  for (std::int64_t i = 0; i < count; i += lanes) top = hn::Max(top, hn::LoadU(d, x + i));
  const float before = largest;
  largest = std::max(before, hn::GetLane(hn::MaxOfLanes(d, top)) * scale);
  auto sum = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += lanes) {
    const auto shifted = hn::MulSub(hn::LoadU(d, x + i), hn::Set(d, scale), hn::Set(d, largest));
    const auto weight = hn::Exp(d, hn::Max(shifted, hn::Set(d, -104.0f)));
    hn::StoreU(weight, d, x + i);
    sum = hn::Add(sum, weight);
  }
  const float factor = before == -HUGE_VALF ? 0.0f : std::exp(before - largest);
  total = total * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  return factor;
}

void to_floats_target(const Bf16* from, std::int64_t count, float* to) {
  const FloatTag d;
  const hn::Rebind<std::uint16_t, FloatTag> d16;
  const hn::Rebind<std::uint32_t, FloatTag> d32;
  for (std::int64_t i = 0; i < count; i += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto wide = hn::PromoteTo(d32, hn::LoadU(d16, from + i));
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(wide)), d, to + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "common/bytes.h"
#include "common/check.h"
#include "engine/matmul.h"

namespace icefield {

HWY_EXPORT(softmax_row_target);
HWY_EXPORT(to_floats_target);

namespace {

constexpr std::int64_t kTileTokens = 64;  // query tokens of one piece of work
constexpr std::int64_t kBlockRuns = 8;    // runs of 64 keys per block
constexpr std::int64_t kBlockKeys = kBlockRuns * RowRun::kMaxRows;

using Floats = std::vector<float, AlignedAllocator<float>>;

// Memory of a thread.
struct Scratch {
  Floats q, keys, values, weights, out;
  std::vector<float> largest, total;
  std::vector<RowRun> runs;
};

// One query tile of one KV head.
class Tile {
 public:
  Tile(const DenseAttentionArgs& args, Scratch& scratch, std::int32_t head,
       std::int64_t first_token)
      : args_(args),
        scratch_(scratch),
        head_(head),
        first_token_(first_token),
        tokens_(std::min(kTileTokens, args.token_count - first_token)),
        rows_(tokens_ * args.query_group) {}

  void run() {
    gather_queries();
    scratch_.out.assign(static_cast<std::size_t>(rows_ * args_.d_v), 0.0f);
    scratch_.largest.assign(static_cast<std::size_t>(rows_), -HUGE_VALF);
    scratch_.total.assign(static_cast<std::size_t>(rows_), 0.0f);
    scratch_.runs.clear();
    args_.context->append_exact_runs(args_.layer, head_, scratch_.runs);
    const std::int64_t keys = args_.first_position + first_token_ + tokens_;  // the last token's
    for (std::int64_t first_key = 0; first_key < keys; first_key += kBlockKeys) {
      attend_block(first_key, std::min(kBlockKeys, keys - first_key));
    }
    scatter_output();
  }

 private:
  std::int64_t query_heads() const {
    return static_cast<std::int64_t>(args_.kv_heads) * args_.query_group;
  }
  // The position of row r's first head among all heads of all tokens.
  std::int64_t head_at(std::int64_t token) const {
    return (first_token_ + token) * query_heads() +
           static_cast<std::int64_t>(head_) * args_.query_group;
  }

  void gather_queries() {
    scratch_.q.resize(static_cast<std::size_t>(rows_ * args_.d_k));
    const std::int64_t width = static_cast<std::int64_t>(args_.query_group) * args_.d_k;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      std::copy_n(args_.q + head_at(t) * args_.d_k, width, scratch_.q.data() + t * width);
    }
  }

  void load_keys(std::int64_t first_key, std::int64_t count) {
    scratch_.keys.resize(static_cast<std::size_t>(kBlockKeys * args_.d_k));
    scratch_.values.resize(static_cast<std::size_t>(kBlockKeys * args_.d_v));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t key = first_key + i;
      const Bf16* row = scratch_.runs[static_cast<std::size_t>(key / RowRun::kMaxRows)].rows +
                        key % RowRun::kMaxRows * (args_.d_k + args_.d_v);
      HWY_DYNAMIC_DISPATCH(to_floats_target)(row, args_.d_k, scratch_.keys.data() + i * args_.d_k);
      HWY_DYNAMIC_DISPATCH(to_floats_target)
      (row + args_.d_k, args_.d_v, scratch_.values.data() + i * args_.d_v);
    }
  }

  void attend_block(std::int64_t first_key, std::int64_t count) {
    load_keys(first_key, count);
    const std::int64_t width = round_up(count, 16);
    scratch_.weights.resize(static_cast<std::size_t>(rows_ * width));
    sgemm({.m = rows_,
           .n = count,
           .k = args_.d_k,
           .a = scratch_.q.data(),
           .lda = args_.d_k,
           .b = scratch_.keys.data(),
           .ldb = args_.d_k,
           .b_transposed = true,
           .c = scratch_.weights.data(),
           .ldc = width});
    for (std::int64_t r = 0; r < rows_; ++r) {
      const std::int64_t position = args_.first_position + first_token_ + r / args_.query_group;
      const std::int64_t visible = std::clamp<std::int64_t>(position + 1 - first_key, 0, count);
      float* row = scratch_.weights.data() + r * width;
      if (visible == 0) {
        std::fill_n(row, width, 0.0f);
        continue;
      }
      const auto at = static_cast<std::size_t>(r);
      const float factor = HWY_DYNAMIC_DISPATCH(softmax_row_target)(
          row, width, visible, args_.softmax_scale, scratch_.largest[at], scratch_.total[at]);
      float* out = scratch_.out.data() + r * args_.d_v;
      for (std::int32_t j = 0; factor != 1 && j < args_.d_v; ++j) out[j] *= factor;
    }
    sgemm({.m = rows_,
           .n = args_.d_v,
           .k = count,
           .a = scratch_.weights.data(),
           .lda = width,
           .b = scratch_.values.data(),
           .ldb = args_.d_v,
           .c = scratch_.out.data(),
           .ldc = args_.d_v,
           .accumulate = true});
  }

  void scatter_output() {
    for (std::int64_t r = 0; r < rows_; ++r) {
      const float inverse = 1.0f / scratch_.total[static_cast<std::size_t>(r)];
      const float* from = scratch_.out.data() + r * args_.d_v;
      float* to = args_.out + (head_at(r / args_.query_group) + r % args_.query_group) * args_.d_v;
      for (std::int32_t j = 0; j < args_.d_v; ++j) to[j] = from[j] * inverse;
    }
  }

  const DenseAttentionArgs& args_;
  Scratch& scratch_;
  const std::int32_t head_;
  const std::int64_t first_token_;
  const std::int64_t tokens_;
  const std::int64_t rows_;
};

}  // namespace

void dense_attention(const DenseAttentionArgs& args, ThreadPool& pool) {
  ICE_CHECK(args.context->dense());
  const std::int64_t tiles = ceil_div(args.token_count, kTileTokens);
  pool.parallel_for(tiles * args.kv_heads, [&](std::int64_t index) {
    thread_local Scratch scratch;
    // The longest first: later tokens see more keys.
    const std::int64_t tile = tiles - 1 - index / args.kv_heads;
    Tile(args, scratch, static_cast<std::int32_t>(index % args.kv_heads), tile * kTileTokens).run();
  });
}

}  // namespace icefield
#endif
