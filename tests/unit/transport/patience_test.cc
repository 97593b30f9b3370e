#include "transport/ucx/patience.h"

#include <gtest/gtest.h>

namespace icefield::ucx {
namespace {

TEST(Patience, LooksWhereSleepsAreShortAndOnlyThere) {
  Patience patience;
  const Patience::TimePoint now{};
  patience.arrived(now);
  EXPECT_FALSE(patience.look(now)) << "nothing is known yet";
  patience.slept(Patience::kLook / 2);
  patience.arrived(now);
  EXPECT_TRUE(patience.look(now + Patience::kLook / 2));
  EXPECT_FALSE(patience.look(now + Patience::kLook)) << "no longer than that";
  patience.slept(10 * Patience::kLook);
  patience.arrived(now);
  EXPECT_FALSE(patience.look(now)) << "sleeps are long";
}

TEST(Patience, LookingInVainBecomesRare) {
  Patience patience;
  Patience::TimePoint now{};
  int looks = 0;
  for (int i = 0; i < 10'000; ++i) {
    patience.slept(Patience::kLook / 2);
    patience.arrived(now);
    if (!patience.look(now)) continue;
    ++looks;
    now += Patience::kLook;
    EXPECT_FALSE(patience.look(now));
  }
  EXPECT_LT(looks, 25);
  EXPECT_GT(looks, 5) << "it is tried again";
}

// A day without the peer is 86 400 failures.
TEST(PauseToConnect, GrowsToASecondAndStaysThere) {
  EXPECT_EQ(pause_to_connect(1).count(), 20);
  EXPECT_EQ(pause_to_connect(2).count(), 40);
  EXPECT_EQ(pause_to_connect(6).count(), 640);
  for (int failures = 7; failures < 100'000; ++failures) {
    ASSERT_EQ(pause_to_connect(failures).count(), 1000) << failures;
  }
}

}  // namespace
}  // namespace icefield::ucx
