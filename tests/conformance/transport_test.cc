// What every Transport promises (transport/transport.h) as long as nothing breaks. A new transport
// adds one line to tests/support/transport_kinds.h.
#include "tests/support/objects.h"
#include "tests/support/transport_kinds.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

class TransportConformance : public TransportFixture {};

TEST_P(TransportConformance, HeaderAndGatheredPayloadArrive) {
  for (const std::size_t size : {0u, 1u, 1000u, 70000u, 1000000u}) {
    const Bytes bytes = random_bytes(rng_, size);
    const ConstByteSpan whole = bytes;
    const Result<Reply> reply = call(node_, 1, {whole.first(size / 3), {}, whole.subspan(size / 3)},
                                     static_cast<std::int64_t>(size));
    ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
    EXPECT_EQ(reply->header, "re: hello");
    EXPECT_TRUE(std::ranges::equal(reply->payload.bytes(), bytes));
  }
}

// Holds what it is shown against what it should be.
class Witness final : public Arrival {
 public:
  explicit Witness(ConstByteSpan expected, std::string_view header = "re: hello")
      : expected_(expected), header_(header) {}
  void arrived(std::string_view header, ConstByteSpan payload) override {
    EXPECT_EQ(header, header_);
    ASSERT_GE(payload.size(), seen_);
    ASSERT_LE(payload.size(), expected_.size());
    EXPECT_TRUE(std::ranges::equal(payload, expected_.first(payload.size())));
    seen_ = payload.size();
    ++times_;
  }
  bool saw_all() const { return times_ > 0 && seen_ == expected_.size(); }

 private:
  const ConstByteSpan expected_;
  const std::string_view header_;
  std::size_t seen_ = 0;
  int times_ = 0;
};

TEST_P(TransportConformance, ReplyIsSeenWhileItArrives) {
  for (const std::size_t size : {0u, 1000u, 1000000u}) {
    const Bytes bytes = random_bytes(rng_, size);
    Witness witness(bytes);
    Request request(1, "hello");
    request.payload = {bytes};
    request.arrival = &witness;
    Buffer into(static_cast<std::int64_t>(size));
    const Result<Reply> reply = run_task(
        client_, client_end().call(node_, std::move(request), std::move(into), Deadline::never()));
    ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
    EXPECT_TRUE(witness.saw_all());
  }
}

