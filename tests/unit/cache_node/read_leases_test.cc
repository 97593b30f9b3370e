// Leases of one-sided reads (cache_node/read_leases.h): they end once, and never too soon.
#include "cache_node/read_leases.h"

#include <gtest/gtest.h>

namespace icefield {
namespace {

using namespace std::chrono_literals;

class ReadLeasesTest : public testing::Test {
 protected:
  std::uint64_t add(std::uint64_t connection, std::int64_t bytes = 10) {
    return leases_.add(connection, bytes, {thing_}, now_);
  }
  // Leases that hold something.
  long held() const { return thing_.use_count() - 1; }

  std::shared_ptr<const int> thing_ = std::make_shared<const int>(7);
  ReadLeases leases_{{.max_bytes = 100, .max_count = 8, .time_limit = 1000ms}};
  Clock::TimePoint now_{};
};

TEST_F(ReadLeasesTest, EndWhenTheirConnectionSaysSo) {
  const std::uint64_t a = add(1);
  const std::uint64_t b = add(1);
  const std::uint64_t c = add(2);
  EXPECT_NE(a, b);
  EXPECT_EQ(held(), 3);
  leases_.end(1, b);
  leases_.end(1, b);  // again
  EXPECT_EQ(held(), 2);
  leases_.end(1, c);  // another's
  leases_.end(1, 0);
  leases_.end(1, c + 1);
  leases_.end(1, UINT64_MAX);
  EXPECT_EQ(held(), 2);
  leases_.end(1, a);
  leases_.end(2, c);
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(leases_.bytes(), 0);
  EXPECT_EQ(leases_.count(), 0);
  leases_.end(1, a);  // long gone
  const std::uint64_t d = add(2);
  EXPECT_GT(d, c) << "a number is not used again";
  leases_.end(2, c);
  EXPECT_EQ(held(), 1);
}

TEST_F(ReadLeasesTest, EndWithTheirConnection) {
  add(1);
  add(2);
  add(1);
  leases_.end_all(1);
  EXPECT_EQ(held(), 1);
  leases_.end_all(3);
  EXPECT_EQ(held(), 1);
  leases_.end_all(2);
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(leases_.lapsed.value(), 0);
}

TEST_F(ReadLeasesTest, EndAtTheirTimeLimit) {
  add(1);
  now_ += 500ms;
  const std::uint64_t second = add(1);
  add(1);
  leases_.end(1, second);
  leases_.expire(now_ + 499ms);
  EXPECT_EQ(held(), 2);
  leases_.expire(now_ + 500ms);
  EXPECT_EQ(held(), 1);
  leases_.expire(now_ + 1000ms);
  EXPECT_EQ(held(), 0);
  EXPECT_EQ(leases_.lapsed.value(), 2) << "one of the three was ended";
  leases_.end(1, second);
  EXPECT_EQ(leases_.bytes(), 0);
}

TEST_F(ReadLeasesTest, NumbersMayBeginAnywhere) {
  ReadLeases leases({.max_bytes = 100, .first_number = UINT64_MAX - 1});
  std::vector<std::uint64_t> numbers;
  for (int i = 0; i < 4; ++i) numbers.push_back(leases.add(1, 1, {thing_}, now_));
  EXPECT_EQ(held(), 4);
  leases.end(1, UINT64_MAX - 2);
  EXPECT_EQ(held(), 4);
  for (const std::uint64_t number : {numbers[2], numbers[0], numbers[3], numbers[1]}) {
    leases.end(1, number);
  }
  EXPECT_EQ(held(), 0);
}

TEST_F(ReadLeasesTest, AreBounded) {
  EXPECT_TRUE(leases_.has_room(100));
  EXPECT_FALSE(leases_.has_room(101));
  const std::uint64_t first = add(1, 60);
  EXPECT_FALSE(leases_.has_room(41));
  EXPECT_TRUE(leases_.has_room(40));
  for (int i = 0; i < 80; ++i) {
    ASSERT_TRUE(leases_.has_room(1)) << "one that does not end is no burden to others";
    leases_.end(2, add(2, 1));
  }
  for (int i = 0; i < 7; ++i) add(2, 1);
  EXPECT_FALSE(leases_.has_room(1)) << "too many";
  leases_.end(1, first);
  EXPECT_TRUE(leases_.has_room(60));
  leases_.end_all(2);
  EXPECT_EQ(held(), 0);
}

}  // namespace
}  // namespace icefield
