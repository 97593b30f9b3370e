// Pages, slots and rows on their way to where attention finds them, on the GPU or its emulation.
#include "kernels/page_moves_cuda.h"

#include <gtest/gtest.h>

#include "bench/support/gpu_arena.h"
#include "common/rng.h"

namespace icefield {
namespace {

TEST(PageMovesCuda, PagesGoWhereTheyAreSentAndNowhereElse) {
  for (const std::int32_t page_bytes : {16, 256, 320, 512, 4096}) {
    constexpr std::int32_t kPlaces = 40, kPages = 23;
    SeededRng rng(4);
    std::vector<std::byte> pages(static_cast<std::size_t>(kPages * page_bytes));
    for (std::byte& b : pages) b = static_cast<std::byte>(rng.next());
    GpuArena arena;
    auto* pool = arena.make<std::byte>(kPlaces * page_bytes);
    std::vector<std::byte> expected = arena.get(pool, kPlaces * page_bytes);
    std::vector<std::byte*> places;
    for (std::int32_t i = 0; i < kPages; ++i) {
      const std::int64_t at = (i * 7 % kPlaces) * std::int64_t{page_bytes};
      places.push_back(pool + at);
      std::copy_n(pages.begin() + i * std::int64_t{page_bytes}, page_bytes, expected.begin() + at);
    }
    const Status status = page_scatter_cuda({.from = arena.put(pages),
                                             .pages = arena.put(places),
                                             .page_bytes = page_bytes,
                                             .page_count = kPages},
                                            arena.stream());
    ASSERT_TRUE(status.ok());
    EXPECT_TRUE(arena.get(pool, kPlaces * page_bytes) == expected) << page_bytes;
  }
  EXPECT_EQ(page_scatter_cuda({.page_bytes = 40, .page_count = 1}, nullptr).code(),
            Code::kInvalidArgument);
}

TEST(PageMovesCuda, SlotsAreSetAndOthersStay) {
  constexpr std::int32_t kSlots = 1000;
  GpuArena arena;
  auto* slots = arena.make<std::int32_t>(kSlots);  // -1 each
  std::vector<SlotUpdate> updates;
  std::vector<std::int32_t> expected(kSlots, -1);
  for (std::int32_t i = 0; i < kSlots; i += 3) {
    updates.push_back({.at = slots + i, .slot = 7 * i});
    expected[static_cast<std::size_t>(i)] = 7 * i;
  }
  const Status status = set_slots_cuda(
      {.updates = arena.put(updates), .count = static_cast<std::int32_t>(updates.size())},
      arena.stream());
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(arena.get(slots, kSlots), expected);
}

TEST(PageMovesCuda, EveryRowOfASpanIsNamed) {
  constexpr std::int32_t kWidth = 128, kGroups = 3;
  GpuArena arena;
  const auto* rows = arena.make<Bf16>(2000 * kWidth);
  std::vector<NameRowsGroup> groups;
  std::vector<std::vector<const Bf16*>> expected(kGroups);
  SeededRng rng(9);
  for (std::int32_t g = 0; g < kGroups; ++g) {
    std::vector<RowSpan> spans;
    std::int32_t first = 0;
    for (std::int32_t s = 0; s < 5 * g; ++s) {  // the first group has none
      const auto count = static_cast<std::int32_t>(1 + rng.below(RowSpan::kMaxRows));
      const Bf16* at = rows + static_cast<std::int64_t>(rng.below(1900)) * kWidth;
      spans.push_back({.rows = at, .count = count, .first = first});
      for (std::int32_t i = 0; i < count; ++i) {
        expected[static_cast<std::size_t>(g)].push_back(at + std::int64_t{i} * kWidth);
      }
      first += count;
    }
    groups.push_back({.span_count = static_cast<std::int32_t>(spans.size()),
                      .spans = arena.put(spans),
                      .rows = arena.make<const Bf16*>(first)});
  }
  ASSERT_TRUE(
      name_rows_cuda(
          {.shape = {.d_k = 64, .d_v = 64}, .group_count = kGroups, .groups = arena.put(groups)},
          arena.stream())
          .ok());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    EXPECT_EQ(arena.get(groups[g].rows, static_cast<std::int64_t>(expected[g].size())),
              expected[g]);
  }
}

}  // namespace
}  // namespace icefield
