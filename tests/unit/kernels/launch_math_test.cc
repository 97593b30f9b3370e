// The index arithmetic of the CUDA kernels against loops that say what is meant.
#include "kernels/launch_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <vector>

#include "common/rng.h"
#include "proto/part.h"

namespace icefield::gpu {
namespace {

TEST(LaunchMath, SharesCoverEverythingOnceAndDifferByOneAtMost) {
  SeededRng rng(1);
  for (int i = 0; i < 200; ++i) {
    const auto count = static_cast<std::int32_t>(rng.below(3000));
    const auto parts = static_cast<std::int32_t>(1 + rng.below(600));
    std::int32_t end = 0;
    for (std::int32_t part = 0; part < parts; ++part) {
      ASSERT_EQ(share_begin(count, part, parts), end);
      end = share_begin(count, part + 1, parts);
      const std::int32_t size = end - share_begin(count, part, parts);
      ASSERT_GE(size, count / parts);
      ASSERT_LE(size, count / parts + 1);
    }
    ASSERT_EQ(end, count);
  }
  EXPECT_EQ(share_begin(1 << 20, 1 << 19, 1 << 20), 1 << 19);  // no overflow
}

TEST(LaunchMath, RowSplitsFillTheProcessorsButNeverStarveAWarp) {
  for (const std::int32_t processors : {1, 108, 132}) {
    for (const std::int32_t groups : {1, 8, 64, 1000}) {
      for (const std::int32_t rows : {0, 1, 64, 256, 4096, 32768, 131072}) {
        const std::int32_t splits = row_splits(rows, groups, 1, processors);
        ASSERT_GE(splits, 1);
        if (splits > 1) {
          ASSERT_LE(splits, (rows + 63) / 64);                        // a tile for every warp
          ASSERT_LT((splits - 1) * groups, 2 * processors + groups);  // not far more than fit
        }
      }
    }
  }
  EXPECT_EQ(row_splits(32768, 1, 1, 132), 264);  // one row of queries, 32 K tokens: all at work
}

TEST(LaunchMath, RoundedLayoutHasAPlaceForEachWord) {
  for (const std::int32_t d : {64, 80, 96, 128, 256}) {
    for (const std::int32_t rows : {1, 7, 8, 9, 128}) {
      const RoundedLayout layout = rounded_layout(rows, d);
      ASSERT_GE(layout.padded, rows);
      std::set<std::int32_t> used;
      for (std::int32_t h = 0; h < layout.padded; ++h) {
        for (std::int32_t w = 0; w < d / 4; ++w) {
          used.insert(layout.mean_at(w, h));
          used.insert(layout.mean_at(w, h) + 1);
          used.insert(layout.codes_begin() + layout.code_at(w, h));
        }
        used.insert(layout.mean_step() + h);
        used.insert(layout.code_step() + h);
        used.insert(layout.code_sum() + h);
      }
      ASSERT_EQ(static_cast<std::int32_t>(used.size()), layout.ints());
      ASSERT_EQ(*used.rbegin(), layout.ints() - 1);
      // 16-byte loads of two (means) and four (codes) query rows.
      ASSERT_EQ(layout.mean_at(3, 4) % 4, 0);
      ASSERT_EQ((layout.codes_begin() + layout.code_at(3, 4)) % 4, 0);
    }
  }
}

TEST(LaunchMath, SixteenBitsAreTwoBytes) {
  for (std::int32_t q = -32639; q <= 32639; ++q) {
    ASSERT_EQ(256 * high_byte(q) + low_byte(q), q);
    ASSERT_TRUE(low_byte(q) >= -128 && low_byte(q) <= 127) << q;
    ASSERT_TRUE(high_byte(q) >= -128 && high_byte(q) <= 127) << q;
  }
}

TEST(LaunchMath, PackedDotsAreSumsOfProducts) {
  SeededRng rng(2);
  for (int i = 0; i < 1000; ++i) {
    std::int32_t a[4];
    std::int32_t b[4];
    std::int32_t sum = 0;
    for (int j = 0; j < 4; ++j) {
      a[j] = static_cast<std::int32_t>(rng.below(256)) - 128;
      b[j] = static_cast<std::int32_t>(rng.below(256)) - 128;
      sum += a[j] * b[j];
    }
    ASSERT_EQ(dot4_of(pack_bytes(a[0], a[1], a[2], a[3]), pack_bytes(b[0], b[1], b[2], b[3])), sum);
  }
}

TEST(LaunchMath, CodesAreWhereThePartHasThem) {
  SeededRng rng(3);
  for (const std::int32_t d : {64, 80, 96, 128, 256}) {
    const PartShape shape{.kv_head_count = 1, .d_k = d, .d_v = d, .row_count = 256};
    AlignedBytes part = make_codes_part(shape);
    const MutableCodesView codes = mutable_codes(part, 0);
    for (std::int32_t row = 0; row < 256; ++row) {
      for (std::int32_t dim = 0; dim < d; dim += 16) {
        codes.code_word(row, dim) = static_cast<std::uint32_t>(rng.next());
      }
    }
    for (std::int32_t row = 0; row < 256; row += 7) {
      std::vector<std::int32_t> q;
      std::int32_t expected = 0;
      std::int32_t query_sum = 0;
      for (std::int32_t j = 0; j < d; ++j) {
        q.push_back(static_cast<std::int32_t>(rng.below(255)) - 127);
        expected += q.back() * code_level(codes.code(row, j));
        query_sum += q.back();
      }
      std::int32_t sum = 0;
      for (std::int32_t g = 0; g < code_words(d); ++g) {
        const std::uint32_t word = codes.codes[code_word_at(row, 0, d) + g * kCodePanel];
        ASSERT_EQ(word, codes.codes[code_word_at(row, g, d)]);
        for (int k = 0; k < 4; ++k) {
          const std::int32_t* at = q.data() + 16 * g + 4 * k;
          sum += dot4_of(static_cast<std::int32_t>(four_codes(word, k)),
                         pack_bytes(at[0], at[1], at[2], at[3]));
        }
      }
      ASSERT_EQ(level_dot(sum, query_sum), expected) << d << " " << row;
    }
  }
}

TEST(LaunchMath, PanelsHaveTheWidthOfThePart) {
  LevelView level;
  for (level.stored_count = 1; level.stored_count < 200; ++level.stored_count) {
    for (std::int32_t panel = 0; panel < level.panel_count(); ++panel) {
      ASSERT_EQ(panel_width(level.stored_count, panel), level.panel_width(panel));
    }
  }
}

TEST(LaunchMath, TileChunksAreEveryChunkOnce) {
  for (const std::int32_t d : {64, 80, 96, 128, 256}) {
    const std::int32_t row_chunks = 4 * d / 16;
    std::set<std::pair<std::int32_t, std::int32_t>> seen;
    for (std::int32_t i = 0; i < kTileRows * row_chunks; ++i) {
      const TileChunk at = tile_chunk(i, row_chunks);
      ASSERT_TRUE(at.row < kTileRows && at.chunk < row_chunks);
      seen.insert({at.row, at.chunk});
    }
    ASSERT_EQ(static_cast<std::int32_t>(seen.size()), kTileRows * row_chunks);
    ASSERT_EQ(kTileRows * row_chunks % kWarp, 0);  // all lanes take part in every copy
  }
}

TEST(LaunchMath, AccumulatorsCoverATileOnce) {
  std::set<std::pair<std::int32_t, std::int32_t>> seen;
  for (std::int32_t lane = 0; lane < kWarp; ++lane) {
    for (std::int32_t block = 0; block < 2; ++block) {
      for (std::int32_t e = 0; e < 4; ++e) {
        seen.insert({accumulator_row(lane, e), accumulator_column(lane, block, e)});
      }
    }
  }
  EXPECT_EQ(seen.size(), 256u);
  EXPECT_EQ(*seen.rbegin(), (std::pair<std::int32_t, std::int32_t>{15, 15}));
}

// The steps of find_cut() in plain loops: from the top digit down, the bin in which the weights
// reach what is wanted.
std::uint64_t cut_by_digits(const std::vector<std::uint64_t>& keys,
                            const std::vector<std::uint32_t>& weights, std::int64_t wanted) {
  std::uint64_t prefix = 0;
  std::uint64_t mask = 0;
  for (std::int32_t digit = 0; digit < kDigits; ++digit) {
    std::vector<std::int64_t> bins(kDigitBins, 0);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if ((keys[i] & mask) == prefix) bins[digit_of(keys[i], digit)] += weights[i];
    }
    std::int32_t bin = kDigitBins - 1;
    for (; bin >= 0 && bins[static_cast<std::size_t>(bin)] < wanted; --bin) {
      wanted -= bins[static_cast<std::size_t>(bin)];
    }
    if (bin < 0) return 0;
    prefix |= static_cast<std::uint64_t>(bin) << digit_shift(digit);
    mask = digit_mask(digit);
  }
  return prefix;
}

TEST(LaunchMath, DigitsFindTheSameCutAsSorting) {
  SeededRng rng(4);
  for (int round = 0; round < 300; ++round) {
    const std::size_t count = 1 + rng.below(400);
    std::vector<std::uint64_t> keys;
    std::vector<std::uint32_t> weights;
    for (std::size_t i = 0; i < count; ++i) {
      // Few different votes in some rounds: ties go to the lower index.
      const float vote = round % 2 == 0 ? static_cast<float>(rng.below(4)) - 2
                                        : static_cast<float>(rng.next()) * 0x1p-64f * 1e-3f;
      keys.push_back(
          selection_key(std::bit_cast<std::uint32_t>(vote), static_cast<std::uint32_t>(i * 2500)));
      ASSERT_EQ(key_index(keys.back()), i * 2500);
      weights.push_back(static_cast<std::uint32_t>(1 + rng.below(48)));
    }
    const auto wanted = static_cast<std::int64_t>(1 + rng.below(count * 30));
    std::vector<std::size_t> order(count);
    for (std::size_t i = 0; i < count; ++i) order[i] = i;
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return keys[a] > keys[b]; });
    std::int64_t taken = 0;
    std::uint64_t last = 0;
    for (const std::size_t i : order) {
      if (taken >= wanted) break;
      taken += weights[i];
      last = keys[i];
    }
    ASSERT_EQ(cut_by_digits(keys, weights, wanted), taken >= wanted ? last : 0) << round;
  }
}

