// Statistics and codes of a segment's clusters on the CPU. Bound: codes, about 20 passes over the
// rotated residuals of kLanes rows side by side, one row in each lane, so that nothing is summed
// across lanes; statistics are four passes over the rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/describe_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <cmath>
#include <span>
#include <vector>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/attend_sums-inl.h"
#include "kernels/describe_slope-inl.h"
#include "kernels/rotation.h"
#include "kernels/segment_build.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
void describe_target(const DescribeArgs& args) { describe_reference(args); }
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

using Floats = std::vector<float, AlignedAllocator<float> >;

// One row's worth of numbers, split into units as attend_sums-inl.h has them.
struct SplitRow {
  HWY_ALIGN float at[kMaxHeadDim];
};

// Units that are added up side by side: one alone would wait for itself.
constexpr int kUnitsAtOnce = kLanes == 16 ? 4 : 2;

// Calls f(std::integral_constant<int, count>, first unit) for all units of d values.
template <class F>
HWY_INLINE void for_unit_blocks(std::int32_t d, F&& f) {
  int unit = 0;
  for (; unit + kUnitsAtOnce <= units_of(d); unit += kUnitsAtOnce) {
    f(std::integral_constant<int, kUnitsAtOnce>(), unit);
  }
  for (; unit < units_of(d); ++unit) f(std::integral_constant<int, 1>(), unit);
}

// Σ of d values of `count` rows of bf16 that are `width` apart.
void sum_rows(const Bf16* rows, std::int32_t count, std::int64_t width, std::int32_t d,
              SplitRow& out) {
  const FloatTag df;
  for_unit_blocks(d, [&](auto units, int first) HWY_ATTR {
    Halves sum[units];
    for (Halves& s : sum) s = {hn::Zero(df), hn::Zero(df)};
    for (std::int32_t i = 0; i < count; ++i) {
      for (int u = 0; u < units; ++u) {
        const Halves x = load_unit(rows + i * width, first + u, d);
        sum[u] = {hn::Add(sum[u].even, x.even), hn::Add(sum[u].odd, x.odd)};
      }
    }
    for (int u = 0; u < units; ++u) {
      hn::Store(sum[u].even, df, out.at + (first + u) * kUnit);
      hn::Store(sum[u].odd, df, out.at + (first + u) * kUnit + kLanes);
    }
  });
}

// Σ (x - mean)² by dimension; what lies beyond d is zero as long as `mean` is.
void sum_squares(const Bf16* rows, std::int32_t count, std::int64_t width, std::int32_t d,
                 const SplitRow& mean, SplitRow& out) {
  const FloatTag df;
  for_unit_blocks(d, [&](auto units, int first) HWY_ATTR {
    Halves middle[units];
    Halves sum[units];
    for (int u = 0; u < units; ++u) {
      middle[u] = {hn::Load(df, mean.at + (first + u) * kUnit),
                   hn::Load(df, mean.at + (first + u) * kUnit + kLanes)};
      sum[u] = {hn::Zero(df), hn::Zero(df)};
    }
    for (std::int32_t i = 0; i < count; ++i) {
      for (int u = 0; u < units; ++u) {
        const Halves x = load_unit(rows + i * width, first + u, d);
        const FloatVec even = hn::Sub(x.even, middle[u].even);
        const FloatVec odd = hn::Sub(x.odd, middle[u].odd);
        sum[u] = {hn::MulAdd(even, even, sum[u].even), hn::MulAdd(odd, odd, sum[u].odd)};
      }
    }
    for (int u = 0; u < units; ++u) {
      hn::Store(sum[u].even, df, out.at + (first + u) * kUnit);
      hn::Store(sum[u].odd, df, out.at + (first + u) * kUnit + kLanes);
    }
  });
}

