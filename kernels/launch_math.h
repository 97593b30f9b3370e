// kernels/launch_math.h — the index arithmetic of the CUDA kernels: which block, warp or thread
// handles what, how codes and votes are taken apart. Plain constexpr functions, so that unit tests
// run them against loops and device code calls the same ones.
#pragma once

#include <cstdint>

#include "proto/layout.h"

namespace icefield::gpu {

constexpr std::int32_t kWarp = 32;
constexpr std::int32_t kTileRows = 16;    // rows (or clusters) that a warp attends at a time
constexpr std::int32_t kQueryTile = 16;   // query rows of one block of attend
constexpr std::int32_t kQueryBlock = 8;   // query rows are padded to a multiple of it
constexpr std::int32_t kRankChunk = 512;  // rows of a segment that a block of rank scores
constexpr std::int32_t kAttendWarps = 4;

constexpr std::int32_t div_up(std::int32_t value, std::int32_t by) { return (value + by - 1) / by; }
constexpr std::int32_t padded_queries(std::int32_t row_count) {
  return div_up(row_count, kQueryBlock) * kQueryBlock;
}

// ---- rounded queries: one int32 array per group
//
// [d_k/4, padded, 2] words of the means' query (high, low bytes), [d_k/4, padded] those of the
// codes', then [padded] each: the steps of both as float bits, Σ q8. Four dims stand in a word.

struct RoundedLayout {
  std::int32_t padded = 0;
  std::int32_t words = 0;  // d_k / 4

  constexpr std::int32_t mean_at(std::int32_t word, std::int32_t h) const {
    return (word * padded + h) * 2;
  }
  constexpr std::int32_t mean_ints() const { return words * padded * 2; }
  constexpr std::int32_t code_at(std::int32_t word, std::int32_t h) const {
    return word * padded + h;  // from codes_begin()
  }
  constexpr std::int32_t codes_begin() const { return mean_ints(); }
  constexpr std::int32_t code_ints() const { return words * padded; }
  constexpr std::int32_t mean_step() const { return codes_begin() + code_ints(); }
  constexpr std::int32_t code_step() const { return mean_step() + padded; }
  constexpr std::int32_t code_sum() const { return code_step() + padded; }
  constexpr std::int32_t ints() const { return code_sum() + padded; }
};
constexpr RoundedLayout rounded_layout(std::int32_t row_count, std::int32_t d_k) {
  return {.padded = padded_queries(row_count), .words = d_k / 4};
}

// q16 = 256 high + low, both in int8.
constexpr std::int32_t low_byte(std::int32_t q16) { return ((q16 + 128) & 0xff) - 128; }
constexpr std::int32_t high_byte(std::int32_t q16) { return (q16 - low_byte(q16)) / 256; }

constexpr std::int32_t pack_bytes(std::int32_t b0, std::int32_t b1, std::int32_t b2,
                                  std::int32_t b3) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(b0) & 0xffu) |
                                   (static_cast<std::uint32_t>(b1) & 0xffu) << 8 |
                                   (static_cast<std::uint32_t>(b2) & 0xffu) << 16 |
                                   (static_cast<std::uint32_t>(b3) & 0xffu) << 24);
}

// Σ of the products of four signed bytes, what dp4a computes.
constexpr std::int32_t dot4_of(std::int32_t a, std::int32_t b) {
  std::int32_t sum = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const auto x = static_cast<std::int8_t>(static_cast<std::uint32_t>(a) >> shift);
    const auto y = static_cast<std::int8_t>(static_cast<std::uint32_t>(b) >> shift);
    sum += x * y;
  }
  return sum;
}

// ---- panels of means (docs/formats/part.md)

// Clusters side by side in panel `panel` of a level that stores `stored_count`.
constexpr std::int32_t panel_width(std::int32_t stored_count, std::int32_t panel) {
  const std::int32_t left = stored_count - panel * kClusterPanel;
  return left >= kClusterPanel ? kClusterPanel
                               : div_up(left, kClusterPanelGrain) * kClusterPanelGrain;
}

// ---- codes

// Words of one row's code, and where word g of row `row` stands.
constexpr std::int32_t code_words(std::int32_t d_k) { return d_k / 16; }
constexpr std::int64_t code_word_at(std::int32_t row, std::int32_t g, std::int32_t d_k) {
  return (static_cast<std::int64_t>(row / kCodePanel) * code_words(d_k) + g) * kCodePanel +
         row % kCodePanel;
}
// Four codes, of dims 16 g + 4 k + 0 … 3, in four bytes.
constexpr std::uint32_t four_codes(std::uint32_t word, int k) {
  return (word >> (2 * k)) & 0x03030303u;
}
// Σ q8 (2 c - 3), levels in place of codes, from Σ q8 c and Σ q8.
constexpr std::int32_t level_dot(std::int32_t code_dot, std::int32_t query_sum) {
  return 2 * code_dot - 3 * query_sum;
}

