#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/vector_ops.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: the code below needs the target.
#include <cmath>

#include "engine/vector_ops.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::CappedTag<float, 16>;

// Sizes are multiples of 16 in every model; what is left over is done one by one.
void rms_norm_target(const float* x, const float* weight, std::int64_t count, float epsilon,
                     float* out) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto squares = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    squares = hn::MulAdd(v, v, squares);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, squares));
  for (; i < count; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(count) + epsilon);
  for (i = 0; i + lanes <= count; i += lanes) {
    const auto v = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale));
    hn::StoreU(hn::Mul(v, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < count; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_multiply_target(float* gate, const float* up, std::int64_t count) {
  const FloatTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0f);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto g = hn::LoadU(d, gate + i);
    // e^88 is the last finite one; silu(-88) is 0 to fp32 anyway.
    const auto e = hn::Exp(d, hn::Min(hn::Neg(g), hn::Set(d, 88.0f)));
    hn::StoreU(hn::Mul(hn::Div(g, hn::Add(one, e)), hn::LoadU(d, up + i)), d, gate + i);
  }
  for (; i < count; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(rms_norm_target);
HWY_EXPORT(silu_multiply_target);

void rms_norm(const float* x, const float* weight, std::int64_t count, float epsilon, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_target)(x, weight, count, epsilon, out);
}
void silu_multiply(float* gate, const float* up, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(silu_multiply_target)(gate, up, count);
}

void add(float* x, const float* y, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) x[i] += y[i];
}

RopeRow rope_row(std::int64_t position, std::int32_t d, double base) {
  RopeRow row;
  for (std::int32_t i = 0; i < d; i += 2) {
    const auto frequency = static_cast<float>(1.0 / std::pow(base, static_cast<double>(i) / d));
    const float angle = static_cast<float>(position) * frequency;
    row.cosine.push_back(static_cast<float>(std::cos(static_cast<double>(angle))));
    row.sine.push_back(static_cast<float>(std::sin(static_cast<double>(angle))));
  }
  return row;
}

void apply_rope(const RopeRow& row, std::int32_t heads, std::int32_t d, float* x) {
  for (std::int32_t head = 0; head < heads; ++head, x += d) {
    for (std::int32_t i = 0; i < d / 2; ++i) {
      const auto pair = static_cast<std::size_t>(i);
      const float a = x[2 * i];
      const float b = x[2 * i + 1];
      x[2 * i] = a * row.cosine[pair] - b * row.sine[pair];
      x[2 * i + 1] = a * row.sine[pair] + b * row.cosine[pair];
    }
  }
}

}  // namespace icefield
#endif
