// Members that come and go while a client works: calls go by the list that they began with, later
// ones by the new list, values are where rendezvous hashing says, and nobody stays connected to who
// has gone.
#include "cluster_index/membership/membership.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/support/changing_membership.h"
#include "tests/support/holding_service.h"
#include "tests/support/meddling_transport.h"
#include "tests/support/objects.h"
#include "tests/support/value_cluster.h"

namespace icefield {
namespace {

constexpr int kValues = 400;

class MembershipTest : public testing::Test {
 protected:
  static std::vector<Member> of(std::initializer_list<std::size_t> nodes) {
    std::vector<Member> members;
    for (const std::size_t node : nodes) members.push_back({.name = ValueCluster::name(node)});
    return members;
  }
  static std::string key(int i) { return "value " + std::to_string(i); }
  static Bytes value(int i) { return Bytes(100, static_cast<std::byte>(i)); }
  Status put(int i) {
    const Bytes bytes = value(i);
    return cluster_.run(store_.put(key(i), bytes, {}, {})).status();
  }
  Result<Buffer> get(int i) { return cluster_.run(store_.get(key(i), Buffer(100), {})); }
  std::string owner(int i) { return nodes_.view()->owner(value_hash("", 0, key(i))).address(); }
  std::vector<std::string> owners() {
    std::vector<std::string> all;
    for (int i = 0; i < kValues; ++i) all.push_back(owner(i));
    return all;
  }

