// Values that a client writes one-sided (docs/decisions/0008-one-sided-values.md): a put does what
// it does by message, what is damaged is a miss, and no room is lost.
#include <gtest/gtest.h>

#include <boost/asio/detached.hpp>

#include "cache_node/node_messages.h"
#include "tests/support/placed_values.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kSlot = 16 << 10;
constexpr PutOptions kDurable{.level = WriteLevel::kDurable};

class PlacedPuts : public PlacedValues {
 protected:
  explicit PlacedPuts(TestNode::Options node = {.dram_bytes = 64 << 20, .shared = true})
      : PlacedValues(std::move(node)) {}

  // Whether it was stored, one-sided or not.
  testing::AssertionResult puts(const std::string& key, bool placed,
                                std::int64_t bytes = kValueBytes) {
    const std::int64_t before = server().placed_puts.value();
    const Result<PutOutcome> outcome = put(key, bytes);
    if (!outcome.has_value()) return testing::AssertionFailure() << outcome.error().to_string();
    const bool was_placed = server().placed_puts.value() > before;
    if (was_placed == placed && *outcome == PutOutcome::kStored) return testing::AssertionSuccess();
    return testing::AssertionFailure() << (was_placed ? "one-sided" : "by message");
  }
};

// The service under another name, whose puts somebody sees once all of them is there. What is not
// ok is the answer.
class Watched final : public Service {
 public:
  static constexpr const char* kName = "watched";
  using Look = std::function<Status(const Caller&, const proto::PutValuesRequest&, const Payload&)>;

  Watched(ValueCluster& cluster, Service& next, Look look)
      : cluster_(cluster), next_(next), look_(std::move(look)) {
    auto listening = cluster.transport().listen(kName, cluster.io().get_executor(), *this);
    ICE_CHECK(cluster.run(std::move(listening)).has_value());
  }
  ~Watched() override { (void)cluster_.run(cluster_.transport().stop(kName)); }

  std::unique_ptr<Landing> land(const Caller& caller, MethodId method, std::string_view header,
                                std::int64_t payload_bytes) override {
    return next_.land(caller, method, header, payload_bytes);
  }
  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override {
    proto::PutValuesRequest request;
    if (static_cast<NodeMethod>(method) == NodeMethod::kPutValues) {
      ICE_CHECK(request.ParseFromString(header));
      ICE_CO_TRY(look_(caller, request, payload));
    }
    co_return co_await next_.handle(caller, method, std::move(header), std::move(payload));
  }

 private:
  ValueCluster& cluster_;
  Service& next_;
  const Look look_;
};

TEST_F(PlacedPuts, LargeValuesAreWrittenWhereTheyStay) {
  EXPECT_TRUE(puts("small", false, 1000));
  EXPECT_EQ(server().rooms().count(), 0);
  EXPECT_TRUE(puts("a", false)) << "and brings room";
  EXPECT_EQ(server().rooms().bytes(), 7 * kSlot);
  const int calls = transport_.calls;
  for (int i = 0; i < 5; ++i) {
    const std::string key = "k" + std::to_string(i);
    EXPECT_TRUE(puts(key, true));
    EXPECT_TRUE(comes_back(key));
  }
  EXPECT_EQ(transport_.calls, calls + 10) << "no round trip more than by message";
  EXPECT_EQ(server().rooms().count(), 1);
  EXPECT_TRUE(puts("tiny", false, 100)) << "leaves the room for a larger one";
  EXPECT_TRUE(puts("b", true));
}

