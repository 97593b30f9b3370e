// The policies against models written from the paper with plain lists, and the rules around them.
#include "storage/eviction_policy.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <list>
#include <map>

#include "common/rng.h"

namespace icefield {
namespace {

using Names = std::list<std::uint64_t>;

bool take(Names& names, std::uint64_t name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return false;
  names.erase(found);
  return true;
}

// A cache of unit objects that says whether each access hit.
class Model {
 public:
  virtual ~Model() = default;
  virtual bool access(std::uint64_t name) = 0;
};

class LruModel final : public Model {
 public:
  explicit LruModel(std::size_t capacity) : capacity_(capacity) {}
  bool access(std::uint64_t name) override {
    const bool hit = take(names_, name);
    if (!hit && names_.size() == capacity_) names_.pop_front();
    names_.push_back(name);
    return hit;
  }

 private:
  const std::size_t capacity_;
  Names names_;
};

// Figure 4 of Megiddo & Modha, case by case, with integer steps.
class ArcModel final : public Model {
 public:
  explicit ArcModel(std::size_t capacity) : c_(capacity) {}
  bool access(std::uint64_t name) override {
    if (take(t1_, name) || take(t2_, name)) {
      t2_.push_back(name);
      return true;
    }
    if (std::count(b1_.begin(), b1_.end(), name) > 0) {
      p_ = std::min(c_, p_ + std::max<std::size_t>(b2_.size() / b1_.size(), 1));
      replace(false);
      take(b1_, name);
      t2_.push_back(name);
      return false;
    }
    if (std::count(b2_.begin(), b2_.end(), name) > 0) {
      const std::size_t step = std::max<std::size_t>(b1_.size() / b2_.size(), 1);
      p_ = p_ > step ? p_ - step : 0;
      replace(true);
      take(b2_, name);
      t2_.push_back(name);
      return false;
    }
    if (t1_.size() + b1_.size() == c_) {
      if (t1_.size() < c_) {
        b1_.pop_front();
        replace(false);
      } else {
        t1_.pop_front();
      }
    } else if (t1_.size() + t2_.size() + b1_.size() + b2_.size() >= c_) {
      if (t1_.size() + t2_.size() + b1_.size() + b2_.size() == 2 * c_) b2_.pop_front();
      replace(false);
    }
    t1_.push_back(name);
    return false;
  }

 private:
  void replace(bool in_b2) {
    const bool first = !t1_.empty() && (t1_.size() > p_ || (in_b2 && t1_.size() == p_));
    Names& from = first ? t1_ : t2_;
    Names& to = first ? b1_ : b2_;
    to.push_back(from.front());
    from.pop_front();
  }

  const std::size_t c_;
  std::size_t p_ = 0;
  Names t1_, t2_, b1_, b2_;
};

// The same over a policy: what a tier does, without bytes.
class PolicyCache {
 public:
  PolicyCache(EvictionKind kind, std::int64_t capacity)
      : policy_(make_eviction_policy(kind, capacity)), free_(capacity) {}

  bool access(std::uint64_t name, std::uint32_t weight = 1) {
    const auto found = ids_.find(name);
    if (found != ids_.end()) {
      policy_->touch(found->second);
      return true;
    }
    const EvictionPolicy::Object object{.name = name, .weight = weight};
    policy_->expect(object);
    while (free_ < weight) {
      const auto id = policy_->evict();
      if (!id.has_value()) return false;
      leave(*id);
    }
    const EvictionPolicy::Id id = spare_.empty() ? next_++ : spare_.back();
    if (!spare_.empty()) spare_.pop_back();
    free_ -= weight;
    ids_[name] = id;
    names_[id] = object;
    policy_->insert(id, object);
    return false;
  }
  void erase(std::uint64_t name) {
    const EvictionPolicy::Id id = ids_.at(name);
    policy_->erase(id);
    leave(id);
  }
  bool holds(std::uint64_t name) const { return ids_.contains(name); }
  EvictionPolicy::Id id_of(std::uint64_t name) const { return ids_.at(name); }
  EvictionPolicy& policy() { return *policy_; }
  std::int64_t free() const { return free_; }
  std::size_t count() const { return ids_.size(); }

