// Values that a client reads one-sided (docs/decisions/0008-one-sided-values.md): right bytes
// whatever happens to the memory, and nothing is held for long.
#include <gtest/gtest.h>

#include "cache_node/node_messages.h"
#include "tests/support/placed_values.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

class PlacedReads : public PlacedValues {
 protected:
  PlacedReads() : PlacedValues({.dram_bytes = 32 << 20, .shared = true}) {}

  const std::vector<std::string_view> key_ = {"k"};
};

TEST_F(PlacedReads, LargeValuesAreReadWhereTheyAre) {
  ASSERT_TRUE(put("small", 1000).has_value());
  ASSERT_TRUE(put("large").has_value());
  EXPECT_TRUE(comes_back("small"));
  EXPECT_EQ(transport_.reads, 0);
  const int calls = transport_.calls;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(comes_back("large"));
  EXPECT_EQ(transport_.reads, 5);
  EXPECT_EQ(transport_.calls, calls + 5) << "no round trip more than a get by message takes";
  EXPECT_EQ(server().placed.value(), 5);
  EXPECT_EQ(server().leases().count(), 1) << "of the last get";
  EXPECT_TRUE(cluster_.run(store_.exists({"small"}, {})).has_value());
  EXPECT_EQ(server().leases().count(), 0) << "ends with any request";
}

