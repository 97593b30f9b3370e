// The second-order tail on the CPU. Bound: d_k × d_v products per row, once per (layer, KV head).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/slope_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include "hwy/highway.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/slope.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void add_slope_target(const AddSlopeArgs& args) { add_slope_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

template <int kRows>
void add_slope_rows(const AddSlopeArgs& args, std::int32_t first) {
  const FloatTag d;
  const std::int32_t d_k = args.shape.d_k;
  const std::int32_t d_v = args.shape.d_v;
  LevelView shape;
  shape.d_k = d_k;
  shape.gamma = args.slope.gamma;
  HWY_ALIGN float weight[kRows][kMaxHeadDim];
  HWY_ALIGN float sums[kRows][kMaxHeadDim];
  for (int r = 0; r < kRows; ++r) {
    const float* q = args.q + static_cast<std::int64_t>(first + r) * d_k;
    const float variance = 2 * variance_weight(d, q, shape, args.shape.beta);
    const FloatVec factor =
        hn::Set(d, variance == 0 ? 0.0f : args.drift[first + r] * args.shape.beta / variance);
    for (std::int32_t k = 0; k < d_k; k += kLanes) {
      const FloatVec scaled =
          hn::Mul(hn::LoadU(d, q + k), hn::LoadU(d, args.slope.slope_scale + k));
      hn::Store(hn::Mul(factor, scaled), d, weight[r] + k);
    }
    std::copy_n(args.out + static_cast<std::int64_t>(first + r) * d_v, d_v, sums[r]);
  }
  add_means<kRows>(args.slope.slope, d_k, weight[0], kMaxHeadDim, d_v, sums);
  for (int r = 0; r < kRows; ++r) {
    std::copy_n(sums[r], d_v, args.out + static_cast<std::int64_t>(first + r) * d_v);
  }
}

}  // namespace

void add_slope_target(const AddSlopeArgs& args) {
  for_row_blocks(args.row_count,
                 [&](auto rows, std::int32_t first) { add_slope_rows<rows()>(args, first); });
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(add_slope_target);

void add_slope_cpu(const AddSlopeArgs& args) { HWY_DYNAMIC_DISPATCH(add_slope_target)(args); }

}  // namespace icefield
#endif