// Quantises sum / count, d numbers, to int8 with one scale, which it returns. The dequantised mean
// goes to `mean`, in order.
float quantise_mean(const SplitRow& sum, std::int32_t count, std::int32_t d, std::int8_t* out,
                    float* mean) {
  const FloatTag df;
  const IntTag di;
  const hn::Rebind<std::int8_t, FloatTag> d8;
  const float inverse_count = 1.0f / static_cast<float>(count);
  for (std::int32_t j = 0; j < d; ++j) mean[j] = sum.at[split_at(j)] * inverse_count;
  FloatVec largest = hn::Zero(df);
  for (std::int32_t j = 0; j < d; j += kLanes) {
    largest = hn::Max(largest, hn::Abs(hn::LoadU(df, mean + j)));
  }
  const float scale = max_lanes(df, largest) / 127;
  const FloatVec inverse = hn::Set(df, scale == 0 ? 0.0f : 1.0f / scale);
  for (std::int32_t j = 0; j < d; j += kLanes) {
    const FloatVec level = hn::Mul(hn::LoadU(df, mean + j), inverse);
    const auto whole = hn::Max(hn::Min(hn::NearestInt(level), hn::Set(di, 127)), hn::Set(di, -127));
    hn::StoreU(hn::DemoteTo(d8, whole), d8, out + j);
    hn::StoreU(hn::Mul(hn::ConvertTo(df, whole), hn::Set(df, scale)), df, mean + j);
  }
  return scale;
}

// Everything of one level but σ, whose denominator is known at the end: γ and, in spread[c],
// Σ_j n_c var_cj. means [runs, d_k] takes the dequantised key means.
void describe_runs(const DescribeArgs& args, std::span<const std::uint16_t> run_rows,
                   const MutableLevelView& level, float* means, float* spread) {
  const std::int64_t width = args.d_k + args.d_v;
  SplitRow sum;
  SplitRow mean{};
  SplitRow squares;
  HWY_ALIGN std::int8_t key_codes[kMaxHeadDim];
  HWY_ALIGN float value_mean[kMaxHeadDim];
  double shape[kMaxHeadDim] = {};  // sums over thousands of rows, split
  const std::int32_t split_dims = units_of(args.d_k) * kUnit;
  std::int32_t row = args.first_indexed_row;
  for (std::int32_t c = 0; c < static_cast<std::int32_t>(run_rows.size()); ++c) {
    const std::int32_t count = run_rows[static_cast<std::size_t>(c)];
    const Bf16* rows = args.rows + row * width;
    float* key_mean = means + static_cast<std::int64_t>(c) * args.d_k;
    sum_rows(rows, count, width, args.d_k, sum);
    level.key_scale[c] = quantise_mean(sum, count, args.d_k, key_codes, key_mean);
    for (std::int32_t j = 0; j < args.d_k; j += 4) {
      std::memcpy(level.key_means + level.key_mean_at(c, j), key_codes + j, 4);
    }
    for (std::int32_t j = 0; j < args.d_k; ++j) mean.at[split_at(j)] = key_mean[j];
    sum_rows(rows + args.d_k, count, width, args.d_v, sum);
    level.value_scale[c] =
        quantise_mean(sum, count, args.d_v,
                      level.value_means + static_cast<std::int64_t>(c) * args.d_v, value_mean);
    sum_squares(rows, count, width, args.d_k, mean, squares);
    spread[c] = 0;
    for (std::int32_t j = 0; j < split_dims; ++j) {
      spread[c] += squares.at[j];
      shape[j] += static_cast<double>(squares.at[j]);
    }
    level.ln_count[c] = std::log(static_cast<float>(count));
    level.token_count[c] = static_cast<std::uint16_t>(count);
    level.first_row[c] = static_cast<std::uint16_t>(row);
    row += count;
  }
  const double rows = row - args.first_indexed_row;
  for (std::int32_t j = 0; j < args.d_k; ++j) {
    level.gamma[j] = static_cast<float>(shape[split_at(j)] / rows);
  }
}