TEST_F(PlacedReads, BatchesAndRangesAreReadWhereTheyAre) {
  ASSERT_TRUE(put("a", 5 << 19).has_value());
  ASSERT_TRUE(put("b").has_value());
  ASSERT_TRUE(put("empty", 0).has_value());
  const Buffer range = cluster_.run(store_.get_range("a", 1'000'001, 200'000, {})).value();
  EXPECT_TRUE(
      std::ranges::equal(range.bytes(), ConstByteSpan(values_["a"]).subspan(1'000'001, 200'000)));
  std::vector<ValueToGet> items;
  for (const char* key : {"a", "empty", "none", "b"})
    items.push_back({.key = key, .room = 3 << 20});
  const ValueBatch batch = cluster_.run(store_.get_batch(items, {})).value();
  EXPECT_TRUE(std::ranges::equal(*batch.values[0], values_["a"]));
  EXPECT_TRUE(batch.values[1]->empty());
  EXPECT_EQ(batch.values[2].error().code(), Code::kNotFound);
  EXPECT_TRUE(std::ranges::equal(*batch.values[3], values_["b"]));
  EXPECT_EQ(transport_.reads, 2);
}

TEST_F(PlacedReads, BytesStayWhereTheyAreUntilTheyWereRead) {
  ASSERT_TRUE(put("k").has_value());
  // Removed, and as much put as memory holds, between the reply and the read.
  transport_.before_read = [&]() -> asio::awaitable<void> {
    ValueStore other(cluster_.clock(), rng_, cluster_.nodes(), {});
    (void)co_await other.remove(key_, {});
    const Bytes filling(1 << 20, std::byte{1});
    for (int i = 0; i < 40; ++i) {
      const std::string key = "filling " + std::to_string(i);
      EXPECT_TRUE((co_await other.put(key, filling, {}, {})).has_value());
    }
  };
  EXPECT_TRUE(comes_back("k"));
  transport_.before_read = nullptr;
  EXPECT_EQ(cluster_.run(store_.exists({"k"}, {})).value()[0].error().code(), Code::kNotFound);
  EXPECT_EQ(server().leases().count(), 0);
}

TEST_F(PlacedReads, ALeaseThatRanOutCostsASecondLookAndNothingElse) {
  ASSERT_TRUE(put("k").has_value());
  const ByteSpan memory = node().memory().memory();
  transport_.before_read = [&]() -> asio::awaitable<void> {
    cluster_.clock().advance(1s);
    ValueStore other(cluster_.clock(), rng_, cluster_.nodes(), {});
    (void)co_await other.exists(key_, {});  // any request
    EXPECT_EQ(server().leases().count(), 0);
    const auto at =
        std::search(memory.begin(), memory.end(), values_["k"].begin(), values_["k"].begin() + 64);
    EXPECT_NE(at, memory.end());
    // The value goes elsewhere, and others come to where it was.
    (void)co_await other.remove(key_, {});
    std::fill_n(at, kValueBytes, std::byte{9});
    EXPECT_TRUE((co_await other.put("k", values_["k"], {}, {})).has_value());
  };
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(transport_.reads, 1) << "the second time by message";
  EXPECT_EQ(server().leases().lapsed.value(), 1);
  EXPECT_EQ(node().values().damaged.value(), 0);
}

TEST_F(PlacedReads, DamageInMemoryIsFoundAndDropped) {
  ASSERT_TRUE(put("k").has_value());
  const ByteSpan memory = node().memory().memory();
  const auto at =
      std::search(memory.begin(), memory.end(), values_["k"].begin(), values_["k"].begin() + 64);
  ASSERT_NE(at, memory.end());
  at[70'000] ^= std::byte{1};
  const Result<Buffer> got = cluster_.run(store_.get("k", Buffer(kValueBytes), {}));
  EXPECT_EQ(got.error().reason(), MissReason::kIntegrity);
  EXPECT_EQ(node().values().damaged.value(), 1);
}

TEST_F(PlacedReads, ARegionOutOfReachIsTriedOnce) {
  ASSERT_TRUE(put("k").has_value());
  transport_.failure = Status(Code::kFailedPrecondition, "no lane reaches it");
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(transport_.reads, 1);
  // Started again the node has another one.
  cluster_.stop(0);
  cluster_.start(0);
  transport_.failure = Status();
  ASSERT_TRUE(put("k").has_value());
  EXPECT_TRUE(comes_back("k"));
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(transport_.reads, 3) << "the new one is in reach";
}

TEST_F(PlacedReads, ACancelledGetTouchesNothingOfAClientThatHasGone) {
  ASSERT_TRUE(put("k").has_value());
  auto nodes = std::make_unique<Nodes>(cluster_.clock(), transport_, membership_);
  auto store = std::make_unique<ValueStore>(cluster_.clock(), rng_, *nodes, ValueStore::Options());
  CancelToken cancel;
  bool read = false;
  transport_.before_read = [&]() -> asio::awaitable<void> {
    cancel.cancel();
    const auto executor = co_await asio::this_coro::executor;
    while (nodes != nullptr) co_await asio::post(executor, asio::use_awaitable);
    read = true;
  };
  const auto got = cluster_.run(store->get("k", Buffer(kValueBytes), {.cancel = &cancel}));
  EXPECT_EQ(got.error().code(), Code::kCancelled);
  store.reset();
  nodes.reset();
  // What is left of the get runs now: an address sanitizer would see what it touches.
  while (!read || transport_.reads == 0) (void)cluster_.run(store_.exists({"k"}, {}));
  transport_.before_read = nullptr;
  EXPECT_TRUE(comes_back("k"));
}

TEST_F(PlacedReads, AReadThatFailsIsMadeByMessageAndADeadlineIsADeadline) {
  ASSERT_TRUE(put("k").has_value());
  transport_.failure = Status(Code::kUnavailable, "connection lost");
  EXPECT_TRUE(comes_back("k"));
  transport_.failure = Status(Code::kDeadlineExceeded, "not done");
  EXPECT_EQ(cluster_.run(store_.get("k", Buffer(kValueBytes), {})).error().code(),
            Code::kDeadlineExceeded);
  transport_.failure = Status();
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(server().leases().count(), 1);
}

TEST_F(PlacedReads, FirstPartsThatCannotBeReadLeaveRoomForTheRest) {
  ValueStore store(cluster_.clock(), rng_, nodes_, {.request_bytes = 2 << 20});
  ASSERT_TRUE(put("k", (7 << 20) + 1).has_value());
  transport_.failure = Status(Code::kUnavailable, "connection lost");
  const Result<Buffer> got = cluster_.run(store.get("k", Buffer(8 << 20), {}));
  ASSERT_TRUE(got.has_value()) << got.error().to_string();
  EXPECT_TRUE(std::ranges::equal(got->bytes(), values_["k"]));
  EXPECT_GT(transport_.reads, 0);
}

TEST_F(PlacedReads, LeasesCountWholeSlotsAndEmptyRangesNone) {
  std::vector<ValueToGet> items;
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(put("k" + std::to_string(i), 4 << 10).has_value());
    ASSERT_TRUE(put("e" + std::to_string(i), 0).has_value());
  }
  for (const auto& [key, value] : values_) {
    items.push_back({.key = key, .room = std::ssize(value)});
  }
  ASSERT_TRUE(cluster_.run(store_.get_batch(items, {})).has_value());
  EXPECT_EQ(transport_.reads, 1);
  EXPECT_EQ(server().leases().bytes(), 8 * (16 << 10));
}

TEST_F(PlacedReads, EndedLeasesThatNobodyHeardOfAreToldAgain) {
  ASSERT_TRUE(put("k").has_value());
  EXPECT_TRUE(comes_back("k"));
  ASSERT_TRUE(cluster_.run(cluster_.transport().stop(ValueCluster::name(0))).ok());
  EXPECT_EQ(server().leases().count(), 0) << "with the connection";
  ASSERT_FALSE(cluster_.run(store_.exists(key_, {})).value()[0].has_value());
  ASSERT_TRUE(cluster_
                  .run(cluster_.transport().listen(ValueCluster::name(0),
                                                   cluster_.io().get_executor(), node().service()))
                  .has_value());
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(server().leases().count(), 1);
}

TEST_F(PlacedReads, WhoNeverEndsALeaseDoesNotKeepMemoryFromOthers) {
  const NodeMethod method = NodeMethod::kGetValues;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(put("k" + std::to_string(i), 500'000).has_value());
  NodeServer& service = node().server();
  const Caller greedy = Caller().over({.number = 7, .one_sided = true});
  int placed = 0;
  for (int i = 0; i < 100; ++i) {
    proto::GetValuesRequest request;
    const std::string key = "k" + std::to_string(i % 4);
    request.mutable_keys()->set_text(key);
    request.mutable_keys()->add_lengths(static_cast<std::uint32_t>(key.size()));
    request.add_offsets(0);
    request.add_rooms(1 << 20);
    request.set_locate(true);
    const ServiceReply reply = cluster_
                                   .run(service.handle(greedy, static_cast<MethodId>(method),
                                                       request.SerializeAsString(), Buffer(0)))
                                   .value();
    const auto answer = parse_message<proto::GetValuesReply>(reply.header).value();
    placed += answer.has_placed() ? 1 : 0;
    EXPECT_EQ(payload_bytes(reply.payload), answer.has_placed() ? 0 : 500'000);
  }
  EXPECT_EQ(placed, 8) << "an eighth of memory";
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(put("other " + std::to_string(i), 500'000).has_value());
  EXPECT_EQ(server().leases().count(), 8);

  // Those that are over at the latest when somebody wants room: for as much as memory holds.
  for (const auto& [key, value] : values_) {
    const std::vector<std::string_view> keys = {key};
    ASSERT_TRUE(cluster_.run(store_.remove(keys, {})).has_value());
  }
  EXPECT_GE(used(), 2'000'000) << "four values are leased twice";
  cluster_.clock().advance(1s);
  ASSERT_TRUE(put("last", 100).has_value());
  EXPECT_EQ(used() - server().rooms().bytes(), 16 << 10);
  EXPECT_EQ(server().leases().lapsed.value(), 8);
}

TEST_F(PlacedReads, LeasesEndWithTheirConnection) {
  ASSERT_TRUE(put("k").has_value());
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(server().leases().count(), 1);
  node().server().closed(Caller().over({.one_sided = true}));
  EXPECT_EQ(server().leases().count(), 0);
}

}  // namespace
}  // namespace icefield