TEST(LaunchMath, KeysOrderAsVotesDoThenAgainstTheIndex) {
  const float votes[] = {-HUGE_VALF, -1e30f, -3, -1e-40f, 0, 1e-40f, 1e-20f, 2, 1e30f, HUGE_VALF};
  std::uint64_t before = 0;
  for (const float vote : votes) {
    const auto bits = std::bit_cast<std::uint32_t>(vote);
    const std::uint64_t key = selection_key(bits, 7);
    EXPECT_GT(key, before) << vote;
    EXPECT_GT(selection_key(bits, 6), key);
    before = key;
  }
}

TEST(LaunchMath, DigitsOfAKeyAreAllOfIt) {
  SeededRng rng(5);
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t key = rng.next();
    std::uint64_t back = 0;
    for (std::int32_t digit = 0; digit < kDigits; ++digit) {
      ASSERT_LT(digit_of(key, digit), static_cast<std::uint32_t>(kDigitBins));
      back |= static_cast<std::uint64_t>(digit_of(key, digit)) << digit_shift(digit);
      ASSERT_EQ(back & digit_mask(digit), key & digit_mask(digit));
    }
    ASSERT_EQ(back, key);
  }
}

TEST(LaunchMath, BitsOfARangeAreThoseOfTheBitmap) {
  SeededRng rng(6);
  std::vector<std::uint32_t> bitmap;
  for (int i = 0; i < 128; ++i) bitmap.push_back(static_cast<std::uint32_t>(rng.next()));
  for (int i = 0; i < 3000; ++i) {
    const auto count = static_cast<std::int32_t>(rng.below(65));
    const auto first =
        static_cast<std::int32_t>(rng.below(4096u - static_cast<std::uint64_t>(count) + 1));
    std::uint64_t expected = 0;
    for (std::int32_t b = 0; b < count; ++b) {
      const std::int32_t row = first + b;
      const std::uint64_t bit = bitmap[static_cast<std::size_t>(row / 32)] >> (row % 32) & 1;
      expected |= bit << b;
    }
    ASSERT_EQ(bits_at(bitmap.data(), first, count), expected) << first << " " << count;
  }
}

}  // namespace
}  // namespace icefield::gpu