 private:
  void leave(EvictionPolicy::Id id) {
    free_ += names_.at(id).weight;
    ids_.erase(names_.at(id).name);
    names_.erase(id);
    spare_.push_back(id);
  }

  std::unique_ptr<EvictionPolicy> policy_;
  std::int64_t free_;
  std::map<std::uint64_t, EvictionPolicy::Id> ids_;
  std::map<EvictionPolicy::Id, EvictionPolicy::Object> names_;
  std::vector<EvictionPolicy::Id> spare_;
  EvictionPolicy::Id next_ = 0;
};

// A mix that moves ARC's target both ways: a popular core, scans, and a slowly moving window.
std::uint64_t next_name(Rng& rng, std::uint64_t step) {
  switch (rng.below(4)) {
    case 0: return rng.below(20);
    case 1: return 100000 + step;
    case 2: return 1000 + step / 50 + rng.below(60);
    default: return 100 + std::min({rng.below(200), rng.below(200), rng.below(200)});
  }
}

class AgainstModel : public testing::TestWithParam<EvictionKind> {
 protected:
  static std::unique_ptr<Model> model(std::size_t capacity) {
    if (GetParam() == EvictionKind::kLru) return std::make_unique<LruModel>(capacity);
    return std::make_unique<ArcModel>(capacity);
  }
};

TEST_P(AgainstModel, UnitObjectsHitExactlyWhenTheModelHits) {
  for (const std::size_t capacity : {1u, 2u, 3u, 10u, 64u, 150u}) {
    const std::unique_ptr<Model> expected = model(capacity);
    PolicyCache cache(GetParam(), static_cast<std::int64_t>(capacity));
    SeededRng rng(capacity);
    int hits = 0;
    for (std::uint64_t step = 0; step < 20000; ++step) {
      const std::uint64_t name = next_name(rng, step);
      const bool hit = cache.access(name);
      ASSERT_EQ(hit, expected->access(name)) << "capacity " << capacity << " step " << step;
      hits += hit;
    }
    EXPECT_GT(hits, 10);
  }
}

TEST_P(AgainstModel, UnlikeObjectsNeverTakeMoreThanThereIs) {
  PolicyCache cache(GetParam(), 200);
  SeededRng rng(7);
  for (std::uint64_t step = 0; step < 20000; ++step) {
    const std::uint64_t name = next_name(rng, step);
    const auto weight = static_cast<std::uint32_t>(1 + name * 7 % 40);
    cache.access(name, weight);
    ASSERT_TRUE(cache.holds(name));
    if (step % 7 == 0) cache.erase(name);
    ASSERT_GE(cache.free(), 0);
  }
  EXPECT_GT(cache.count(), 3u);
}

TEST_P(AgainstModel, WhatIsInUseStaysAndIsNextOnceItIsNot) {
  PolicyCache cache(GetParam(), 3);
  for (const std::uint64_t name : {1u, 2u, 3u}) cache.access(name);
  cache.policy().set_evictable(cache.id_of(1), false);
  cache.access(4);
  EXPECT_TRUE(cache.holds(1));
  EXPECT_FALSE(cache.holds(2));
  cache.policy().set_evictable(cache.id_of(1), true);
  cache.access(5);
  EXPECT_FALSE(cache.holds(1));
  EXPECT_TRUE(cache.holds(3));
}

TEST_P(AgainstModel, NothingIsEvictedWhenEverythingIsInUse) {
  PolicyCache cache(GetParam(), 2);
  for (const std::uint64_t name : {1u, 2u}) {
    cache.access(name);
    cache.policy().set_evictable(cache.id_of(name), false);
  }
  EXPECT_EQ(cache.policy().evict(), std::nullopt);
  cache.access(3);
  EXPECT_FALSE(cache.holds(3));
  // Erasing one that was passed over leaves no trace of it.
  cache.erase(1);
  cache.access(3);
  EXPECT_TRUE(cache.holds(3));
}

INSTANTIATE_TEST_SUITE_P(Policies, AgainstModel,
                         testing::Values(EvictionKind::kLru, EvictionKind::kArc),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST(Arc, AScanDoesNotFlushWhatIsUsedAgain) {
  PolicyCache lru(EvictionKind::kLru, 100);
  PolicyCache arc(EvictionKind::kArc, 100);
  for (PolicyCache* cache : {&lru, &arc}) {
    for (int round = 0; round < 2; ++round) {
      for (std::uint64_t name = 0; name < 50; ++name) cache->access(name);
    }
    for (std::uint64_t name = 1000; name < 2000; ++name) cache->access(name);
  }
  for (std::uint64_t name = 0; name < 50; ++name) {
    EXPECT_FALSE(lru.holds(name));
    EXPECT_TRUE(arc.holds(name));
  }
}

// Small objects pass by large ones that stay: by weight alone each would leave a ghost.
TEST(Arc, ThereAreNeverMoreGhostsThanThereWereObjects) {
  PolicyCache cache(EvictionKind::kArc, 1000);
  std::size_t most = 0;
  for (std::uint64_t step = 0; step < 5000; ++step) {
    for (std::uint64_t large = 0; large < 9; ++large) cache.access(large, 100);
    for (int twice = 0; twice < 2; ++twice) cache.access(1000 + step);
    most = std::max(most, cache.count());
  }
  std::size_t remembered = 0;
  for (std::uint64_t step = 0; step < 5000; ++step) {
    remembered += cache.policy().remembers(1000 + step);
  }
  EXPECT_EQ(remembered, most);
  EXPECT_LT(most, 120u);
}

// 16 bytes an object, and 26 to 29 for the ghost that each one comes to have.
TEST(Arc, AnObjectAndItsGhostTakeAtMost45Bytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator is in the place of the one that is asked";
#endif
  constexpr EvictionPolicy::Id kObjects = 100000;
  const auto allocated = [] { return mallinfo2().uordblks + mallinfo2().hblkhd; };
  const std::size_t before = allocated();
  const auto policy = make_eviction_policy(EvictionKind::kArc, kObjects);
  SeededRng rng(1);
  for (EvictionPolicy::Id id = 0; id < kObjects; ++id) policy->insert(id, {.name = rng.next()});
  for (EvictionPolicy::Id step = 0; step < 3 * kObjects; ++step) {
    const EvictionPolicy::Object object{.name = rng.next()};
    policy->expect(object);
    const EvictionPolicy::Id id = policy->evict().value();
    policy->insert(id, object);
    if (step % 2 == 0) policy->touch(id);
  }
  const double each = static_cast<double>(allocated() - before) / kObjects;
  std::printf("%.1f bytes an object\n", each);
  EXPECT_LT(each, 45);
  EXPECT_GT(each, 40) << "the measurement misses something";
}

TEST(Arc, RemembersWhatItEvictedAndForgetsWhatWasErased) {
  PolicyCache cache(EvictionKind::kArc, 2);
  for (const std::uint64_t name : {1u, 1u, 2u, 3u}) cache.access(name);
  EXPECT_TRUE(cache.policy().remembers(2));
  cache.erase(3);
  EXPECT_FALSE(cache.policy().remembers(3));
}

TEST(EvictionKindNames, AreParsed) {
  EXPECT_EQ(parse_eviction_kind("arc").value(), EvictionKind::kArc);
  EXPECT_EQ(parse_eviction_kind("lru").value(), EvictionKind::kLru);
  EXPECT_EQ(parse_eviction_kind("fifo").error().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace icefield
