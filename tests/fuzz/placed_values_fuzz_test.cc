// What nodes and clients tell each other of one-sided values (decision 0008) comes from a network:
// whatever it says, nobody gets wrong bytes and nothing is held for ever.
#include <gtest/gtest.h>

#include <functional>

#include "cache_node/node_messages.h"
#include "tests/support/placed_values.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

constexpr const char* kForger = "forger";

// The node under another name, whose answers to one method somebody changes.
template <class Answer>
class Forger final : public Service {
 public:
  using Forge = std::function<void(Answer&, ServiceReply&)>;

  Forger(ValueCluster& cluster, NodeMethod method, Forge forge)
      : cluster_(cluster), method_(method), forge_(std::move(forge)) {
    auto listening = cluster.transport().listen(kForger, cluster.io().get_executor(), *this);
    ICE_CHECK(cluster.run(std::move(listening)).has_value());
  }
  ~Forger() override { (void)cluster_.run(cluster_.transport().stop(kForger)); }

  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override {
    Service& node = cluster_.node(0).service();
    ICE_CO_TRY(ServiceReply reply,
               co_await node.handle(caller, method, std::move(header), std::move(payload)));
    if (static_cast<NodeMethod>(method) != method_) co_return reply;
    Answer answer;
    ICE_CHECK(answer.ParseFromString(reply.header));
    forge_(answer, reply);
    reply.header = answer.SerializeAsString();
    co_return reply;
  }

 private:
  ValueCluster& cluster_;
  const NodeMethod method_;
  const Forge forge_;
};

std::uint64_t odd_number(Rng& rng) {
  const std::uint64_t odd[] = {0, 1, 1 << 14, 1 << 23, 1ull << 40, 1ull << 63, UINT64_MAX};
  return odd[rng.below(std::size(odd))];
}

// In one of five ways, or not at all.
template <class Places>
void forge_runs(Places& places, std::uint64_t way, Rng& rng) {
  const std::uint64_t value = odd_number(rng);
  switch (way) {
    case 0: places.set_offsets(0, value); break;
    case 1: places.set_lengths(0, value); break;
    case 2: places.clear_lengths(); break;
    case 3: places.add_offsets(value), places.add_lengths(value); break;
    case 4: places.set_region_key(std::string(rng.below(200), 'x')); break;
  }
}

class PlacesFuzz : public PlacedValues {
 protected:
  PlacesFuzz() : PlacedValues({.dram_bytes = 32 << 20, .shared = true}) {}
};

TEST_F(PlacesFuzz, ForgedPlacesNeverGiveWrongBytes) {
  const Bytes junk(kValueBytes, std::byte{1});
  const auto forge = [&](proto::GetValuesReply& answer, ServiceReply& reply) {
    if (!answer.has_placed()) return;
    proto::PlacedPayload& placed = *answer.mutable_placed();
    switch (const std::uint64_t way = rng_.below(8)) {
      case 5: placed.clear_offsets(); break;
      case 6: placed.set_lease(odd_number(rng_)); break;
      case 7: reply.payload = {junk}; break;  // as well
      default: forge_runs(placed, way, rng_);
    }
  };
  const Forger<proto::GetValuesReply> forger(cluster_, NodeMethod::kGetValues, forge);
  StaticMembership membership({{.name = kForger}});
  Nodes nodes(cluster_.clock(), transport_, membership);
  ASSERT_TRUE(put("k").has_value());
  int right = 0;
  for (int i = 0; i < 2000; ++i) {
    ValueStore store(cluster_.clock(), rng_, nodes, {});
    const Result<Buffer> got = cluster_.run(store.get("k", Buffer(kValueBytes), {}));
    right += got.has_value() ? 1 : 0;
    if (got.has_value()) {
      ASSERT_TRUE(std::ranges::equal(got->bytes(), values_["k"]));
    } else {
      ASSERT_EQ(got.error().code(), Code::kNotFound) << got.error().to_string();
    }
    cluster_.clock().advance(1s);
  }
  EXPECT_GT(right, 1000) << "most are read again, by message";
}

