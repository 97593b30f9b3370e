// The layouts, and what is computed, in plain loops.
#include <algorithm>
#include <cmath>

#include "bench/baselines/scan_kernels.h"

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

float round_to_int8(const float* x, std::int32_t d) {
  float largest = 0;
  for (std::int32_t j = 0; j < d; ++j) largest = std::max(largest, std::fabs(x[j]));
  return largest == 0 ? 1.0f : largest / 127;
}

}  // namespace

Int8Vectors Int8Vectors::make(const float* vectors, std::int32_t count, std::int32_t d) {
  Int8Vectors out{.count = count, .d = d};
  const std::int32_t padded = scan_padded(count);
  out.panels.assign(at(static_cast<std::int64_t>(padded) * d), 128);
  out.scale.assign(at(padded), 0.0f);
  for (std::int32_t i = 0; i < count; ++i) {
    const float* x = vectors + static_cast<std::int64_t>(i) * d;
    const float scale = round_to_int8(x, d);
    const float inverse = 1 / scale;
    out.scale[at(i)] = scale;
    std::uint8_t* panel = out.panels.data() +
                          static_cast<std::int64_t>(i / kScanPanel) * kScanPanel * d +
                          i % kScanPanel * 4;
    for (std::int32_t j = 0; j < d; j += 4, panel += kScanPanel * 4) {
      for (std::int32_t b = 0; b < 4; ++b) {
        panel[b] =
            static_cast<std::uint8_t>(static_cast<int>(std::nearbyint(x[j + b] * inverse)) + 128);
      }
    }
  }
  return out;
}

Bf16Vectors Bf16Vectors::make(const Bf16* rows, std::int64_t stride, std::int32_t count,
                              std::int32_t d) {
  Bf16Vectors out{.count = count, .d = d};
  out.panels.assign(at(static_cast<std::int64_t>(scan_padded(count)) * d), 0);
  for (std::int32_t i = 0; i < count; ++i) {
    Bf16* panel = out.panels.data() + static_cast<std::int64_t>(i / kScanPanel) * kScanPanel * d +
                  i % kScanPanel;
    for (std::int32_t j = 0; j < d; ++j) panel[j * kScanPanel] = rows[i * stride + j];
  }
  return out;
}

Centroids Centroids::make(std::int32_t count, std::int32_t d) {
  const std::int64_t padded = round_up(count, kPanel);
  Centroids out{.count = count, .d = d};
  out.panels.assign(at(padded * d), 0.0f);
  out.bias.assign(at(padded), HUGE_VALF);
  return out;
}

void Centroids::set(std::int32_t index, const float* centroid, float bias_in) {
  float* panel =
      panels.data() + static_cast<std::int64_t>(index / kPanel) * kPanel * d + index % kPanel;
  for (std::int32_t j = 0; j < d; ++j) panel[j * kPanel] = centroid[j];
  bias[at(index)] = bias_in;
}

RoundedQuery round_query(const float* q, std::int32_t rows, std::int32_t d) {
  RoundedQuery out;
  out.values.resize(at(static_cast<std::int64_t>(rows) * d));
  for (std::int32_t r = 0; r < rows; ++r) {
    const float* x = q + static_cast<std::int64_t>(r) * d;
    const float scale = round_to_int8(x, d);
    std::int32_t sum = 0;
    for (std::int32_t j = 0; j < d; ++j) {
      const int value = static_cast<int>(std::nearbyint(x[j] / scale));
      out.values[at(static_cast<std::int64_t>(r) * d + j)] = static_cast<std::int8_t>(value);
      sum += value;
    }
    out.scale.push_back(scale);
    out.offset.push_back(128 * sum);
  }
  return out;
}

