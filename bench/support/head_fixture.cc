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
  head->d_k = d_k;
  head->d_v = d_v;
  head->rows = std::move(rows);
  const std::int64_t width = d_k + d_v;
  const auto row_count =
      static_cast<std::int32_t>(static_cast<std::int64_t>(head->rows.size()) / width);
  const Status status = kernels.partition({.d_k = d_k,
                                           .d_v = d_v,
                                           .row_count = row_count,
                                           .first_indexed_row = first_indexed_row,
                                           .rows = head->rows.data()},
                                          head->partition);
  ICE_CHECK(status.ok());
  for (const std::uint16_t token : head->partition.order) {
    const auto begin = head->rows.begin() + token * width;
    head->stored_rows.insert(head->stored_rows.end(), begin, begin + width);
  }
  const PartShape shape{.kv_head_count = 1,
                        .d_k = d_k,
                        .d_v = d_v,
                        .row_count = row_count,
                        .first_indexed_row = first_indexed_row};
  const auto list_count = static_cast<std::int32_t>(head->partition.list_rows.size());
  const auto cluster_count = static_cast<std::int32_t>(head->partition.cluster_rows.size());
  head->lists = make_level_part(PartKind::kLists, shape, std::span(&list_count, 1));
  head->clusters = make_level_part(PartKind::kClusters, shape, std::span(&cluster_count, 1));
  head->codes = make_codes_part(shape);
  kernels.describe({.d_k = d_k,
                    .d_v = d_v,
                    .row_count = row_count,
                    .first_indexed_row = first_indexed_row,
                    .rows = head->stored_rows.data(),
                    .partition = &head->partition,
                    .lists = mutable_level(head->lists, 0),
                    .clusters = mutable_level(head->clusters, 0),
                    .codes = mutable_codes(head->codes, 0)});
  const Result<LevelPart> lists = parse_level_part(head->lists, PartKind::kLists);
  const Result<LevelPart> clusters = parse_level_part(head->clusters, PartKind::kClusters);
  const Result<CodesPart> codes = parse_codes_part(head->codes);
  head->index = {.lists = lists.value().heads[0],
                 .clusters = clusters.value().heads[0],
                 .codes = codes.value().heads[0],
                 .first_row = first_indexed_row,
                 .end_row = row_count};
  return head;
}

HeadIndex HeadFixture::without_last_extent() const {
  HeadIndex shorter = index;
  shorter.end_row = index.codes.row_count - kExtentRows;
  const auto drop = [&](LevelView& level) {
    while (level.count > 0 && level.first_row[level.count - 1] >= shorter.end_row) --level.count;
  };
  drop(shorter.lists);
  drop(shorter.clusters);
  shorter.end_row = std::max(shorter.end_row, shorter.first_row);
  return shorter;
}

}  // namespace icefield
