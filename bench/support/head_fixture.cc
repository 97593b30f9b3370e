#include "bench/support/head_fixture.h"

#include <cmath>

#include "common/check.h"

namespace icefield {

float normal(Rng& rng) {
  const double u = 1 - rng.unit();
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * rng.unit()));
}

std::vector<Bf16> random_rows(Rng& rng, std::int32_t rows, std::int32_t d_k, std::int32_t d_v) {
  constexpr std::int32_t kTopicRun = 12;
  std::vector<Bf16> out;
  std::vector<float> topic(static_cast<std::size_t>(d_k + d_v));
  for (std::int32_t i = 0; i < rows; ++i) {
    if (rng.below(kTopicRun) == 0 || i == 0) {
      for (float& value : topic) value = normal(rng);
    }
    for (std::int32_t j = 0; j < d_k + d_v; ++j) {
      const float outlier = j < d_k && j % 29 == 7 ? 6.0f : 0.0f;
      out.push_back(
          float_to_bf16(outlier + topic[static_cast<std::size_t>(j)] + 0.6f * normal(rng)));
    }
  }
  return out;
}

std::vector<float> random_queries(Rng& rng, const std::vector<Bf16>& rows, std::int32_t count,
                                  std::int32_t d_k, std::int32_t d_v) {
  const std::size_t width = static_cast<std::size_t>(d_k + d_v);
  std::vector<float> out;
  for (std::int32_t i = 0; i < count; ++i) {
    const std::size_t target = rng.below(rows.size() / width) * width;
    const float focus = i % 3 == 2 ? 0.0f : 1.0f;
    for (std::size_t j = 0; j < static_cast<std::size_t>(d_k); ++j) {
      const bool outlier = j % 29 == 7;  // the common mean says nothing about a token
      const float key = outlier ? 0.0f : bf16_to_float(rows[target + j]);
      out.push_back(focus * 1.5f * key + normal(rng));
    }
  }
  return out;
}

std::unique_ptr<HeadFixture> HeadFixture::make(const Kernels& kernels, std::vector<Bf16> rows,
                                               std::int32_t d_k, std::int32_t d_v,
                                               std::int32_t first_indexed_row) {
  auto head = std::make_unique<HeadFixture>();
  head->rows = std::move(rows);
  const auto row_count = static_cast<std::int32_t>(head->rows.size()) / (d_k + d_v);
  head->build(kernels, head->rows.data(),
              {.kv_head_count = 1,
               .d_k = d_k,
               .d_v = d_v,
               .row_count = row_count,
               .first_indexed_row = first_indexed_row});
  return head;
}

void HeadFixture::build(const Kernels& kernels, const Bf16* token_rows, const PartShape& shape) {
  d_k = shape.d_k;
  d_v = shape.d_v;
  const Status status = kernels.partition({.d_k = d_k,
                                           .d_v = d_v,
                                           .row_count = shape.row_count,
                                           .first_indexed_row = shape.first_indexed_row,
                                           .rows = token_rows},
                                          partition);
  ICE_CHECK(status.ok());
  const std::int64_t width = d_k + d_v;
  stored_rows.reserve(static_cast<std::size_t>(shape.row_count * width));
  for (const std::uint16_t token : partition.order) {
    const Bf16* row = token_rows + token * width;
    stored_rows.insert(stored_rows.end(), row, row + width);
  }
  describe(kernels, shape, partition, stored_rows.data());
}

void HeadParts::describe(const Kernels& kernels, const PartShape& shape, const Partition& partition,
                         const Bf16* stored_rows) {
  const auto list_count = static_cast<std::int32_t>(partition.list_rows.size());
  const auto cluster_count = static_cast<std::int32_t>(partition.cluster_rows.size());
  lists = make_level_part(PartKind::kLists, shape, std::span(&list_count, 1));
  clusters = make_level_part(PartKind::kClusters, shape, std::span(&cluster_count, 1));
  codes = make_codes_part(shape);
  kernels.describe({.d_k = shape.d_k,
                    .d_v = shape.d_v,
                    .row_count = shape.row_count,
                    .first_indexed_row = shape.first_indexed_row,
                    .rows = stored_rows,
                    .partition = &partition,
                    .lists = mutable_level(lists, 0),
                    .clusters = mutable_level(clusters, 0),
                    .codes = mutable_codes(codes, 0)});
  index = {.lists = parse_level_part(lists, PartKind::kLists).value().heads[0],
           .clusters = parse_level_part(clusters, PartKind::kClusters).value().heads[0],
           .codes = parse_codes_part(codes).value().heads[0],
           .first_row = shape.first_indexed_row,
           .end_row = shape.row_count};
}

}  // namespace icefield
