// kernels/level_dots-inl.h — β q·μ of all clusters of a level. Included once per instruction set.
#if defined(ICEFIELD_KERNELS_LEVEL_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_LEVEL_DOTS_INL_H_
#undef ICEFIELD_KERNELS_LEVEL_DOTS_INL_H_
#else
#define ICEFIELD_KERNELS_LEVEL_DOTS_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/rounded_query.h"
#include "kernels/simd-inl.h"
#include "kernels/simd_dot-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

// kRows query rows as means see them.
template <int kRows>
struct MeanQueries {
  // q [kRows, d]
  MeanQueries(const float* q, std::int32_t d, float beta) {
    for (int r = 0; r < kRows; ++r) {
      step[r] = beta * internal::round_query(q + static_cast<std::int64_t>(r) * d, d,
                                             internal::kMeanQueryLimit, levels[r]);
    }
  }

  HWY_ALIGN std::int16_t levels[kRows][kMaxHeadDim];
  float step[kRows];  // times β
};

// Dots of kGroups vectors of clusters from `lane` of a panel on. Past the panel's width it reads
// what follows in the part, into lanes that are not stored.
template <int kRows, int kGroups>
HWY_INLINE void panel_dots(const LevelView& level, const MeanQueries<kRows>& q, std::int32_t panel,
                           std::int32_t lane, float* out, std::int64_t out_stride) {
  const FloatTag d;
  const IntTag di;
  const ShortTag d16;
  const hn::Rebind<std::int8_t, ShortTag> d8;
  const hn::Repartition<std::int64_t, IntTag> d64;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  const std::int32_t width = level.panel_width(panel);
  const std::int8_t* at = level.key_panel(panel) + static_cast<std::int64_t>(lane) * 4;
  IntVec sum[kRows][2 * kGroups];
  for (auto& row : sum) {
    for (IntVec& s : row) s = hn::Zero(di);
  }
  // The processor itself fetches ahead only inside of a page, which is a panel of 128 dimensions.
  const std::int64_t panel_bytes = static_cast<std::int64_t>(level.d_k) * width;
  for (std::int32_t j = 0; j < level.d_k; j += 4, at += static_cast<std::int64_t>(width) * 4) {
    __builtin_prefetch(at + panel_bytes);
    // Four dimensions of half as many clusters as there are lanes, in pairs.
    ShortVec mean[2 * kGroups];
    for (int i = 0; i < 2 * kGroups; ++i) {
      mean[i] = hn::PromoteTo(d16, hn::LoadU(d8, at + i * static_cast<std::int64_t>(2 * lanes)));
    }
    for (int r = 0; r < kRows; ++r) {
      std::int64_t four;
      std::memcpy(&four, q.levels[r] + j, sizeof(four));
      const ShortVec x = hn::BitCast(d16, hn::Set(d64, four));
      for (int i = 0; i < 2 * kGroups; ++i) sum[r][i] = pair_dot(sum[r][i], mean[i], x);
    }
  }
  const std::int32_t first = panel * kClusterPanel + lane;
  const std::int32_t used = std::min(width - lane, level.count - first);
  for (std::int32_t i = 0; i < kGroups && i * lanes < used; ++i) {
    const FloatVec scale = load_first(d, level.key_scale + first + i * lanes, used - i * lanes, 0);
    for (int r = 0; r < kRows; ++r) {
      const IntVec low = sum[r][2 * i];
      const IntVec high = sum[r][2 * i + 1];
      const IntVec whole = hn::Add(hn::ConcatEven(di, high, low), hn::ConcatOdd(di, high, low));
      const FloatVec dot = hn::Mul(hn::Mul(hn::ConvertTo(d, whole), scale), hn::Set(d, q.step[r]));
      store_first(d, dot, used - i * lanes, out + r * out_stride + first + i * lanes);
    }
  }
}

// β q·μ of all clusters of a level: out[r * out_stride + c].
template <int kRows>
HWY_NOINLINE void level_dots(const LevelView& level, const MeanQueries<kRows>& q, float* out,
                             std::int64_t out_stride) {
  // Sums that fit the registers.
  constexpr int kGroups = kRows * 4 <= (HWY_TARGET == HWY_AVX2 ? 8 : 16) ? 2 : 1;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(FloatTag()));
  for (std::int32_t first = 0; first < level.count; first += kClusterPanel) {
    const std::int32_t panel = first / kClusterPanel;
    const std::int32_t used = std::min(level.panel_width(panel), level.count - first);
    for (std::int32_t lane = 0; lane < used; lane += kGroups * lanes) {
      panel_dots<kRows, kGroups>(level, q, panel, lane, out, out_stride);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