TEST_P(TransportConformance, RegionsAreReadOneSided) {
  const Result<Region> made =
      sync_wait(server_.executor(), ends_.server->allocate_region(1'000'000));
  ASSERT_TRUE(made.has_value()) << made.error().to_string();
  const Region& region = *made;
  const Bytes bytes = random_bytes(rng_, region.bytes.size());
  std::ranges::copy(bytes, region.bytes.begin());
  for (const auto& [offset, size] :
       {std::pair{0, 1'000'000}, {0, 0}, {999'999, 1}, {12'345, 200'000}}) {
    const ConstByteSpan expected = ConstByteSpan(bytes).subspan(static_cast<std::size_t>(offset),
                                                                static_cast<std::size_t>(size));
    Witness witness(expected, "");
    const Result<Buffer> read = this->read({region.key, {{offset, size}}}, size, &witness);
    ASSERT_TRUE(read.has_value()) << read.error().to_string();
    EXPECT_TRUE(std::ranges::equal(read->bytes(), expected));
    EXPECT_TRUE(witness.saw_all());
  }
}

TEST_P(TransportConformance, RunsOfARegionComeBackToBack) {
  const Region region =
      sync_wait(server_.executor(), ends_.server->allocate_region(1'000'000)).value();
  const Bytes bytes = random_bytes(rng_, region.bytes.size());
  std::ranges::copy(bytes, region.bytes.begin());
  const std::vector<RegionRun> runs = {{900'000, 100'000}, {0, 0}, {17, 1}, {0, 70'000}, {5, 0}};
  Bytes expected;
  for (const auto& [offset, size] : runs) {
    const auto run = ConstByteSpan(bytes).subspan(static_cast<std::size_t>(offset),
                                                  static_cast<std::size_t>(size));
    expected.insert(expected.end(), run.begin(), run.end());
  }
  Witness witness(expected, "");
  const Result<Buffer> read = this->read({region.key, runs}, 200'000, &witness);
  ASSERT_TRUE(read.has_value()) << read.error().to_string();
  EXPECT_TRUE(std::ranges::equal(read->bytes(), expected));
  EXPECT_TRUE(witness.saw_all());
  EXPECT_EQ(this->read({region.key, {}}, 0).value().size(), 0);
  EXPECT_EQ(this->read({region.key, runs}, std::ssize(expected) - 1).error().code(),
            Code::kResourceExhausted);
  EXPECT_EQ(this->read({region.key, {{0, 1}, {1'000'000, 1}}}, 10).error().code(),
            Code::kInvalidArgument);
}

TEST_P(TransportConformance, ReadsOfWhatIsNotThereAreRefused) {
  EXPECT_EQ(sync_wait(server_.executor(), ends_.server->allocate_region(0)).error().code(),
            Code::kInvalidArgument);
  const Region region = sync_wait(server_.executor(), ends_.server->allocate_region(1000)).value();
  EXPECT_EQ(read({region.key, {{0, 100}}}, 99).error().code(), Code::kResourceExhausted);
  EXPECT_EQ(read({region.key, {{1000, 1}}}, 1).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(read({region.key, {{-1, 1}}}, 1).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(read({region.key, {{1, std::int64_t{1} << 62}}}, 1).error().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(read({"garbage", {{0, 1}}}, 1).error().code(), Code::kInvalidArgument);
  std::string damaged = region.key;
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  EXPECT_EQ(read({damaged, {{0, 1}}}, 1).error().code(), Code::kInvalidArgument);
  Buffer into(1);
  EXPECT_EQ(run_task(client_, client_end().read(GetParam().nobody, {region.key, {{0, 1}}},
                                                std::move(into), nullptr, Deadline::never()))
                .error()
                .code(),
            Code::kUnavailable);
}

// Where lanes have them.
class PlacedPayloads : public TransportConformance {
 protected:
  static constexpr std::uint64_t kTicket = 0x1234567887654321;

  void SetUp() override {
    TransportConformance::SetUp();
    if (std::string_view(GetParam().lanes) == "tcp") GTEST_SKIP() << "no memory is shared";
    region_ = sync_wait(server_.executor(), ends_.server->allocate_region(4'000'000)).value();
    std::ranges::fill(region_.bytes, std::byte{0});
  }
  // A call whose payload begins where the runs say; the ticket is at 64.
  Result<Reply> place(std::vector<RegionRun> runs, std::vector<ConstByteSpan> payload,
                      Departure* departure = nullptr, std::int64_t ticket_offset = 64) {
    Request request(1, "hello");
    request.payload = std::move(payload);
    request.departure = departure;
    request.room = RegionRoom{.to = {.key = region_.key, .runs = std::move(runs)},
                              .ticket_offset = ticket_offset,
                              .ticket = kTicket};
    return run_task(client_, client_end().call(node_, std::move(request), Buffer(1'000'000),
                                               Deadline::never()));
  }
  // Why nothing has left.
  Code unplaced(std::vector<RegionRun> runs, std::vector<ConstByteSpan> payload,
                Departure* departure = nullptr, std::int64_t ticket_offset = 64) {
    return place(std::move(runs), std::move(payload), departure, ticket_offset)
        .value()
        .unplaced.code();
  }
  ConstByteSpan at(std::size_t offset, std::size_t bytes) const {
    return ConstByteSpan(region_.bytes).subspan(offset, bytes);
  }

  Region region_;
};

// Counts what it is told of.
class Leaving final : public Departure {
 public:
  void leaving(std::int64_t bytes) override {
    EXPECT_GT(bytes, left);
    left = bytes;
  }
  std::int64_t left = 0;
};

TEST_P(PlacedPayloads, AreWhereTheyBelongWhenTheServiceIsAsked) {
  const Bytes bytes = random_bytes(rng_, 3'000'100);
  const ConstByteSpan whole = bytes;
  put_ticket(region_.bytes.data() + 64, kTicket);
  Leaving departure;
  const auto reply = place(
      {{.offset = 64, .bytes = 2'500'000},
       {.offset = 9, .bytes = 0},
       {.offset = 2'600'001, .bytes = 500'000}},
      {whole.first(1), {}, whole.subspan(1, 2'700'000), whole.subspan(2'700'001)}, &departure);
  ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
  EXPECT_EQ(departure.left, 3'000'100);
  EXPECT_TRUE(std::ranges::equal(at(64, 2'500'000), whole.first(2'500'000)));
  EXPECT_TRUE(std::ranges::equal(at(2'600'001, 500'000), whole.subspan(2'500'000, 500'000)));
  EXPECT_TRUE(std::ranges::equal(reply->payload.bytes(), whole.last(100))) << "what is behind";
}

TEST_P(PlacedPayloads, NeedATicketWhichIsTakenOnce) {
  const Bytes bytes = random_bytes(rng_, 1000);
  Leaving departure;
  EXPECT_EQ(unplaced({{64, 1000}}, {bytes}, &departure), Code::kAborted);
  put_ticket(region_.bytes.data() + 64, kTicket + 1);
  EXPECT_EQ(unplaced({{64, 1000}}, {bytes}, &departure), Code::kAborted);
  EXPECT_EQ(departure.left, 0);
  put_ticket(region_.bytes.data() + 64, kTicket);
  EXPECT_EQ(unplaced({{64, 1000}}, {bytes}, &departure), Code::kOk);
  EXPECT_EQ(unplaced({{64, 1000}}, {bytes}), Code::kAborted);
  EXPECT_EQ(departure.left, 1000);
  put_ticket(region_.bytes.data() + 64, kTicket);
  EXPECT_TRUE(take_ticket(region_.bytes.data() + 64, kTicket)) << "the owner was faster";
  EXPECT_EQ(unplaced({{64, 1000}}, {bytes}), Code::kAborted);
  EXPECT_EQ(echo_.calls, 1);
}

TEST_P(PlacedPayloads, OfPlacesThatAreNotThereAreRefused) {
  const Bytes bytes = random_bytes(rng_, 1000);
  put_ticket(region_.bytes.data() + 64, kTicket);
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  for (const RegionRun run :
       {RegionRun{3'999'999, 2}, {-1, 1}, {0, -1}, {1, kHuge}, {kHuge, 1}, {0, 1001}}) {
    EXPECT_EQ(unplaced({{0, 0}, run}, {bytes}), Code::kInvalidArgument) << run.offset;
  }
  for (const std::int64_t ticket :
       {std::int64_t{-8}, std::int64_t{3'999'996}, std::int64_t{65}, kHuge}) {
    EXPECT_EQ(unplaced({{64, 10}}, {bytes}, nullptr, ticket), Code::kInvalidArgument);
  }
  const std::string key = std::exchange(region_.key, "garbage");
  EXPECT_EQ(unplaced({{64, 10}}, {bytes}), Code::kInvalidArgument);
  region_.key = key;
  EXPECT_EQ(echo_.calls, 0);
  EXPECT_EQ(unplaced({{64, 10}}, {bytes}), Code::kOk) << "the ticket is still there";
  put_ticket(region_.bytes.data() + 64, kTicket);
  EXPECT_EQ(unplaced({}, {}), Code::kOk);
}

INSTANTIATE_TEST_SUITE_P(Transports, PlacedPayloads, testing::ValuesIn(kTransportKinds),
                         transport_kind_name);

TEST_P(TransportConformance, LanesWithoutSharedMemoryTakeNoPlacedPayload) {
  if (std::string_view(GetParam().lanes) != "tcp") GTEST_SKIP() << "they do";
  const Region region = sync_wait(server_.executor(), ends_.server->allocate_region(1000)).value();
  Request request(1, "hello");
  request.room = RegionRoom{.to = {.key = region.key, .runs = {}}};
  EXPECT_EQ(
      run_task(client_, client_end().call(node_, std::move(request), Buffer(0), Deadline::never()))
          .value()
          .unplaced.code(),
      Code::kFailedPrecondition);
}

TEST_P(TransportConformance, ReplyLargerThanTheBufferIsRefused) {
  const Bytes bytes = random_bytes(rng_, 1000);
  EXPECT_EQ(call(node_, 1, {bytes}, 999).error().code(), Code::kResourceExhausted);
}

TEST_P(TransportConformance, UnknownPeerIsUnavailable) {
  EXPECT_EQ(call(GetParam().nobody, 1, {}, 0).error().code(), Code::kUnavailable);
}

TEST_P(TransportConformance, RequestThatIsNotUnderstoodComesBackAsItsStatus) {
  EXPECT_EQ(call(node_, 3, {}, 0).error().code(), Code::kInvalidArgument);
}

TEST_P(TransportConformance, CallReturnsByItsDeadlineWhenThePeerIsStuck) {
  const auto begin = clock_.now();
  const Result<Reply> reply = call(node_, 2, {}, 100, Deadline::after(clock_, 20ms));
  EXPECT_EQ(reply.error().code(), Code::kDeadlineExceeded);
  EXPECT_GE(clock_.now() - begin, 20ms);
  // The server is still at it and may write to the buffer; letting it go must be harmless.
  asio::post(server_.executor(), [this] { echo_.release(); });
}

TEST_P(TransportConformance, CallsOfOneClientRunSideBySide) {
  std::optional<Result<Reply>> slow;
  asio::co_spawn(
      client_,
      client_end().call(node_, Request(2, "slow"), Buffer(10), Deadline::after(clock_, 10s)),
      [&slow](std::exception_ptr, Result<Reply> reply) { slow = std::move(reply); });
  EXPECT_EQ(call(node_, 1, {}, 10).value().header, "re: hello");
  EXPECT_FALSE(slow.has_value());
  asio::post(server_.executor(), [this] { echo_.release(); });
  const auto work = asio::make_work_guard(client_);
  while (!slow.has_value()) client_.run_one();
  EXPECT_EQ(slow->value().header, "re: slow");
}

TEST_P(TransportConformance, HealthOfAPeerIsKnown) {
  const auto health = [this](const Address& peer) {
    return run_task(client_, client_end().health(peer)).value();
  };
  EXPECT_EQ(health(GetParam().nobody).state, PeerState::kClosed);
  EXPECT_TRUE(call(node_, 1, {}, 0).has_value());
  EXPECT_EQ(health(node_).state, PeerState::kUp);
  EXPECT_EQ(health(node_).lanes, GetParam().lanes);
}

TEST_P(TransportConformance, StoppedServiceIsUnavailable) {
  EXPECT_TRUE(sync_wait(server_.executor(), ends_.server->stop(node_)).ok());
  EXPECT_EQ(call(node_, 1, {}, 0).error().code(), Code::kUnavailable);
}

TEST_P(TransportConformance, ServiceHearsThatAConnectionHasEnded) {
  EXPECT_TRUE(call(node_, 1, {}, 0).has_value());
  EXPECT_EQ(echo_.closed_count, 0);
  EXPECT_TRUE(sync_wait(server_.executor(), ends_.server->stop(node_)).ok());
  EXPECT_EQ(echo_.closed_count, 1);
}

TEST_P(TransportConformance, AddressInUseIsRefused) {
  EXPECT_EQ(listen(node_).status().code(), Code::kAlreadyExists);
}

INSTANTIATE_TEST_SUITE_P(Transports, TransportConformance, testing::ValuesIn(kTransportKinds),
                         transport_kind_name);

}  // namespace
}  // namespace icefield