  ValueCluster cluster_{{}, 4};
  MeddlingTransport transport_{cluster_.transport()};
  ChangingMembership membership_{of({0, 1, 2})};
  Nodes nodes_{cluster_.clock(), transport_, membership_};
  SeededRng rng_{7};
  ValueStore store_{cluster_.clock(), rng_, nodes_, {.request_bytes = 1 << 20}};
};

TEST_F(MembershipTest, OnlyTheMovedShareIsMissedAndTheRestIsFoundAtItsOwners) {
  for (int i = 0; i < kValues; ++i) ASSERT_TRUE(put(i).ok());
  const std::vector<std::string> before = owners();

  membership_.set(of({0, 1, 2, 3}));
  const std::vector<std::string> joined = owners();
  int moved = 0;
  for (int i = 0; i < kValues; ++i) {
    const std::size_t at = static_cast<std::size_t>(i);
    const Result<Buffer> got = get(i);
    if (joined[at] == before[at]) {
      ASSERT_TRUE(got.has_value()) << got.error().to_string();
      EXPECT_TRUE(std::ranges::equal(got->bytes(), value(i)));
    } else {
      ++moved;
      EXPECT_EQ(joined[at], ValueCluster::name(3)) << "to nobody else";
      EXPECT_EQ(got.error().reason(), MissReason::kNeverStored);
      ASSERT_TRUE(put(i).ok());
    }
  }
  EXPECT_NEAR(moved, kValues / 4, kValues / 12);

  membership_.set(of({0, 2, 3}));  // 1 leaves, with what it owned
  for (int i = 0; i < kValues; ++i) {
    const bool gone = joined[static_cast<std::size_t>(i)] == ValueCluster::name(1);
    EXPECT_EQ(get(i).has_value(), !gone) << i;
  }
}

TEST_F(MembershipTest, WeightsCountFromTheNextCallOn) {
  membership_.set(
      {{.name = ValueCluster::name(0), .weight = 3}, {.name = ValueCluster::name(1), .weight = 1}});
  const std::vector<std::string> all = owners();
  EXPECT_NEAR(static_cast<double>(std::ranges::count(all, ValueCluster::name(0))), 0.75 * kValues,
              0.1 * kValues);
}

TEST_F(MembershipTest, ACallEndsWithTheMembersItBeganWithAndThenTheyAreLetGoOf) {
  HoldingService holding(cluster_.node(0).service());
  const Address old = "old";
  ASSERT_TRUE(cluster_.run(cluster_.transport().listen(old, cluster_.io().get_executor(), holding))
                  .has_value());
  membership_.set({{.name = old}});
  const Bytes bytes = random_bytes(rng_, 3 << 20);  // in requests of 1 MB
  holding.freeze();
  const auto change_meanwhile = [&]() -> Task<PutOutcome> {
    const auto executor = co_await asio::this_coro::executor;
    asio::post(executor, [&] {
      membership_.set(of({1}));
      EXPECT_EQ(std::ranges::count(transport_.disconnected(), old), 0) << "it is being asked";
      holding.thaw();
    });
    co_return co_await store_.put("large", bytes, {}, {});
  };
  EXPECT_EQ(cluster_.run(change_meanwhile()).value(), PutOutcome::kStored);
  EXPECT_EQ(holding.asked, 3) << "all of it, though it is no member any more";
  EXPECT_EQ(std::ranges::count(transport_.disconnected(), old), 1);
  EXPECT_EQ(cluster_.run(store_.get("large", Buffer(3 << 20), {})).error().reason(),
            MissReason::kNeverStored)
      << "the new owner has nothing";
  EXPECT_EQ(holding.asked, 3);
  EXPECT_TRUE(cluster_.run(cluster_.transport().stop(old)).ok());
}

TEST_F(MembershipTest, WhatIsKnownOfANodeStaysWithIt) {
  const auto held = nodes_.view();  // as a call would
  ClusterNode& node = held->node(1);
  for (int i = 0; i < 3; ++i) node.report(Status(Code::kUnavailable, "down"));
  membership_.set(of({1, 3}));
  EXPECT_EQ(&nodes_.view()->node(0), &node);
  EXPECT_EQ(nodes_.view()->node(0).state(), CircuitBreaker::State::kOpen);
  membership_.set(of({3}));
  membership_.set(of({1}));
  EXPECT_EQ(&nodes_.view()->node(0), &node) << "somebody holds it still";
  EXPECT_EQ(held->size(), 3u) << "a view does not change";
  EXPECT_FALSE(std::ranges::count(transport_.disconnected(), node.address()));
}

TEST_F(MembershipTest, NobodyIsWatchedByWhoHasGone) {
  EXPECT_EQ(membership_.watcher_count(), 1u);
  { const Nodes others(cluster_.clock(), transport_, membership_); }
  EXPECT_EQ(membership_.watcher_count(), 1u);
  membership_.set(of({0}));
}

// A thread sanitizer would see what it shares with calls.
TEST_F(MembershipTest, ChangesWhileCallsRunGiveRightBytesOrMisses) {
  for (int i = 0; i < kValues; ++i) ASSERT_TRUE(put(i).ok());
  std::atomic<bool> stop{false};  // ends the loop; orders nothing else
  std::thread changing([&] {
    while (!stop) {
      for (const auto& members : {of({0, 1, 2, 3}), of({1, 2}), of({0, 1, 2})}) {
        membership_.set(members);
        std::this_thread::yield();
      }
    }
  });
  int found = 0;
  int missed = 0;
  for (int i = 0; i < 10 * kValues || ((found == 0 || missed == 0) && i < 1000 * kValues); ++i) {
    const Result<Buffer> got = get(i % kValues);
    if (got.has_value()) {
      ++found;
      ASSERT_TRUE(std::ranges::equal(got->bytes(), value(i % kValues)));
    } else {
      ++missed;
      ASSERT_EQ(got.error().reason(), MissReason::kNeverStored) << got.error().to_string();
    }
  }
  stop = true;
  changing.join();
  EXPECT_GT(found, 0);
  EXPECT_GT(missed, 0);
  membership_.set(of({0, 1, 2}));
  for (int i = 0; i < kValues; ++i) EXPECT_TRUE(get(i).has_value()) << "at home again";
}

}  // namespace
}  // namespace icefield