// Returns the dequantised key means [runs, d_k].
Floats describe_level(const DescribeArgs& args, std::span<const std::uint16_t> run_rows,
                      const MutableLevelView& level) {
  Floats means(run_rows.size() * static_cast<std::size_t>(args.d_k));
  std::vector<float> spread(run_rows.size());
  describe_runs(args, run_rows, level, means.data(), spread.data());
  double total = 0;
  for (std::int32_t j = 0; j < args.d_k; ++j) total += static_cast<double>(level.gamma[j]);
  for (std::size_t c = 0; c < run_rows.size(); ++c) {
    const double variance = static_cast<double>(spread[c]) / run_rows[c];
    const double sigma = total == 0 ? 0 : std::min(variance / total, 65504.0);
    level.sigma[c] = float_to_fp16(static_cast<float>(sigma));
  }
  return means;
}

// ---------------------------------------------------------------------------------------- codes

// Rotated residuals of kLanes rows: dimension j of row i in lane i of vector j.
struct Residuals {
  HWY_ALIGN float at[kMaxHeadDim * kLanes];
  float* vector(std::int32_t dim) { return at + static_cast<std::ptrdiff_t>(dim) * kLanes; }
};

// rotate() without the signs and the factor.
void rotate_lanes(std::int32_t d_k, Residuals& x) {
  const FloatTag d;
  const std::int32_t block = d_k & -d_k;
  for (std::int32_t half = 1; half < block; half *= 2) {
    for (std::int32_t begin = 0; begin < d_k; begin += 2 * half) {
      for (std::int32_t j = begin; j < begin + half; ++j) {
        const FloatVec a = hn::Load(d, x.vector(j));
        const FloatVec b = hn::Load(d, x.vector(j + half));
        hn::Store(hn::Add(a, b), d, x.vector(j));
        hn::Store(hn::Sub(a, b), d, x.vector(j + half));
      }
    }
  }
}

// The scale of least squared error of the codes of each lane. For every scale the dimensions beyond
// the threshold take the outer level, and for every set of those the best scale is known; iterating
// the two (Lloyd) ends in a local maximum of the power that the codes explain. From starts around
// the scale of a normal variable, which go side by side, the best is within 0.2 % of the error that
// the reference's full search finds.
FloatVec code_scales(std::int32_t d_k, Residuals& x) {
  const FloatTag d;
  constexpr float kStarts[] = {0.45f, 0.56f};  // a normal variable's is 0.498
  constexpr int kIterations = 3;
  FloatVec power = hn::Zero(d);
  FloatVec all = hn::Zero(d);
  for (std::int32_t j = 0; j < d_k; ++j) {
    const FloatVec v = hn::Load(d, x.vector(j));
    power = hn::MulAdd(v, v, power);
    all = hn::Add(all, hn::Abs(v));
  }
  const FloatVec dims = hn::Set(d, static_cast<float>(d_k));
  const FloatVec deviation = hn::Sqrt(hn::Div(power, dims));
  FloatVec best = hn::Zero(d);
  FloatVec best_gain = hn::Zero(d);
  FloatVec scale[2] = {hn::Mul(deviation, hn::Set(d, kStarts[0])),
                       hn::Mul(deviation, hn::Set(d, kStarts[1]))};
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    FloatVec threshold[2];
    FloatVec large[2];
    FloatVec outer[2];
    for (int s = 0; s < 2; ++s) {
      threshold[s] = hn::Mul(scale[s], hn::Set(d, kCodeThreshold));
      large[s] = outer[s] = hn::Zero(d);
    }
    for (std::int32_t j = 0; j < d_k; ++j) {
      const FloatVec v = hn::Abs(hn::Load(d, x.vector(j)));
      for (int s = 0; s < 2; ++s) {
        const auto is_outer = hn::Gt(v, threshold[s]);
        large[s] = hn::Add(large[s], hn::IfThenElseZero(is_outer, v));
        outer[s] = hn::Add(outer[s], hn::IfThenElseZero(is_outer, hn::Set(d, 1.0f)));
      }
    }
    for (int s = 0; s < 2; ++s) {
      // Levels 1 and 3: Σ level |x| and Σ level².
      const FloatVec dot = hn::MulAdd(hn::Set(d, 2.0f), large[s], all);
      const FloatVec norm = hn::MulAdd(hn::Set(d, 8.0f), outer[s], dims);
      scale[s] = hn::Div(dot, norm);
      const FloatVec gain = hn::Mul(dot, scale[s]);
      const auto better = hn::Gt(gain, best_gain);
      best_gain = hn::IfThenElse(better, gain, best_gain);
      best = hn::IfThenElse(better, scale[s], best);
    }
  }
  return best;
}

