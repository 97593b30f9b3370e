#include "tests/support/strange_rows.h"

#include "bench/support/head_fixture.h"

namespace icefield {

std::vector<Bf16> strange_rows(Rng& rng, StrangeKeys keys, std::int32_t rows, std::int32_t d_k,
                               std::int32_t d_v) {
  std::vector<Bf16> out = random_rows(rng, rows, d_k, d_v);
  const std::int32_t width = d_k + d_v;
  for (std::int32_t i = 0; i < rows; ++i) {
    for (std::int32_t j = 0; j < d_k; ++j) {
      Bf16& key = out[static_cast<std::size_t>(i * width + j)];
      switch (keys) {
        case StrangeKeys::kUsual: break;
        case StrangeKeys::kAllEqual: key = float_to_bf16(static_cast<float>(j % 5) - 2); break;
        case StrangeKeys::kZero: key = 0; break;
        case StrangeKeys::kOneOutlier:
          if (i == rows / 2) key = float_to_bf16(j % 2 == 0 ? 3000.0f : -3000.0f);
          break;
        case StrangeKeys::kTiny: key = float_to_bf16(1e-20f * bf16_to_float(key)); break;
        case StrangeKeys::kLarge: key = float_to_bf16(20.0f * bf16_to_float(key)); break;
      }
    }
  }
  return out;
}

}  // namespace icefield
