// Layout version 1 is frozen: parts filled by simple rules have the bytes that an independent
// program gives them (tests/data/layout_1.json, made by make_layout.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/hash.h"
#include "proto/part.h"

namespace icefield {
namespace {

PartShape shape_of(std::int32_t rows) {
  return {.layer = 5,
          .first_kv_head = 2,
          .kv_head_count = 2,
          .d_k = 80,
          .d_v = 48,
          .row_count = rows,
          .first_indexed_row = kSinkTokens};
}

std::int8_t small(std::int32_t value) { return static_cast<std::int8_t>(value % 255 - 127); }

AlignedBytes level_part(PartKind kind, std::int32_t rows, std::int32_t count) {
  const std::vector<std::int32_t> counts = {count, count};
  AlignedBytes part = make_level_part(kind, shape_of(rows), counts);
  for (std::int32_t head = 0; head < 2; ++head) {
    const MutableLevelView level = mutable_level(part, head);
    const std::int32_t size = (rows - kSinkTokens) / count;
    for (std::int32_t c = 0; c < count; ++c) {
      for (std::int32_t j = 0; j < 80; ++j) {
        level.key_means[level.key_mean_at(c, j)] = small(7 * c + 3 * j + head);
      }
      for (std::int32_t j = 0; j < 48; ++j) level.value_means[c * 48 + j] = small(5 * c + j);
      const auto number = static_cast<float>(c);
      level.key_scale[c] = 0.5f + number;
      level.value_scale[c] = 0.25f + number;
      level.ln_count[c] = number / 4;
      level.sigma[c] = float_to_fp16(number / 8);
      level.token_count[c] = static_cast<std::uint16_t>(size);
      level.first_row[c] = static_cast<std::uint16_t>(kSinkTokens + size * c);
    }
    for (std::int32_t j = 0; j < 80; ++j) {
      level.gamma[j] = static_cast<float>(head) + static_cast<float>(j) / 2;
      if (level.slope == nullptr) continue;
      level.slope_scale[j] = static_cast<float>(head) + static_cast<float>(j) / 4;
      for (std::int32_t i = 0; i < 48; ++i) level.slope[j * 48 + i] = small(head + 11 * j + i);
    }
  }
  return part;
}

AlignedBytes codes_part() {
  AlignedBytes part = make_codes_part(shape_of(256));
  for (std::int32_t head = 0; head < 2; ++head) {
    const MutableCodesView codes = mutable_codes(part, head);
    for (std::int32_t row = 0; row < 256; ++row) {
      codes.scale[row] = float_to_fp16(static_cast<float>(row) / 8);
      codes.check[row] = static_cast<std::uint32_t>(7 * row + head);
      for (std::int32_t j = 0; j < 80; ++j) {
        codes.code_word(row, j) |= static_cast<std::uint32_t>((row + j + head) % 4)
                                   << MutableCodesView::code_shift(j);
      }
    }
  }
  return part;
}

AlignedBytes order_part() {
  AlignedBytes part = make_order_part(shape_of(256));
  for (std::int32_t head = 0; head < 2; ++head) {
    for (std::uint16_t row = 0; row < 256; ++row) {
      mutable_order(part, head)[row] = static_cast<std::uint16_t>(255 - row);
    }
  }
  return part;
}

std::string hex(ConstByteSpan bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    const auto value = std::to_integer<unsigned>(byte);
    text += "0123456789abcdef"[value >> 4];
    text += "0123456789abcdef"[value & 15];
  }
  return text;
}

TEST(Layout1, PartsHaveThePublishedBytes) {
  std::ifstream in(std::string(ICEFIELD_SOURCE_DIR) + "/tests/data/layout_1.json");
  const nlohmann::json vectors = nlohmann::json::parse(in);
  const auto expect_part = [&](const std::string& name, const AlignedBytes& part) {
    SCOPED_TRACE(name);
    const nlohmann::json& vector = vectors.at(name);
    EXPECT_EQ(part.size(), vector.at("bytes").get<std::size_t>());
    EXPECT_EQ(hex(ConstByteSpan(part).first(64)), vector.at("first_64").get<std::string>());
    const std::uint64_t sum = xxh3(ConstByteSpan(part), 0);
    EXPECT_EQ(sum, std::stoull(vector.at("xxh3").get<std::string>(), nullptr, 16));
  };
  expect_part("lists_256", level_part(PartKind::kLists, 256, 5));
  expect_part("clusters_256", level_part(PartKind::kClusters, 256, 15));
  expect_part("clusters_4096", level_part(PartKind::kClusters, 4096, 255));
  expect_part("codes_256", codes_part());
  expect_part("order_256", order_part());
}

}  // namespace
}  // namespace icefield
