#include "storage/value_places.h"

#include <gtest/gtest.h>

#include "common/rng.h"

namespace icefield {
namespace {

TEST(ValuePlaces, PropertyRoundTripAndDamageIsNamed) {
  SeededRng rng(1);
  std::vector<ValuePlace> places = {{.number = UINT64_MAX, .file = UINT32_MAX, .offset = 7}};
  for (int i = 0; i < 1000; ++i) {
    places.push_back({.number = rng.next(),
                      .file = static_cast<std::uint32_t>(rng.next()),
                      .offset = static_cast<std::uint32_t>(rng.next())});
  }
  const std::string text = write_places(places);
  EXPECT_EQ(read_places(text).value(), places);
  EXPECT_EQ(read_places(write_places({})).value(), std::vector<ValuePlace>());
  for (std::size_t length = 0; length < text.size(); length += 7) {
    EXPECT_EQ(read_places(std::string_view(text).substr(0, length)).error().code(),
              Code::kDataLoss);
  }
  EXPECT_FALSE(read_places(text + "x").has_value());
  EXPECT_FALSE(read_places(std::string(10, '\xff')).has_value());
}

TEST(ValuePlaces, OnlyWhatWasAddedIsKept) {
  ValuePlaces places;
  const std::vector<ValuePlace> written = {{1, 10, 100}, {2, 10, 200}, {3, 10, 300}};
  places.add(1);
  places.add(3);
  EXPECT_EQ(places.find(1), std::nullopt) << "not written yet";
  places.set(written);
  EXPECT_EQ(places.find(1), written[0]);
  EXPECT_EQ(places.find(2), std::nullopt);
  places.remove(3);
  places.remove(3);
  EXPECT_EQ(places.find(3), std::nullopt);
  places.add(4);
  EXPECT_EQ(places.find(4), std::nullopt) << "takes the entry of 3, but not its place";
  places.set(written);
  EXPECT_EQ(places.find(3), std::nullopt);
  const std::vector<ValuePlace> moved = {{1, 11, 64}};
  places.set(moved);
  EXPECT_EQ(places.find(1), moved[0]);
}

}  // namespace
}  // namespace icefield
