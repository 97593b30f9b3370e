// Who leaves a tier next: expiry, pins and use around a policy.
#include "storage/evictor.h"

#include <gtest/gtest.h>

#include <map>

#include "common/rng.h"

namespace icefield {
namespace {

class EvictorTest : public testing::Test {
 protected:
  void insert(Evictor::Id id, Retention retention = {}) {
    evictor_.insert(id, {.name = 100 + id, .weight = 1}, retention);
  }
  Evictor evictor_{make_eviction_policy(EvictionKind::kLru, 8)};
};

TEST_F(EvictorTest, WhatHasExpiredGoesFirstTheOldestDateFirst) {
  insert(0);
  insert(1, {.expires_at_ms = 20});
  insert(2, {.expires_at_ms = 10});
  EXPECT_EQ(evictor_.evict_expired(9), std::nullopt);
  EXPECT_EQ(evictor_.evict(25), 2u);
  EXPECT_EQ(evictor_.evict(25), 1u);
  EXPECT_EQ(evictor_.evict(25), 0u);
  EXPECT_EQ(evictor_.evict(25), std::nullopt);
}

TEST_F(EvictorTest, PinsEndAtTheirTimeAndHardOnesWhenTheyAreTaken) {
  insert(0, {.pinned_until_ms = Retention::kForever});
  insert(1, {.pinned_until_ms = 50});
  EXPECT_EQ(evictor_.evict(49), std::nullopt);
  EXPECT_EQ(evictor_.evict(50), 1u);
  EXPECT_EQ(evictor_.evict(1000000), std::nullopt);
  evictor_.retain(0, {});
  EXPECT_EQ(evictor_.evict(50), 0u);
}

TEST_F(EvictorTest, APinDoesNotOutliveTheExpiry) {
  insert(0, {.expires_at_ms = 10, .pinned_until_ms = Retention::kForever});
  EXPECT_EQ(evictor_.evict(9), std::nullopt);
  EXPECT_EQ(evictor_.evict(10), 0u);
}

TEST_F(EvictorTest, WhatExpiredInUseGoesFirstOnceItIsNot) {
  insert(0);
  insert(1, {.expires_at_ms = 10});
  evictor_.begin_use(1);
  evictor_.begin_use(1);
  EXPECT_EQ(evictor_.evict_expired(20), std::nullopt);
  evictor_.end_use(1);
  EXPECT_EQ(evictor_.evict_expired(20), std::nullopt);
  evictor_.end_use(1);
  EXPECT_EQ(evictor_.evict(20), 1u);
}

TEST(TimeQueue, AgreesWithASortedMapOnRandomChanges) {
  TimeQueue queue;
  std::map<TimeQueue::Id, std::int64_t> model;
  SeededRng rng(3);
  for (int step = 0; step < 20000; ++step) {
    const auto id = static_cast<TimeQueue::Id>(rng.below(300));
    if (rng.below(3) == 0) {
      queue.erase(id);
      model.erase(id);
    } else {
      const auto when = static_cast<std::int64_t>(rng.below(1000));
      queue.set(id, when);
      model[id] = when;
    }
    ASSERT_EQ(queue.empty(), model.empty());
    if (model.empty()) continue;
    std::int64_t first = INT64_MAX;
    for (const auto& [other, when] : model) first = std::min(first, when);
    ASSERT_EQ(queue.front().when, first);
    ASSERT_EQ(model.at(queue.front().id), first);
  }
}

}  // namespace
}  // namespace icefield