// Codes of kLanes rows from `row` on, which must not cross a panel: their number is how many of the
// thresholds -t, 0 and t a dimension reaches or, t, exceeds.
void encode_lanes(Residuals& x, std::int32_t row, const MutableCodesView& codes) {
  const FloatTag d;
  const UintTag du;
  HWY_ALIGN float scale[kLanes];
  hn::Store(code_scales(codes.d_k, x), d, scale);
  for (int i = 0; i < kLanes; ++i) {
    codes.scale[row + i] = float_to_fp16(std::min(scale[i], 65504.0f));
    scale[i] = fp16_to_float(codes.scale[row + i]) * kCodeThreshold;
  }
  const FloatVec threshold = hn::Load(d, scale);
  for (std::int32_t group = 0; group < codes.d_k; group += kCodeGroup) {
    auto word = hn::Zero(du);
    for (std::int32_t j = group; j < group + kCodeGroup; ++j) {
      const FloatVec v = hn::Load(d, x.vector(j));
      const auto one = hn::Set(du, 1u << MutableCodesView::code_shift(j));
      const auto count = [&](auto mask) HWY_ATTR {
        word = hn::Add(word, hn::IfThenElseZero(hn::RebindMask(du, mask), one));
      };
      count(hn::Ge(v, hn::Neg(threshold)));
      count(hn::Ge(v, hn::Zero(d)));
      count(hn::Gt(v, threshold));
    }
    hn::StoreU(word, du, &codes.code_word(row, group));
  }
}

// means [clusters, d_k], dequantised.
void encode(const DescribeArgs& args, const float* means) {
  const FloatTag d;
  ICE_CHECK(args.first_indexed_row % kCodePanel == 0);
  HWY_ALIGN float signs[kMaxHeadDim];
  const std::int32_t block = args.d_k & -args.d_k;
  for (std::int32_t j = 0; j < args.d_k; ++j) {
    signs[j] = rotation_sign(j) / std::sqrt(static_cast<float>(block));
  }
  Residuals residuals;
  std::size_t cluster = 0;
  std::int32_t cluster_end = args.first_indexed_row + args.partition->cluster_rows[0];
  for (std::int32_t first = args.first_indexed_row; first < args.row_count; first += kLanes) {
    const float* mean[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      while (first + i >= cluster_end) cluster_end += args.partition->cluster_rows[++cluster];
      mean[i] = means + cluster * static_cast<std::size_t>(args.d_k);
    }
    const std::int64_t width = args.d_k + args.d_v;
    const Bf16* key = args.rows + first * width;
    for (std::int32_t j = 0; j < args.d_k; j += kLanes) {
      const FloatVec sign = hn::Load(d, signs + j);
      FloatVec v[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        v[i] = hn::Mul(hn::Sub(load_bf16(d, key + i * width + j), hn::LoadU(d, mean[i] + j)), sign);
      }
      transpose(d, v);
      for (int i = 0; i < kLanes; ++i) hn::Store(v[i], d, residuals.vector(j + i));
    }
    rotate_lanes(args.d_k, residuals);
    encode_lanes(residuals, first, args.codes);
  }
}

}  // namespace

void describe_target(const DescribeArgs& args) {
  describe_level(args, args.partition->list_rows, args.lists);
  const Floats means = describe_level(args, args.partition->cluster_rows, args.clusters);
  if (args.clusters.slope != nullptr) describe_slope(args, means.data());
  encode(args, means.data());
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(describe_target);

void describe_cpu(const DescribeArgs& args) { HWY_DYNAMIC_DISPATCH(describe_target)(args); }

}  // namespace icefield
#endif