TEST_F(PlacesFuzz, ForgedRequestsHarmNobody) {
  ASSERT_TRUE(put("k").has_value());
  for (int i = 0; i < 2000; ++i) {
    const Caller caller = Caller().over({.number = rng_.below(3), .one_sided = rng_.below(2) == 0});
    proto::GetValuesRequest request;
    request.mutable_keys()->set_text("k");
    request.mutable_keys()->add_lengths(1);
    request.add_offsets(rng_.below(3) * kValuePieceBytes);
    request.add_rooms(rng_.next());
    request.set_locate(rng_.below(2) == 0);
    request.set_region(rng_.next() >> rng_.below(64));
    request.set_unreachable(rng_.below(2) == 0);
    for (std::uint64_t n = rng_.below(4); n > 0; --n) {
      request.mutable_scope()->add_ended_leases(rng_.next() >> rng_.below(64));
    }
    std::string bytes = request.SerializeAsString();
    if (rng_.below(4) == 0) bytes[rng_.below(bytes.size())] ^= 4;
    (void)cluster_.run(node().server().handle(caller, static_cast<MethodId>(NodeMethod::kGetValues),
                                              std::move(bytes), Buffer(0)));
  }
  EXPECT_LE(server().leases().bytes(), 4 << 20);
  EXPECT_TRUE(comes_back("k"));
  cluster_.clock().advance(1s);
  EXPECT_TRUE(comes_back("k"));
  EXPECT_EQ(server().leases().count(), 1);
}

// ------------------------------------------------------------------------------------- rooms

class RoomsFuzz : public PlacedValues {
 protected:
  RoomsFuzz() : PlacedValues({.dram_bytes = 64 << 20, .shared = true}) {}
};

TEST_F(RoomsFuzz, ForgedRoomsNeverGiveWrongBytes) {
  const auto forge = [&](proto::PutValuesReply& answer, ServiceReply&) {
    if (!answer.has_room()) return;
    proto::PutRoom& room = *answer.mutable_room();
    switch (const std::uint64_t way = rng_.below(9)) {
      case 5: room.set_slot_bytes(odd_number(rng_)); break;
      case 6: room.set_number(room.number() + 1); break;
      default: forge_runs(room, way, rng_);
    }
  };
  const Forger<proto::PutValuesReply> forger(cluster_, NodeMethod::kPutValues, forge);
  StaticMembership membership({{.name = kForger}});
  std::unique_ptr<Nodes> nodes;
  std::unique_ptr<ValueStore> store;
  int right = 0;
  for (int i = 0; i < 2000; ++i) {
    if (i % 10 == 0) {
      nodes = std::make_unique<Nodes>(cluster_.clock(), transport_, membership);
      store = std::make_unique<ValueStore>(cluster_.clock(), rng_, *nodes, ValueStore::Options());
      cluster_.clock().advance(1s);
    }
    const std::string key = std::to_string(i);
    const Bytes& bytes = value(key, 16'384 + static_cast<std::int64_t>(rng_.below(60'000)));
    const Result<PutOutcome> outcome = cluster_.run(store->put(key, bytes, {}, {}));
    const bool refused = outcome.status().code() == Code::kInvalidArgument;
    ASSERT_TRUE(outcome.has_value() || refused) << outcome.error().to_string();
    const Result<Buffer> got = get(key);
    right += got.has_value() ? 1 : 0;
    if (got.has_value()) {
      ASSERT_TRUE(std::ranges::equal(got->bytes(), bytes));
    } else {
      ASSERT_EQ(got.error().code(), Code::kNotFound) << got.error().to_string();
    }
    values_.erase(key);
  }
  EXPECT_GT(right, 1500);
  EXPECT_GT(server().placed_puts.value(), 200);
}