namespace plain {

void scan(const Int8Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride) {
  const RoundedQuery rounded = round_query(q, rows, vectors.d);
  for (std::int32_t r = 0; r < rows; ++r) {
    const std::int8_t* x = rounded.values.data() + static_cast<std::int64_t>(r) * vectors.d;
    for (std::int32_t i = 0; i < scan_padded(vectors.count); ++i) {
      const std::uint8_t* panel =
          vectors.panels.data() +
          static_cast<std::int64_t>(i / kScanPanel) * kScanPanel * vectors.d + i % kScanPanel * 4;
      std::int32_t sum = 0;
      for (std::int32_t j = 0; j < vectors.d; ++j) {
        sum += x[j] * (panel[j / 4 * kScanPanel * 4 + j % 4] - 128);
      }
      out[r * stride + i] =
          static_cast<float>(sum) * (vectors.scale[at(i)] * (rounded.scale[at(r)] * factor));
    }
  }
}

void scan(const Bf16Vectors& vectors, const float* q, std::int32_t rows, float factor, float* out,
          std::int64_t stride) {
  for (std::int32_t r = 0; r < rows; ++r) {
    const float* x = q + static_cast<std::int64_t>(r) * vectors.d;
    for (std::int32_t i = 0; i < scan_padded(vectors.count); ++i) {
      const Bf16* panel = vectors.panels.data() +
                          static_cast<std::int64_t>(i / kScanPanel) * kScanPanel * vectors.d +
                          i % kScanPanel;
      float sum = 0;
      for (std::int32_t j = 0; j < vectors.d; ++j) {
        sum += x[j] * bf16_to_float(panel[j * kScanPanel]);
      }
      out[r * stride + i] = sum * factor;
    }
  }
}

void softmax_votes(const float* logits, std::int32_t rows, std::int32_t count, std::int64_t stride,
                   const float* exact_lse, float* scratch, float* vote) {
  if (rows == 1) {
    std::copy_n(logits, count, vote);
    return;
  }
  std::fill_n(vote, count, 0.0f);
  for (std::int32_t r = 0; r < rows; ++r) {
    const float* row = logits + r * stride;
    const float exact = exact_lse == nullptr ? -HUGE_VALF : exact_lse[r];
    const float largest = std::max(*std::max_element(row, row + count), exact);
    double total = std::exp(static_cast<double>(exact - largest));
    for (std::int32_t i = 0; i < count; ++i) {
      scratch[i] = std::exp(row[i] - largest);
      total += static_cast<double>(scratch[i]);
    }
    for (std::int32_t i = 0; i < count; ++i) vote[i] += scratch[i] / static_cast<float>(total);
  }
}

void top_scores(const float* score, std::int32_t count, std::int32_t wanted, Scored* best) {
  std::vector<Scored> all;
  for (std::int32_t i = 0; i < count; ++i) all.push_back({score[i], i});
  std::partial_sort_copy(all.begin(), all.end(), best, best + wanted,
                         [](const Scored& a, const Scored& b) {
                           return a.score != b.score ? a.score > b.score : a.index < b.index;
                         });
}

void dot_rows(const Bf16* rows, std::int64_t stride, std::int32_t count, std::int32_t d,
              const float* q, float factor, float* out) {
  for (std::int32_t i = 0; i < count; ++i) {
    float sum = 0;
    for (std::int32_t j = 0; j < d; ++j) sum += q[j] * bf16_to_float(rows[i * stride + j]);
    out[i] = sum * factor;
  }
}

void nearest_centroids(const float* points, std::int32_t count, const Centroids& centroids,
                       std::int32_t* nearest) {
  for (std::int32_t i = 0; i < count; ++i) {
    const float* x = points + static_cast<std::int64_t>(i) * centroids.d;
    float best = -HUGE_VALF;
    nearest[i] = 0;
    for (std::int32_t c = 0; c < centroids.count; ++c) {
      const float* panel =
          centroids.panels.data() +
          static_cast<std::int64_t>(c / Centroids::kPanel) * Centroids::kPanel * centroids.d +
          c % Centroids::kPanel;
      float sum = 0;
      for (std::int32_t j = 0; j < centroids.d; ++j) sum += x[j] * panel[j * Centroids::kPanel];
      sum -= centroids.bias[at(c)];
      if (sum <= best) continue;
      best = sum;
      nearest[i] = c;
    }
  }
}

}  // namespace plain
}  // namespace icefield
