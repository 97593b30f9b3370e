// Placement: weights are shares, order does not matter, and a member that leaves moves only what it
// owned.
#include "cluster_index/membership/placement.h"

#include <gtest/gtest.h>

#include "tests/support/objects.h"

namespace icefield {
namespace {

std::vector<Member> members(std::initializer_list<Member> list) { return list; }

TEST(Placement, MembersOwnSharesByTheirWeight) {
  const Placement placement(members({{"a:1", 1}, {"b:1", 2}, {"c:1", 5}}));
  std::vector<double> owned(3);
  SeededRng rng(1);
  constexpr int kKeys = 40'000;
  for (int i = 0; i < kKeys; ++i) ++owned[placement.owner(random_hash(rng))];
  EXPECT_NEAR(owned[0] / kKeys, 1.0 / 8, 0.01);
  EXPECT_NEAR(owned[1] / kKeys, 2.0 / 8, 0.01);
  EXPECT_NEAR(owned[2] / kKeys, 5.0 / 8, 0.01);
}

TEST(Placement, RemovingAMemberMovesOnlyWhatItOwned) {
  const Placement before(members({{"a:1", 1}, {"b:1", 3}, {"c:1", 1}, {"d:1", 1}}));
  const Placement after(members({{"a:1", 1}, {"c:1", 1}, {"d:1", 1}}));
  SeededRng rng(2);
  int moved = 0;
  for (int i = 0; i < 5'000; ++i) {
    const Hash128 key = random_hash(rng);
    const std::string& was = before.members()[before.owner(key)].name;
    const std::string& is = after.members()[after.owner(key)].name;
    if (was == "b:1") {
      ++moved;
      EXPECT_EQ(is, before.members()[before.ranked(key, 2)[1]].name) << "the next in rank takes it";
    } else {
      EXPECT_EQ(is, was);
    }
  }
  EXPECT_GT(moved, 2'000);
}

TEST(Placement, TheOrderOfMembersDoesNotMatter) {
  const Placement one(members({{"a:1", 2}, {"b:1", 1}, {"c:1", 1}}));
  const Placement other(members({{"c:1", 1}, {"a:1", 2}, {"b:1", 1}}));
  SeededRng rng(3);
  for (int i = 0; i < 1'000; ++i) {
    const Hash128 key = random_hash(rng);
    const auto ranks = one.ranked(key, 3);
    const auto other_ranks = other.ranked(key, 3);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(one.members()[ranks[rank]].name, other.members()[other_ranks[rank]].name);
    }
    EXPECT_EQ(one.owner(key), ranks[0]);
  }
  EXPECT_EQ(one.ranked(Hash128(), 9).size(), 3u);
}

TEST(Members, AreParsedOrRefusedInWords) {
  const auto parsed = parse_members("a:1,b:2*3").value();
  EXPECT_EQ(parsed, members({{"a:1", 1}, {"b:2", 3}}));
  for (const char* bad : {"", "a:1,", ",a:1", "a:1*", "a:1*0", "a:1*65", "a:1*x", "a:1,a:1"}) {
    const auto refused = parse_members(bad);
    ASSERT_FALSE(refused.has_value()) << bad;
    EXPECT_EQ(refused.error().code(), Code::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace icefield