TEST_F(RoomsFuzz, MoreChunksThanTheirRoomHasSlotsAreRefused) {
  const Caller caller = Caller().over({.number = 3, .one_sided = true});
  const auto ask = [&](std::uint32_t chunks, std::uint64_t room) {
    proto::PutValuesRequest request;
    request.mutable_keys()->set_text("k");
    request.mutable_keys()->add_lengths(1);
    request.add_value_bytes(std::uint64_t{chunks} << 20);
    request.add_first_chunks(0);
    request.add_chunk_counts(chunks);
    request.set_room(room);
    request.set_room_wanted(30'000);
    Buffer payload((room != 0 ? 8 : (1 << 20) + 8) * static_cast<std::int64_t>(chunks));
    payload.resize(payload.capacity());
    std::ranges::fill(payload.bytes(), std::byte{0});
    return cluster_.run(node().server().handle(caller,
                                               static_cast<MethodId>(NodeMethod::kPutValues),
                                               request.SerializeAsString(), std::move(payload)));
  };
  proto::PutValuesReply answer;
  ASSERT_TRUE(answer.ParseFromString(ask(1, 0).value().header));
  ASSERT_NE(answer.room().number(), 0);
  EXPECT_EQ(ask(2000, answer.room().number()).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(server().rooms().count(), 0) << "given back";
}

TEST_F(RoomsFuzz, ForgedRequestsHarmNobody) {
  ASSERT_TRUE(put("k").has_value());
  const auto odd = [this](std::uint64_t usual) {
    return rng_.below(4) > 0 ? usual : rng_.next() >> rng_.below(64);
  };
  std::vector<std::uint64_t> known = {0};
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    const std::uint64_t connection = rng_.below(8) > 0 ? 0 : rng_.below(3);
    const Caller caller = Caller().over({.number = connection, .one_sided = rng_.below(4) > 0});
    const std::string key = std::to_string(i);
    proto::PutValuesRequest request;
    request.mutable_keys()->set_text(key);
    request.mutable_keys()->add_lengths(static_cast<std::uint32_t>(key.size()));
    request.add_value_bytes(odd(rng_.below(3) == 0 ? 0 : rng_.below(30'000)));
    request.add_first_chunks(static_cast<std::uint32_t>(odd(0)));
    const std::uint32_t many = rng_.below(50) == 0 ? 2000 : 1;
    request.add_chunk_counts(static_cast<std::uint32_t>(odd(many)));
    if (many > 1) request.set_value_bytes(0, std::uint64_t{many} << 20);
    request.set_level(rng_.below(8) == 0 ? 1 : 0);
    request.set_upload(odd(rng_.next()));
    const std::uint64_t rooms[] = {0, known.back(), known[rng_.below(known.size())]};
    request.set_room(odd(rooms[rng_.below(std::size(rooms))]));
    request.set_room_wanted(odd(30'000));
    request.set_region(rng_.next());
    for (std::uint64_t n = rng_.below(3); n > 0; --n) {
      request.mutable_scope()->add_ended_rooms(odd(known[rng_.below(known.size())]));
    }
    std::string header = request.SerializeAsString();
    if (rng_.below(8) == 0) header[rng_.below(header.size())] ^= 4;
    Buffer payload(8 * static_cast<std::int64_t>(rng_.below(8) > 0 ? many : rng_.below(3)));
    payload.resize(payload.capacity());
    std::ranges::fill(payload.bytes(), std::byte{0});
    const auto reply = cluster_.run(node().server().handle(
        caller, static_cast<MethodId>(NodeMethod::kPutValues), header, std::move(payload)));
    if (!reply.has_value()) {
      ++refused;
      ASSERT_EQ(reply.error().code(), Code::kInvalidArgument) << reply.error().to_string();
      continue;
    }
    proto::PutValuesReply answer;
    ASSERT_TRUE(answer.ParseFromString(reply->header));
    if (answer.room().number() != 0) known.push_back(answer.room().number());
    if (known.size() > 20) known.erase(known.begin() + 1);
    if (i % 100 == 0) cluster_.clock().advance(1s);
    ASSERT_LE(server().rooms().bytes(), 8 << 20);
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(server().placed_puts.value(), 20);
  EXPECT_TRUE(comes_back("k"));
  for (std::uint64_t number = 0; number < 3; ++number) {
    node().server().closed(Caller().over({.number = number}));
  }
  EXPECT_EQ(server().rooms().bytes(), 0);
  EXPECT_EQ(server().rooms().count(), 0);
}

}  // namespace
}  // namespace icefield
