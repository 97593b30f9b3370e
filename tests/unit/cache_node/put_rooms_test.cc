// Rooms for one-sided puts (cache_node/put_rooms.h): a slot is written by one side at a time,
// nobody hoards, and nothing is lost.
#include "cache_node/put_rooms.h"

#include <gtest/gtest.h>

#include "common/task.h"
#include "transport/transport.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kSlot = 16 << 10;

class PutRoomsTest : public testing::Test {
 protected:
  std::uint64_t add(std::uint64_t connection, std::int64_t slots = 1) {
    DramTier::Reservation reserved = tier_->reserve_slots(slots).value();
    std::vector<ByteSpan> runs;
    reserved.append_runs(runs);
    const std::uint64_t number = rooms_.add(connection, std::move(reserved), now_);
    tickets_[number] = runs.front().data();
    return number;
  }
  bool make_room(std::uint64_t connection, std::int64_t slots) {
    return rooms_.make_room(connection, slots * kSlot, now_);
  }
  // As a client that is about to write.
  bool claim(std::uint64_t number) { return take_ticket(tickets_[number], number); }
  std::int64_t used() const { return tier_->usage().used_bytes / kSlot; }

  const std::unique_ptr<DramTier> tier_ = DramTier::open({.capacity_bytes = 128 * kSlot}).value();
  PutRooms rooms_{{.max_bytes = 8 * kSlot, .max_connection_bytes = 4 * kSlot, .max_count = 6}};
  std::map<std::uint64_t, std::byte*> tickets_;
  Clock::TimePoint now_ = Clock::TimePoint() + 1h;
};

TEST_F(PutRoomsTest, AreTakenOnceByTheirConnection) {
  const std::uint64_t a = add(1, 2);
  const std::uint64_t b = add(2);
  EXPECT_NE(a, b);
  EXPECT_EQ(rooms_.bytes(), 3 * kSlot);
  EXPECT_TRUE(claim(a));
  EXPECT_FALSE(claim(a));
  EXPECT_FALSE(rooms_.take(2, a).has_value()) << "another's";
  EXPECT_FALSE(rooms_.take(1, 0).has_value());
  EXPECT_FALSE(rooms_.take(1, UINT64_MAX).has_value());
  EXPECT_TRUE(rooms_.take(1, a).has_value());
  EXPECT_FALSE(rooms_.take(1, a).has_value());
  rooms_.end(1, b);
  EXPECT_EQ(used(), 1);
  rooms_.end(2, b);
  EXPECT_EQ(used(), 0);
  EXPECT_EQ(rooms_.bytes(), 0);
  EXPECT_EQ(rooms_.count(), 0);
  EXPECT_GT(add(1), b) << "a number is not used again";
}

TEST_F(PutRoomsTest, AreBounded) {
  EXPECT_TRUE(make_room(1, 3));
  EXPECT_TRUE(make_room(1, 4));
  EXPECT_FALSE(make_room(1, 5));
  add(1, 3);
  EXPECT_TRUE(make_room(1, 1));
  EXPECT_FALSE(make_room(1, 2)) << "nothing rather than less";
  add(2, 4);
  EXPECT_TRUE(make_room(3, 1));
  EXPECT_FALSE(make_room(3, 2));
  add(3, 1);
  EXPECT_FALSE(make_room(3, 1));
  rooms_.end_all(2, now_);
  add(3);
  add(3);
  add(3);
  add(4);
  EXPECT_FALSE(make_room(4, 1)) << "too many";
  rooms_.end_all(3, now_);
  EXPECT_TRUE(make_room(4, 1));
}

TEST_F(PutRoomsTest, NobodyIsGivenMore) {
  add(1, 4);
  DramTier::Reservation slots = tier_->reserve_slots(1).value();
  EXPECT_DEATH((void)rooms_.add(1, std::move(slots), now_), "within_bounds");
}

TEST_F(PutRoomsTest, IdleOnesGoToWhoWantsThem) {
  add(1, 4);
  const std::uint64_t held = add(2, 4);
  EXPECT_TRUE(claim(held));
  now_ += 999ms;
  EXPECT_FALSE(make_room(3, 1));
  now_ += 1ms;
  EXPECT_TRUE(make_room(3, 1));
  EXPECT_EQ(used(), 4) << "what is being written stays";
  EXPECT_EQ(rooms_.taken_back.value(), 1);
  EXPECT_TRUE(rooms_.take(2, held).has_value());
  EXPECT_EQ(used(), 0);
}

TEST_F(PutRoomsTest, NoMoreComesBackThanItTakes) {
  for (int i = 0; i < 2; ++i) {
    add(1, 2);
    add(2, 2);
  }
  now_ += 1s;
  EXPECT_FALSE(make_room(1, 5)) << "never, so nothing is taken back for it";
  EXPECT_EQ(used(), 8);
  EXPECT_TRUE(make_room(3, 1));
  EXPECT_EQ(used(), 6) << "the oldest";
  add(3, 2);
  EXPECT_TRUE(make_room(2, 2)) << "its own: others' would be no help";
  EXPECT_EQ(used(), 6);
  add(2, 2);
  EXPECT_FALSE(make_room(2, 4)) << "one of its own is not idle";
  EXPECT_TRUE(make_room(1, 2)) << "has its share still";
}

TEST_F(PutRoomsTest, IdleOnesComeBackAfterATime) {
  const std::uint64_t idle = add(1);
  const std::uint64_t held = add(1);
  EXPECT_TRUE(claim(held));
  now_ += 10s;
  const std::uint64_t fresh = add(1);
  rooms_.expire(now_);
  EXPECT_EQ(used(), 2);
  EXPECT_FALSE(claim(idle)) << "its client goes by message";
  EXPECT_FALSE(rooms_.take(1, idle).has_value());
  now_ += 1h;
  rooms_.expire(now_);
  EXPECT_EQ(used(), 1) << "a client that is frozen in the middle of a copy";
  EXPECT_FALSE(claim(fresh));
  rooms_.end(1, held);
  EXPECT_EQ(used(), 0);
  EXPECT_EQ(rooms_.bytes(), 0);
}

TEST_F(PutRoomsTest, EndWithTheirConnectionWhenNobodyWrites) {
  add(1);
  const std::uint64_t held = add(1);
  const std::uint64_t long_held = add(1);
  EXPECT_TRUE(claim(long_held));
  now_ += 10s;
  rooms_.expire(now_);
  EXPECT_EQ(used(), 1);
  rooms_.end(1, held);
  const std::uint64_t again = add(1);
  add(2);
  EXPECT_TRUE(claim(again));
  rooms_.end_all(1, now_);
  EXPECT_EQ(used(), 3) << "another's, and two that may be in the middle of a copy";
  EXPECT_FALSE(rooms_.take(1, again).has_value());
  EXPECT_TRUE(make_room(1, 4)) << "no burden to its next connection";
  now_ += 9s;
  rooms_.expire(now_);
  EXPECT_EQ(used(), 3);
  now_ += 1s;
  rooms_.expire(now_);
  EXPECT_EQ(used(), 0);
  EXPECT_EQ(rooms_.bytes(), 0);
  EXPECT_EQ(rooms_.count(), 0);
}

}  // namespace
}  // namespace icefield
