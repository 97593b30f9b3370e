// kernels/describe_slope-inl.h — how values follow keys inside clusters, measured on every
// kSlopeStride-th row. Bound: the d_k × d_v products of each such row. Included once per
// instruction set.
#if defined(ICEFIELD_KERNELS_DESCRIBE_SLOPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_DESCRIBE_SLOPE_INL_H_
#undef ICEFIELD_KERNELS_DESCRIBE_SLOPE_INL_H_
#else
#define ICEFIELD_KERNELS_DESCRIBE_SLOPE_INL_H_
#endif

#include <vector>

#include "common/bytes.h"
#include "hwy/highway.h"
#include "kernels/cluster_plan.h"
#include "kernels/segment_build.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

constexpr std::size_t kSquaresBlock = 4096;  // summed in float, blocks in double

// Residuals of the sampled rows: keys [count, d_k], values [count, d_v].
struct SlopeSample {
  std::int32_t count = 0;
  std::vector<float, AlignedAllocator<float> > keys, values;
};

// key_means [clusters, d_k], dequantised.
inline SlopeSample slope_sample(const DescribeArgs& args, const float* key_means) {
  const FloatTag d;
  SlopeSample sample;
  const auto most = static_cast<std::size_t>(args.row_count / internal::kSlopeStride + 1);
  sample.keys.resize(most * static_cast<std::size_t>(args.d_k));
  sample.values.resize(most * static_cast<std::size_t>(args.d_v));
  std::int32_t row = args.first_indexed_row;
  for (std::size_t c = 0; c < args.partition->cluster_rows.size(); ++c) {
    const float* key_mean = key_means + c * static_cast<std::size_t>(args.d_k);
    const std::int8_t* value_mean =
        args.clusters.value_means + c * static_cast<std::size_t>(args.d_v);
    const FloatVec value_scale = hn::Set(d, args.clusters.value_scale[c]);
    for (const std::int32_t end = row + args.partition->cluster_rows[c]; row < end; ++row) {
      if (row % internal::kSlopeStride != 0) continue;
      const Bf16* at = args.rows + static_cast<std::int64_t>(row) * (args.d_k + args.d_v);
      float* key = sample.keys.data() + static_cast<std::int64_t>(sample.count) * args.d_k;
      float* value = sample.values.data() + static_cast<std::int64_t>(sample.count) * args.d_v;
      for (std::int32_t j = 0; j < args.d_k; j += kLanes) {
        hn::StoreU(hn::Sub(load_bf16(d, at + j), hn::LoadU(d, key_mean + j)), d, key + j);
      }
      for (std::int32_t j = 0; j < args.d_v; j += kLanes) {
        const FloatVec mean = hn::Mul(load_int8(d, value_mean + j), value_scale);
        hn::StoreU(hn::Sub(load_bf16(d, at + args.d_k + j), mean), d, value + j);
      }
      ++sample.count;
    }
  }
  return sample;
}

// Rows that stay in the nearest cache while the products of all dimensions are taken.
constexpr std::int32_t kSlopeRows = 32;

// Σ_i key_i[k] value_i[j] over `count` rows is added to out[k * d_v + j] for k < kKeys and kVecs
// vectors of j.
template <int kKeys, int kVecs>
HWY_INLINE void slope_block(const float* key, const float* value, std::int32_t count,
                            std::int32_t d_k, std::int32_t d_v, float* out) {
  const FloatTag d;
  FloatVec sum[kKeys][kVecs];
  for (int k = 0; k < kKeys; ++k) {
    for (int v = 0; v < kVecs; ++v) sum[k][v] = hn::LoadU(d, out + k * d_v + v * kLanes);
  }
  for (std::int32_t i = 0; i < count; ++i, key += d_k, value += d_v) {
    FloatVec x[kVecs];
    for (int v = 0; v < kVecs; ++v) x[v] = hn::LoadU(d, value + v * kLanes);
    for (int k = 0; k < kKeys; ++k) {
      const FloatVec y = hn::Set(d, key[k]);
      for (int v = 0; v < kVecs; ++v) sum[k][v] = hn::MulAdd(y, x[v], sum[k][v]);
    }
  }
  for (int k = 0; k < kKeys; ++k) {
    for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[k][v], d, out + k * d_v + v * kLanes);
    }
  }
}

// The sums of all dimensions over rows [first, end) of the sample, added to slope [d_k, d_v].
inline void add_slope_rows(const SlopeSample& sample, std::int32_t first, std::int32_t end,
                           std::int32_t d_k, std::int32_t d_v, float* slope) {
  constexpr int kKeys = kLanes == 8 ? 4 : 8;  // sums that fit the registers
  constexpr int kVecs = 2;
  const float* keys = sample.keys.data() + static_cast<std::int64_t>(first) * d_k;
  const float* values = sample.values.data() + static_cast<std::int64_t>(first) * d_v;
  for (std::int32_t k = 0; k < d_k; k += kKeys) {
    float* out = slope + static_cast<std::int64_t>(k) * d_v;
    std::int32_t j = 0;
    for (; j + kVecs * kLanes <= d_v; j += kVecs * kLanes) {
      slope_block<kKeys, kVecs>(keys + k, values + j, end - first, d_k, d_v, out + j);
    }
    for (; j < d_v; j += kLanes) {
      slope_block<kKeys, 1>(keys + k, values + j, end - first, d_k, d_v, out + j);
    }
  }
}

inline double slope_squares(const float* x, std::size_t count) {
  const FloatTag d;
  double total = 0;
  for (std::size_t i = 0; i < count; i += kSquaresBlock) {
    FloatVec sum = hn::Zero(d);
    for (std::size_t j = i; j < std::min(count, i + kSquaresBlock); j += kLanes) {
      const FloatVec v = hn::Load(d, x + j);
      sum = hn::MulAdd(v, v, sum);
    }
    total += static_cast<double>(sum_lanes(d, sum));
  }
  return total;
}

// Fills the slope of the clusters; their means must be there.
inline void describe_slope(const DescribeArgs& args, const float* key_means) {
  const SlopeSample sample = slope_sample(args, key_means);
  const auto width = static_cast<std::size_t>(args.d_v);
  std::vector<float, AlignedAllocator<float> > slope(static_cast<std::size_t>(args.d_k) * width);
  for (std::int32_t i = 0; i < sample.count; i += kSlopeRows) {
    add_slope_rows(sample, i, std::min(i + kSlopeRows, sample.count), args.d_k, args.d_v,
                   slope.data());
  }
  const auto count = static_cast<std::size_t>(sample.count);
  const double share = internal::slope_share(
      slope_squares(sample.keys.data(), count * static_cast<std::size_t>(args.d_k)),
      slope_squares(sample.values.data(), count * width), slope_squares(slope.data(), slope.size()),
      sample.count);
  for (std::size_t k = 0; k < static_cast<std::size_t>(args.d_k); ++k) {
    args.clusters.slope_scale[k] = internal::quantise_slope(
        slope.data() + k * width, args.d_v, share / sample.count, args.clusters.slope + k * width);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
