#include "storage/id_table.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <map>

#include "common/rng.h"

namespace icefield {
namespace {

// Few hashes, so that many ids share one, and many, so that parts grow.
TEST(IdTable, AgreesWithAMapOnRandomChanges) {
  for (const std::uint64_t hash_count : {3u, 200u, 1000000u}) {
    IdTable table;
    std::map<IdTable::Id, std::uint64_t> model;  // hash by id
    SeededRng rng(hash_count);
    for (int step = 0; step < 30000; ++step) {
      const auto id = static_cast<IdTable::Id>(rng.below(2000));
      const auto known = model.find(id);
      if (known == model.end()) {
        const std::uint64_t hash = rng.below(hash_count) << 40;
        table.insert(hash, id);
        model.emplace(id, hash);
      } else if (rng.below(2) == 0) {
        table.erase(known->second, id);
        model.erase(known);
      }
      ASSERT_EQ(table.count(), model.size());
      const auto asked = static_cast<IdTable::Id>(rng.below(2000));
      const auto there = model.find(asked);
      const std::uint64_t hash = there == model.end() ? rng.below(hash_count) : there->second;
      const auto found = table.find(hash, [&](IdTable::Id other) { return other == asked; });
      ASSERT_EQ(found.has_value(), there != model.end());
    }
    std::map<IdTable::Id, int> visited;
    table.for_each([&](IdTable::Id id) { ++visited[id]; });
    ASSERT_EQ(visited.size(), model.size());
    for (const auto& [id, times] : visited) ASSERT_EQ(times, 1);
  }
}

TEST(IdTable, AnEntryTakesTenToThirteenBytesAtAnyCount) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator is in the place of the one that is asked";
#endif
  const auto allocated = [] { return mallinfo2().uordblks + mallinfo2().hblkhd; };
  const std::size_t before = allocated();
  IdTable table;
  SeededRng rng(1);
  for (IdTable::Id id = 0; id < 300000; ++id) {
    table.insert(rng.next(), id);
    if (id < 50000 || id % 1000 != 0) continue;
    const double each = static_cast<double>(allocated() - before) / (id + 1);
    ASSERT_GT(each, 9.9) << "of " << id;
    ASSERT_LT(each, 13) << "of " << id;
  }
}

}  // namespace
}  // namespace icefield