TEST_F(PlacedPuts, OfEverySizeComeBack) {
  EXPECT_TRUE(puts("first", false, 3 << 20));
  int number = 0;
  for (const std::int64_t bytes :
       {std::int64_t{16 << 10}, std::int64_t{(16 << 10) + 1}, std::int64_t{65'535},
        std::int64_t{1 << 16}, std::int64_t{65'537}, std::int64_t{1 << 20},
        std::int64_t{(1 << 20) + 1}, std::int64_t{5 << 19}, std::int64_t{3 << 20}}) {
    for (int i = 0; i < 2; ++i) {
      const std::string key = std::to_string(number++);
      ASSERT_TRUE(put(key, bytes).has_value());
      ASSERT_TRUE(comes_back(key)) << bytes;
    }
  }
  EXPECT_GE(server().placed_puts.value(), 15);
}

TEST_F(PlacedPuts, LargerThanTheRoomGoByMessageAndBringMore) {
  EXPECT_TRUE(puts("a", false, 100'000));
  EXPECT_TRUE(puts("b", false, 1 << 20));
  EXPECT_TRUE(puts("c", true, 1 << 20));
  EXPECT_TRUE(puts("d", true, 100'000));
  EXPECT_TRUE(puts("e", true, 1 << 20)) << "the largest of late counts";
  const std::int64_t rooms = server().rooms().count();
  EXPECT_TRUE(puts("huge", false, 10 << 20)) << "more than one client may have";
  EXPECT_TRUE(comes_back("huge"));
  EXPECT_EQ(server().rooms().count(), rooms) << "it brought none, which would be too small for it";
  EXPECT_TRUE(puts("f", true, 1 << 20));
  EXPECT_TRUE(puts("g", true, 1 << 20)) << "those that can have room still do";
}

TEST_F(PlacedPuts, BatchesHaveTheirOutcomesByItem) {
  const PutOptions pinned{.pin = PinKind::kHard};
  const Bytes quota(16 << 20, std::byte{1});  // all of it
  EXPECT_TRUE(cluster_.run(cluster_.store().put("quota", quota, pinned, {})).has_value());
  end_connection();  // the other client's room
  EXPECT_TRUE(put("old", 20'000).has_value());
  const std::int64_t sizes[] = {16 << 10, 0, 20'000, 1, 300'000, 16 << 10};
  const char* const names[] = {"a", "empty", "old", "one", "large", "z"};
  for (const bool placed : {false, true}) {
    std::vector<std::string> keys;
    std::vector<ConstByteSpan> bytes;
    for (std::size_t i = 0; i < std::size(names); ++i) {
      keys.push_back(std::string(names[i]) + (i == 2 ? "" : placed ? "1" : "0"));
      bytes.push_back(i == 2 ? ConstByteSpan(values_["old"]) : value(keys.back(), sizes[i]));
    }
    std::vector<ValueToPut> batch;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      batch.push_back({.key = keys[i], .parts = std::span(&bytes[i], 1)});
    }
    const std::int64_t before = server().placed_puts.value();
    const auto refused = cluster_.run(store_.put_batch(batch, pinned, {})).value();
    const auto outcomes = cluster_.run(store_.put_batch(batch, {}, {})).value();
    EXPECT_EQ(server().placed_puts.value() - before, placed ? 2 : 1);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const bool free = i == 1 || i == 2;
      EXPECT_EQ(refused[i].has_value(), free) << "what has no bytes is within any quota";
      EXPECT_EQ(outcomes[i].value(), free ? PutOutcome::kAlreadyThere : PutOutcome::kStored);
      EXPECT_TRUE(comes_back(keys[i])) << keys[i];
      if (free) continue;
      EXPECT_EQ(refused[i].error().reason(), MissReason::kQuota);
    }
  }
}

TEST_F(PlacedPuts, TimesToLiveAndFlushesHoldAsEver) {
  EXPECT_TRUE(puts("a", false));
  EXPECT_TRUE(put("brief", kValueBytes, {.ttl_ms = 500}).has_value());
  EXPECT_EQ(server().placed_puts.value(), 1);
  EXPECT_TRUE(comes_back("brief"));
  cluster_.clock().advance(500ms);
  EXPECT_EQ(get("brief").error().reason(), MissReason::kExpired);

  // Another client flushes the namespace while the value is on its way.
  transport_.before_write = [&]() -> asio::awaitable<void> {
    transport_.before_write = nullptr;
    (void)co_await cluster_.store().flush({});
  };
  EXPECT_TRUE(put("k").has_value()) << "once more, with the number that it was told";
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(get("a").error().code(), Code::kNotFound);
}

TEST_F(PlacedPuts, DurableOnesComeWithTheirMessage) {
  EXPECT_TRUE(puts("a", false));
  EXPECT_EQ(put("b", kValueBytes, kDurable).error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(transport_.room_calls, 0);
}

TEST_F(PlacedPuts, RoomThatWasTakenBackCostsNothing) {
  EXPECT_TRUE(puts("a", false));
  EXPECT_TRUE(puts("b", true));
  cluster_.clock().advance(10s);
  EXPECT_TRUE(comes_back("a"));
  EXPECT_EQ(server().rooms().count(), 0);
  EXPECT_EQ(server().rooms().taken_back.value(), 1);
  EXPECT_TRUE(puts("c", false)) << "and brings room";
  EXPECT_TRUE(comes_back("c"));
  EXPECT_TRUE(puts("d", true));
  EXPECT_EQ(server().rooms().count(), 1);
}

TEST_F(PlacedPuts, RoomEndsWithItsConnection) {
  EXPECT_TRUE(puts("a", false));
  const std::int64_t with_room = used();
  end_connection();
  EXPECT_EQ(server().rooms().count(), 0);
  EXPECT_EQ(used(), with_room - 7 * kSlot);
  EXPECT_TRUE(puts("b", false));
  EXPECT_TRUE(comes_back("b"));
  EXPECT_TRUE(puts("c", true));
}

TEST_F(PlacedPuts, RoomThatGoesInTheLastMomentCostsNothing) {
  EXPECT_TRUE(puts("a", false));
  transport_.before_write = [&]() -> asio::awaitable<void> {
    transport_.before_write = nullptr;
    end_connection();
    EXPECT_EQ(server().rooms().count(), 0);
    co_return;
  };
  EXPECT_TRUE(puts("b", false));
  EXPECT_EQ(transport_.room_calls, 1);
  EXPECT_TRUE(comes_back("b"));
}

TEST_F(PlacedPuts, AConnectionThatEndsAfterTheCopyCostsASecondPut) {
  const auto close = [this](const Caller& caller, const proto::PutValuesRequest& request,
                            const Payload&) {
    if (request.room() != 0) node().service().closed(caller);
    return Status();
  };
  const Watched watched(cluster_, node().service(), close);
  StaticMembership membership({{.name = Watched::kName}});
  Nodes nodes(cluster_.clock(), transport_, membership);
  ValueStore store(cluster_.clock(), rng_, nodes, {});
  for (const char* key : {"a", "b", "c"}) {
    EXPECT_EQ(cluster_.run(store.put(key, value(key), {}, {})).value(), PutOutcome::kStored);
    EXPECT_TRUE(comes_back(key));
  }
  EXPECT_EQ(transport_.room_calls, 2);
  EXPECT_EQ(server().placed_puts.value(), 0);
  EXPECT_EQ(server().rooms().count(), 3) << "two may be in the middle of a copy still";
  cluster_.clock().advance(10s);
  EXPECT_TRUE(comes_back("a"));
  EXPECT_EQ(server().rooms().count(), 0);
}

TEST_F(PlacedPuts, AnUnreachableRegionIsTriedOnce) {
  EXPECT_TRUE(puts("a", false));
  transport_.unplaced = Status(Code::kFailedPrecondition, "no lane reaches it");
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(puts("k" + std::to_string(i), false));
  EXPECT_EQ(transport_.room_calls, 1);
  EXPECT_EQ(server().rooms().count(), 0) << "given back";
  transport_.unplaced = Status();
  EXPECT_TRUE(puts("b", false)) << "as long as it is the same";
  cluster_.stop(0);
  cluster_.start(0);
  EXPECT_TRUE(puts("c", false));
  EXPECT_TRUE(puts("d", true));
}

TEST_F(PlacedPuts, ANodeThatWasStartedAgainGrantsRoomOfItsOwn) {
  EXPECT_TRUE(puts("a", false));
  cluster_.stop(0);
  cluster_.start(0);
  transport_.before_write = [&]() -> asio::awaitable<void> {
    transport_.unplaced = transport_.room_calls > 1
                              ? Status()
                              : Status(Code::kFailedPrecondition, "the region has gone");
    co_return;
  };
  EXPECT_TRUE(puts("b", false));
  EXPECT_EQ(transport_.room_calls, 1);
  for (const char* key : {"c", "d"}) EXPECT_TRUE(puts(key, true));
  for (const char* key : {"b", "c", "d"}) EXPECT_TRUE(comes_back(key));
}

TEST_F(PlacedPuts, WhatTheServiceRefusesIsNotSentTwice) {
  const auto refuse = [](const Caller&, const proto::PutValuesRequest& request, const Payload&) {
    return request.room() == 0 ? Status() : Status(Code::kResourceExhausted, "too much");
  };
  const Watched watched(cluster_, node().service(), refuse);
  ValueStub stub(transport_, Watched::kName);
  const Bytes& bytes = value("k");
  const ConstByteSpan part = bytes;
  const ValueHash hash = value_hash("", 0, "k");
  const std::uint64_t sum = object_checksum(value_chunk_key(hash, 1, 0), std::span(&part, 1));
  const PutValue item{.key = "k",
                      .value_bytes = kValueBytes,
                      .checksums = std::span(&sum, 1),
                      .parts = std::span(&part, 1)};
  for (const bool refused : {false, true, false, true}) {
    PutValues request;
    request.values.push_back(item);
    const auto reply = cluster_.run(stub.put(std::move(request), Deadline::never()));
    EXPECT_EQ(reply.status().code(), refused ? Code::kResourceExhausted : Code::kOk);
  }
  EXPECT_EQ(transport_.calls, 4);
  EXPECT_EQ(transport_.room_calls, 2) << "not taken for a region that is out of reach";
}

TEST_F(PlacedPuts, AFailureIsTheCallersAndRoomComesBack) {
  EXPECT_TRUE(puts("a", false));
  for (const Code code : {Code::kUnavailable, Code::kDeadlineExceeded}) {
    transport_.failure = Status(code, "connection lost");
    EXPECT_EQ(put("k").error().code(), code);
    transport_.failure = Status();
    EXPECT_TRUE(puts(std::string(to_string(code)), false));
    EXPECT_EQ(server().rooms().count(), 1) << "the last one's";
  }
  CancelToken cancel;
  cancel.cancel();
  EXPECT_EQ(put("k", kValueBytes, {}, {.cancel = &cancel}).error().code(), Code::kCancelled);
}

TEST_F(PlacedPuts, DamageIsAMissAndNeverReturned) {
  EXPECT_TRUE(puts("a", false));
  EXPECT_TRUE(puts("k", true));
  const auto at = find("k");
  ASSERT_NE(at, node().memory().memory().end());
  at[70'000] ^= std::byte{1};
  EXPECT_EQ(get("k").error().reason(), MissReason::kIntegrity);
  EXPECT_EQ(node().values().damaged.value(), 1);
  EXPECT_TRUE(puts("k", true)) << "and it can be put again";
  EXPECT_TRUE(comes_back("k"));
}

class SmallPlacedPuts : public PlacedPuts {
 protected:
  SmallPlacedPuts() : PlacedPuts({.dram_bytes = 16 << 20, .shared = true}) {}
};

TEST_F(SmallPlacedPuts, NothingIsLostUnderEviction) {
  for (int i = 0; i < 200; ++i) {
    const std::int64_t bytes = static_cast<std::int64_t>(rng_.below(800'000));
    const std::string key = std::to_string(i);
    ASSERT_TRUE(put(key, bytes).has_value());
    ASSERT_TRUE(comes_back(key));
    if (i < 20) continue;
    const std::string old = std::to_string(i - static_cast<int>(rng_.below(20)));
    const Result<Buffer> got = get(old);
    ASSERT_TRUE(!got.has_value() || std::ranges::equal(got->bytes(), values_[old]));
    if (i % 50 == 0) end_connection();
    if (i % 70 == 0) cluster_.clock().advance(2s);
  }
  EXPECT_GT(server().placed_puts.value(), 100);
  EXPECT_LE(server().rooms().bytes(), 2 << 20);
  end_connection();
  EXPECT_EQ(server().rooms().bytes(), 0);
  std::vector<std::string_view> keys;
  for (const auto& [key, bytes] : values_) keys.push_back(key);
  EXPECT_TRUE(cluster_.run(store_.remove(keys, {})).has_value());
  EXPECT_EQ(used(), 0);
}

TEST_F(PlacedPuts, WhoMayNotUseEverythingGetsNoRoom) {
  const Caller some(TokenGrant{.token = "0123456789abcdef", .namespaces = {"mine"}});
  const Caller far = Caller().over({.number = 7});
  for (const Caller& caller : {some.over({.number = 7, .one_sided = true}), far}) {
    proto::PutValuesRequest request;
    request.mutable_scope()->set_name_space("mine");
    request.mutable_keys()->set_text("k");
    request.mutable_keys()->add_lengths(1);
    request.add_value_bytes(0);
    request.add_first_chunks(0);
    request.add_chunk_counts(1);
    request.set_room_wanted(1 << 20);
    Buffer checksum(8);
    checksum.resize(8);
    std::ranges::fill(checksum.bytes(), std::byte{0});
    EXPECT_TRUE(
        cluster_
            .run(node().server().handle(caller, static_cast<MethodId>(NodeMethod::kPutValues),
                                        request.SerializeAsString(), std::move(checksum)))
            .has_value());
    EXPECT_EQ(server().rooms().count(), 0);
  }
}

// A node with a disk.
class PlacedPutsOnDisk : public PlacedPuts {
 protected:
  PlacedPutsOnDisk() : PlacedPutsOnDisk(std::make_unique<TempDir>()) {}

 private:
  explicit PlacedPutsOnDisk(std::unique_ptr<TempDir> dir)
      : PlacedPuts({.dram_bytes = 16 << 20, .store = dir->path(), .shared = true}),
        dir_(std::move(dir)) {}
  const std::unique_ptr<TempDir> dir_;
};

TEST_F(PlacedPutsOnDisk, WhatGoesToDiskIsVerifiedBefore) {
  EXPECT_TRUE(puts("a", false));
  EXPECT_TRUE(puts("good", true));
  EXPECT_TRUE(puts("bad", true));
  EXPECT_TRUE(comes_back("good")) << "used: worth a copy once memory is half full";
  EXPECT_TRUE(comes_back("bad"));
  find("bad")[5] ^= std::byte{1};
  NodeValues& values = node().values();
  const auto give_up = std::chrono::steady_clock::now() + 20s;
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(put("fill" + std::to_string(i), 1 << 20).has_value());
  while (values.copied_to_disk.value() + values.damaged.value() < 2 &&
         std::chrono::steady_clock::now() < give_up) {
    (void)cluster_.run(store_.get("absent", Buffer(100), {}));
  }
  EXPECT_EQ(values.damaged.value(), 1);
  EXPECT_EQ(get("bad").error().reason(), MissReason::kIntegrity);
  EXPECT_TRUE(comes_back("good"));
  EXPECT_TRUE(puts("bad", true));
  EXPECT_TRUE(comes_back("bad"));
}

TEST_F(PlacedPutsOnDisk, ADurablePutTakesThePlaceOfWhatIsDamagedInMemory) {
  EXPECT_TRUE(puts("a", false));
  for (const char* key : {"bad", "good"}) EXPECT_TRUE(puts(key, true));
  find("bad")[5] ^= std::byte{1};
  for (const char* key : {"bad", "good"}) {
    const Bytes bytes = values_[key];
    const bool damaged = key == std::string_view("bad");
    EXPECT_EQ(cluster_.run(store_.put(key, bytes, kDurable, {})).value(),
              damaged ? PutOutcome::kStored : PutOutcome::kAlreadyThere);
    EXPECT_EQ(node().values().damaged.value(), 1);
    EXPECT_TRUE(comes_back(key));
  }
  cluster_.stop(0);
  cluster_.start(0);
  for (const char* key : {"bad", "good"}) EXPECT_TRUE(comes_back(key)) << "from disk";
}

TEST_F(PlacedPutsOnDisk, WhatIsAcknowledgedAsDurableIsWhatWasVerified) {
  int landed = 0;
  const auto damage = [&](const Caller&, const proto::PutValuesRequest&, const Payload& payload) {
    landed += payload.landing != nullptr ? 1 : 0;
    const auto at = find("k");
    if (at != node().memory().memory().end()) *at ^= std::byte{1};
    return Status();
  };
  {
    const Watched watched(cluster_, node().service(), damage);
    StaticMembership membership({{.name = Watched::kName}});
    Nodes nodes(cluster_.clock(), transport_, membership);
    ValueStore store(cluster_.clock(), rng_, nodes, {});
    EXPECT_EQ(cluster_.run(store.put("k", value("k"), kDurable, {})).value(), PutOutcome::kStored);
    EXPECT_EQ(landed, 1);
  }
  cluster_.stop(0);
  cluster_.start(0);
  EXPECT_TRUE(comes_back("k")) << "from disk";
}

// Room is granted while others' removals wait for the disk.
TEST_F(PlacedPutsOnDisk, SideBySidePutsKeepWithinTheBounds) {
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(put(std::to_string(i), 300'000).has_value());
  std::vector<Bytes> values;
  for (int i = 0; i < 12; ++i) values.push_back(random_bytes(rng_, 300'000));
  int done = 0;
  const auto put_one = [&](int number, const Bytes& bytes) -> asio::awaitable<void> {
    const auto outcome = co_await store_.put("side " + std::to_string(number), bytes, {}, {});
    EXPECT_TRUE(outcome.has_value()) << outcome.error().to_string();
    EXPECT_LE(server().rooms().bytes(), 1 << 20) << "one connection's";
    ++done;
  };
  for (int i = 0; i < std::ssize(values); ++i) {
    const Bytes& bytes = values[static_cast<std::size_t>(i)];
    asio::co_spawn(cluster_.io(), put_one(i, bytes), asio::detached);
  }
  for (int i = 0; done < std::ssize(values); ++i) {
    ASSERT_LT(i, 100'000);
    (void)get("0");
  }
  EXPECT_LE(server().rooms().bytes(), 1 << 20);
}

}  // namespace
}  // namespace icefield