// ---- work splitting

// Share `part` of `parts` of `count` things: [share_begin(part), share_begin(part + 1)).
constexpr std::int32_t share_begin(std::int32_t count, std::int32_t part, std::int32_t parts) {
  return static_cast<std::int32_t>(static_cast<std::int64_t>(count) * part / parts);
}

// Blocks that share the exact rows of one group and tile of query rows. Enough to fill the
// processors twice over, as long as every warp has a tile of rows to do.
constexpr std::int32_t row_splits(std::int32_t max_rows, std::int32_t groups,
                                  std::int32_t query_tiles, std::int32_t processors) {
  const std::int32_t most = div_up(max_rows, kAttendWarps * kTileRows);
  const std::int32_t wanted = div_up(2 * processors, groups * query_tiles);
  const std::int32_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : splits;
}

// Where chunk `chunk` of 16 bytes of a tile of rows, each `row_chunks` of them, belongs.
struct TileChunk {
  std::int32_t row = 0;
  std::int32_t chunk = 0;  // in the row
};
constexpr TileChunk tile_chunk(std::int32_t index, std::int32_t row_chunks) {
  return {.row = index / row_chunks, .chunk = index % row_chunks};
}

// The token (column) of a tile, or the query row, that element `e` of a lane's accumulators stands
// for (mma m16n8: rows are query rows, columns tokens; two column blocks of 8 make a tile).
constexpr std::int32_t accumulator_row(std::int32_t lane, std::int32_t e) {
  return lane / 4 + (e / 2) * 8;
}
constexpr std::int32_t accumulator_column(std::int32_t lane, std::int32_t block, std::int32_t e) {
  return block * 8 + (lane % 4) * 2 + e % 2;
}

// ---- selection: keys in descending order of vote, then ascending order of index

// The bits of a float as a number in the order of floats: negative ones too.
constexpr std::uint32_t ordered_bits(std::uint32_t bits) {
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
constexpr std::uint64_t selection_key(std::uint32_t vote_bits, std::uint32_t index) {
  return static_cast<std::uint64_t>(ordered_bits(vote_bits)) << 32 | (0xffffffffu - index);
}
constexpr std::uint32_t key_index(std::uint64_t key) {
  return 0xffffffffu - static_cast<std::uint32_t>(key);
}

// The digits of a key, most significant first.
constexpr std::int32_t kDigits = 6;
constexpr std::int32_t kDigitBins = 2048;
constexpr std::int32_t digit_shift(std::int32_t digit) {
  // 53, 42, 32 of the vote's bits, 21, 10, 0 of the index's; no table, which would cost device code
  // a stack.
  return digit == 0   ? 53
         : digit == 1 ? 42
         : digit == 2 ? 32
         : digit == 3 ? 21
         : digit == 4 ? 10
                      : 0;
}
constexpr std::uint32_t digit_of(std::uint64_t key, std::int32_t digit) {
  const std::int32_t bits = digit == 0 ? 11 : digit_shift(digit - 1) - digit_shift(digit);
  return static_cast<std::uint32_t>(key >> digit_shift(digit)) & ((1u << bits) - 1u);
}
// The bits of a key down to and including `digit`.
constexpr std::uint64_t digit_mask(std::int32_t digit) {
  return ~std::uint64_t{0} << digit_shift(digit);
}

// ---- bitmaps of rows

// Bits [first, first + count) of a bitmap, the first in bit 0; count <= 64. Reads no word beyond
// the last bit asked for.
constexpr std::uint64_t bits_at(const std::uint32_t* bitmap, std::int32_t first,
                                std::int32_t count) {
  std::uint64_t bits = 0;
  for (std::int32_t word = first / 32; count > 0 && word <= (first + count - 1) / 32; ++word) {
    const std::int32_t shift = word * 32 - first;
    const std::uint64_t value = bitmap[word];
    if (shift >= 64) break;
    bits |= shift >= 0 ? value << shift : value >> -shift;
  }
  return count >= 64 ? bits : bits & ((std::uint64_t{1} << count) - 1);
}

}  // namespace icefield::gpu
