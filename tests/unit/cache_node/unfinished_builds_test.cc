#include "cache_node/unfinished_builds.h"

#include <gtest/gtest.h>

namespace icefield {
namespace {

using namespace std::chrono_literals;

class UnfinishedBuildsTest : public testing::Test {
 protected:
  static BuildKey key(int number) {
    BuildKey key;
    key.build.bytes[0] = static_cast<std::byte>(number);
    return key;
  }
  static PartId part(int layer) {
    return {.kind = PartKind::kExtent, .layer = static_cast<std::uint16_t>(layer)};
  }
  void begin(int number, const char* name_space = "ours", int parts = 1) {
    builds_.begin(key(number), {.name_space = namespace_id(name_space)}, now_);
    for (int i = 0; i < parts; ++i) builds_.add(key(number), part(i));
  }
  // Removes what was given up; how many objects that were.
  int clear() {
    int count = 0;
    while (const auto object = builds_.take_given_up()) {
      EXPECT_TRUE(builds_.leaving({object->segment, object->build}));
      builds_.removed(*object);
      ++count;
    }
    return count;
  }

  Clock::TimePoint now_{1h};
  UnfinishedBuilds builds_{{.max_count = 3, .idle_limit = 10min}};
};

TEST_F(UnfinishedBuildsTest, BelongToWhoBeganThemUntilTheyEnd) {
  EXPECT_EQ(builds_.find(key(1)), nullptr);
  begin(1, "ours");
  begin(1, "theirs");
  EXPECT_EQ(builds_.find(key(1))->name_space, namespace_id("ours"));
  builds_.end(key(1));
  EXPECT_EQ(builds_.find(key(1)), nullptr);
  EXPECT_EQ(clear(), 0) << "what was committed stays";
}

TEST_F(UnfinishedBuildsTest, AreForgottenWithTheirLastPart) {
  begin(1, "ours", 2);
  builds_.remove(key(1), part(0), now_);
  EXPECT_NE(builds_.find(key(1)), nullptr);
  builds_.remove(key(1), part(1), now_);
  EXPECT_EQ(builds_.find(key(1)), nullptr);
  builds_.remove(key(1), part(1), now_);
  EXPECT_EQ(clear(), 0);
}

TEST_F(UnfinishedBuildsTest, AreGivenUpWhenTheyIdle) {
  begin(1, "ours", 2);
  now_ += 6min;
  begin(2);
  builds_.expire(now_ + 10min - 1ns);
  EXPECT_EQ(builds_.count(), 1u);
  EXPECT_FALSE(builds_.leaving(key(2)));
  builds_.expire(now_ + 10min);
  EXPECT_EQ(builds_.count(), 0u);
  EXPECT_TRUE(builds_.leaving(key(1)));
  EXPECT_EQ(clear(), 3);
  EXPECT_FALSE(builds_.leaving(key(1)));
  EXPECT_FALSE(builds_.leaving(key(2)));
}

TEST_F(UnfinishedBuildsTest, AreBoundedInNumber) {
  for (int i = 1; i <= 3; ++i) begin(i);
  begin(1);  // the second was left alone longest
  begin(4);
  EXPECT_EQ(builds_.count(), 3u);
  EXPECT_EQ(builds_.find(key(2)), nullptr);
  EXPECT_NE(builds_.find(key(1)), nullptr);
  EXPECT_TRUE(builds_.leaving(key(2)));
}

TEST_F(UnfinishedBuildsTest, LeaveUntilTheirLastPartIsRemoved) {
  begin(1, "ours", 2);
  builds_.give_up(key(1));
  const ObjectKey first = builds_.take_given_up().value();
  builds_.not_removed(first);
  EXPECT_EQ(builds_.take_given_up(), first) << "once more";
  builds_.removed(first);
  EXPECT_TRUE(builds_.leaving(key(1)));
  EXPECT_EQ(clear(), 1);
  EXPECT_FALSE(builds_.leaving(key(1)));
}

}  // namespace
}  // namespace icefield
