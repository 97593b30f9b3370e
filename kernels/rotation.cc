#include "kernels/rotation.h"

#include <array>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "common/rng.h"
#include "proto/layout.h"

namespace icefield {
namespace {

const std::array<float, kMaxHeadDim>& signs() {
  static const std::array<float, kMaxHeadDim> table = [] {
    std::array<float, kMaxHeadDim> result;
    SeededRng rng(kRotationSeed);
    for (float& sign : result) sign = (rng.next() >> 63) != 0 ? -1.0f : 1.0f;
    return result;
  }();
  return table;
}

// In place, without the factor.
void hadamard(float* x, std::int32_t size) {
  for (std::int32_t half = 1; half < size; half *= 2) {
    for (std::int32_t begin = 0; begin < size; begin += 2 * half) {
      float* a = x + begin;
      float* b = a + half;
      for (std::int32_t i = 0; i < half; ++i) {
        const float sum = a[i] + b[i];
        b[i] = a[i] - b[i];
        a[i] = sum;
      }
    }
  }
}

}  // namespace

float rotation_sign(std::int32_t dim) { return signs()[static_cast<std::size_t>(dim)]; }

void rotate(const float* x, std::int32_t count, std::int32_t d, float* out) {
  ICE_CHECK(d > 0 && d <= kMaxHeadDim);
  const std::int32_t block = d & -d;
  const float factor = 1.0f / std::sqrt(static_cast<float>(block));
  std::array<float, kMaxHeadDim> row;
  for (std::int32_t r = 0; r < count; ++r) {
    for (std::int32_t j = 0; j < d; ++j) {
      row[static_cast<std::size_t>(j)] =
          x[static_cast<std::int64_t>(r) * d + j] * signs()[static_cast<std::size_t>(j)] * factor;
    }
    for (std::int32_t begin = 0; begin < d; begin += block) hadamard(row.data() + begin, block);
    std::memcpy(out + static_cast<std::int64_t>(r) * d, row.data(),
                static_cast<std::size_t>(d) * sizeof(float));
  }
}

}  // namespace icefield
