// Writing into a peer's memory (transport/placing.h): a writer that was held up stops.
#include "transport/placing.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/manual_clock.h"
#include "tests/support/objects.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

// Somebody has a hand in how long it takes.
class Delaying final : public Departure {
 public:
  explicit Delaying(std::function<void(std::int64_t)> delay) : delay_(std::move(delay)) {}
  void leaving(std::int64_t bytes) override { delay_(bytes); }

 private:
  const std::function<void(std::int64_t)> delay_;
};

class PlacingTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kTicket = 77;

  PlacingTest() {
    put_ticket(region_.data(), kTicket);
    request_.payload = {bytes_};
    request_.room = RegionRoom{.to = {.key = "", .runs = {{0, std::ssize(region_)}}},
                               .ticket_offset = 0,
                               .ticket = kTicket};
  }
  // How much was written.
  std::ptrdiff_t written() const {
    return std::ranges::mismatch(region_, bytes_).in1 - region_.begin();
  }

  SeededRng rng_{3};
  ManualClock clock_;
  const Bytes bytes_ = random_bytes(rng_, 10 * Placing::kSliceBytes);
  Bytes region_ = Bytes(bytes_.size());
  Request request_{1, "header"};
};

TEST_F(PlacingTest, ASlowWriterComesToItsEnd) {
  Delaying slow([this](std::int64_t) { clock_.advance(4s); });
  request_.departure = &slow;
  Placing placing(request_, region_, clock_);
  ASSERT_TRUE(placing.begin().ok());
  while (!placing.done()) ASSERT_EQ(placing.step().value(), Placing::kSliceBytes);
  EXPECT_EQ(placing.step().value(), 0);
  placing.finish();
  EXPECT_EQ(written(), std::ssize(bytes_));
}

TEST_F(PlacingTest, OneThatWasHeldUpWritesNoMore) {
  Delaying frozen([this](std::int64_t bytes) {
    if (bytes > 5 * Placing::kSliceBytes) clock_.advance(Placing::kLongestPause + 1ms);
  });
  request_.departure = &frozen;
  Placing placing(request_, region_, clock_);
  ASSERT_TRUE(placing.begin().ok());
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(placing.step().has_value());
  const Status held_up = placing.step().status();
  EXPECT_EQ(held_up.code(), Code::kUnavailable);
  EXPECT_FALSE(Placing::unplaced(held_up)) << "something may have been written";
  EXPECT_EQ(written(), 5 * Placing::kSliceBytes);
}

}  // namespace
}  // namespace icefield
