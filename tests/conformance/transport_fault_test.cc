// What every Transport promises when peers are slow, frozen or lost: every call returns by its
// deadline with a status that says what to do, right bytes or none, and everything that a call
// holds comes back. Below, the same for a bad cable between UCX's ends.
#include <gmock/gmock.h>
#include <malloc.h>

#include <boost/asio/use_future.hpp>

#include "tests/support/frozen.h"
#include "tests/support/objects.h"
#include "tests/support/own_sockets.h"
#include "tests/support/tcp_relay.h"
#include "tests/support/transport_kinds.h"
#include "transport/ucx/handshake.h"

namespace icefield {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

// Far beyond what a loaded machine does to a timer: a call that takes longer was forgotten.
constexpr auto kForgotten = 10s;
constexpr int kCredits = 32;  // max_calls of transport_kinds.h
constexpr int kMoreThanTheCredits = 100;

// Calls under way side by side, each noted as it ends.
class Calls {
 public:
  Calls(asio::io_context& io, Transport& transport) : io_(io), transport_(transport) {}

  void start(const Address& peer, MethodId method, std::string header, ConstByteSpan payload,
             Deadline deadline) {
    Request request(method, std::move(header));
    request.payload.push_back(payload);
    ++started_;
    auto call = transport_.call(peer, std::move(request),
                                Buffer(static_cast<std::int64_t>(payload.size())), deadline);
    asio::co_spawn(io_, std::move(call), [this, payload](std::exception_ptr, Result<Reply> reply) {
      ended_.push_back(reply.status());
      if (!reply.has_value()) return;
      EXPECT_TRUE(std::ranges::equal(std::as_const(reply->payload).bytes(), payload));
    });
  }
  const std::vector<Status>& wait() {
    io_.restart();
    const auto work = asio::make_work_guard(io_);
    const auto begin = std::chrono::steady_clock::now();
    while (std::ssize(ended_) < started_) io_.run_one();
    EXPECT_LT(std::chrono::steady_clock::now() - begin, kForgotten);
    return ended_;
  }

 private:
  asio::io_context& io_;
  Transport& transport_;
  std::ptrdiff_t started_ = 0;
  std::vector<Status> ended_;
};

class TransportFaults : public TransportFixture {
 protected:
  // Nothing of a call stays anywhere.
  void expect_all_back() {
    const auto begin = clock_.now();
    std::int64_t left = held() + echo_.held;
    while (left > 0 && clock_.now() - begin < kForgotten) {
      std::this_thread::yield();
      left = held() + echo_.held;  // a reply on its way counts as the service's only
    }
    EXPECT_EQ(left, 0);  // once is enough: a new connection's measurement may take some again
  }
  void expect_service() {
    const Bytes bytes = random_bytes(rng_, 200'000);
    const Result<Reply> reply =
        call(node_, 1, {bytes}, 200'000, Deadline::after(clock_, kForgotten));
    ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
    EXPECT_TRUE(std::ranges::equal(reply->payload.bytes(), bytes));
  }
};

TEST_P(TransportFaults, DelayedRepliesComeInTimeOrNotAtAll) {
  const Bytes bytes = random_bytes(rng_, 100'000);
  Calls calls(client_, client_end());
  const auto begin = clock_.now();
  for (int i = 0; i < kMoreThanTheCredits; ++i) {
    calls.start(node_, 4, std::to_string(i % 2 * 1000), bytes, Deadline::after(clock_, 500ms));
  }
  int in_time = 0;
  for (const Status& status : calls.wait()) {
    in_time += status.ok() ? 1 : 0;
    EXPECT_TRUE(status.ok() || status.code() == Code::kDeadlineExceeded) << status.to_string();
  }
  EXPECT_GE(in_time, 1);
  EXPECT_LE(in_time, kMoreThanTheCredits / 2) << "the others come half a second late";
  EXPECT_GE(clock_.now() - begin, 500ms);
  expect_all_back();
  expect_service();
}

TEST_P(TransportFaults, HalfOpenPeerCostsTheDeadlineAndServesAgainAfterwards) {
  expect_service();  // so that the connection is there
  const Bytes bytes = random_bytes(rng_, 100'000);
  for (int round = 0; round < 2; ++round) {
    {
      const Frozen frozen(server_);
      Calls calls(client_, client_end());
      for (int i = 0; i < kMoreThanTheCredits; ++i) {
        calls.start(node_, 1, "", bytes, Deadline::after(clock_, 30ms));
      }
      for (const Status& status : calls.wait()) EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
    }
    expect_service();
    expect_all_back();
  }
}

// Large ones wait for their turn to leave, and some of them never get it.
TEST_P(TransportFaults, CallsThatNeverLeftGiveTheirCreditsBack) {
  expect_service();
  {
    const Bytes bytes = random_bytes(rng_, 4'000'000);
    const Frozen frozen(server_);
    Calls calls(client_, client_end());
    for (int i = 0; i < kCredits - 1; ++i) {
      calls.start(node_, 1, "", bytes, Deadline::after(clock_, 30ms));
    }
    for (const Status& status : calls.wait()) EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  }
  expect_service();
  expect_all_back();
  const int before = echo_.calls;
  const Bytes bytes = random_bytes(rng_, 1000);
  const Deadline limit = Deadline::after(clock_, kForgotten / 2);
  Calls calls(client_, client_end());
  for (int i = 0; i < kCredits; ++i) calls.start(node_, 2, "", bytes, limit);
  client_.restart();
  while (echo_.calls < before + kCredits && !limit.passed(clock_)) client_.poll();
  EXPECT_EQ(echo_.calls, before + kCredits) << "side by side";
  asio::post(server_.executor(), [this] { echo_.release(); });
  for (const Status& status : calls.wait()) EXPECT_TRUE(status.ok()) << status.to_string();
}

TEST_P(TransportFaults, CallsUnderWayEndWithTheirPeer) {
  const Bytes bytes = random_bytes(rng_, 100'000);
  Calls calls(client_, client_end());
  for (int i = 0; i < 20; ++i) calls.start(node_, 2, "", bytes, Deadline::never());
  while (echo_.calls < 20) client_.poll();
  asio::post(server_.executor(), [this] { echo_.release(); });
  EXPECT_TRUE(sync_wait(server_.executor(), ends_.server->shutdown()).ok());
  for (const Status& status : calls.wait()) {
    EXPECT_TRUE(status.ok() || status.code() == Code::kUnavailable) << status.to_string();
  }
  EXPECT_EQ(call(node_, 1, {}, 0).error().code(), Code::kUnavailable);
  expect_all_back();
}

INSTANTIATE_TEST_SUITE_P(Transports, TransportFaults, testing::ValuesIn(kTransportKinds),
                         transport_kind_name);

// ----------------------------------------------------------- a client that stops in mid-request

// Stops the thread that sends, until it goes. By then the receiver has the first fragments: no more
// than eight of 480 KB are under way.
class Stall final : public Departure {
 public:
  static constexpr std::int64_t kPayloadBytes = 8'000'000;
  ~Stall() override { go_on(); }
  void leaving(std::int64_t bytes) override {
    if (bytes > 6'000'000) until_.wait();
  }
  void go_on() {
    if (!std::exchange(gone_on_, true)) thaw_.set_value();
  }

 private:
  bool gone_on_ = false;
  std::promise<void> thaw_;
  const std::shared_future<void> until_ = thaw_.get_future().share();
};

class StalledClient : public TransportFaults {
 protected:
  std::future<Result<Reply>> start(const Address& node, MethodId method, ConstByteSpan payload,
                                   Departure* departure) {
    Request request(method, "");
    request.payload.push_back(payload);
    request.departure = departure;
    auto call = client_end().call(node, std::move(request),
                                  Buffer(static_cast<std::int64_t>(payload.size())),
                                  Deadline::after(clock_, 2 * kForgotten));
    return asio::co_spawn(client_shard_.executor(), std::move(call), asio::use_future);
  }
  static std::int64_t calls_at(Shard& shard, Transport& server) {
    auto usage = static_cast<UcxTransport&>(server).usage();
    return sync_wait(shard.executor(), std::move(usage)).value().calls;
  }
  // Beside the fixture's, with options of a test and a shard of its own.
  struct OwnServer {
    OwnServer(const std::string& lanes, UcxOptions options, Service& service) {
      options.lanes = lanes == "tcp" ? UcxLanes::kTcp : UcxLanes::kAuto;
      transport = make_ucx(shard.executor(), options);
      auto listening = transport->listen("127.0.0.1:0", shard.executor(), service);
      node = sync_wait(shard.executor(), std::move(listening)).value();
    }
    ~OwnServer() { EXPECT_TRUE(sync_wait(shard.executor(), transport->shutdown()).ok()); }

    Shard shard;
    std::unique_ptr<UcxTransport> transport;
    Address node;
  };
  std::future<Status> stop() {
    auto stopped = ends_.server->stop(node_);
    return asio::co_spawn(server_.executor(), std::move(stopped), asio::use_future);
  }

  const Bytes half_ = random_bytes(rng_, Stall::kPayloadBytes);
};

TEST_P(StalledClient, DoesNotKeepTheServerFromStopping) {
  expect_service();
  expect_all_back();
  Stall stall;
  std::future<Result<Reply>> call = start(node_, 1, half_, &stall);
  while (calls_at(server_, *ends_.server) < 1) std::this_thread::yield();
  std::future<Status> stopped = stop();
  EXPECT_EQ(stopped.wait_for(kForgotten), std::future_status::ready);
  stall.go_on();
  EXPECT_EQ(call.get().status().code(), Code::kUnavailable);
  EXPECT_TRUE(stopped.get().ok());
}

TEST_P(StalledClient, IsRefusedByAServerThatStopsButNotCutOff) {
  expect_service();
  expect_all_back();
  const int before = echo_.calls;
  std::future<Result<Reply>> whole = start(node_, 2, std::span(half_).first(1000), nullptr);
  while (echo_.calls == before) std::this_thread::yield();
  Stall stall;
  std::future<Result<Reply>> half = start(node_, 1, half_, &stall);
  while (calls_at(server_, *ends_.server) < 2) std::this_thread::yield();
  std::future<Status> stopped = stop();
  sync_wait(server_.executor(), ends_.held(*ends_.server)).value();  // stop() has begun
  stall.go_on();
  EXPECT_THAT(half.get().status().message(), HasSubstr("stopping"));
  EXPECT_THAT(call(node_, 1, {}, 0).status().message(), HasSubstr("stopping")) << "not cut off";
  asio::post(server_.executor(), [this] { echo_.release(); });
  const Status answered = whole.get().status();
  EXPECT_TRUE(answered.ok()) << answered.to_string();
  EXPECT_TRUE(stopped.get().ok());
}

// Its replies are many fragments, of which few are under way at a time.
TEST_P(StalledClient, GetsTheWholeReplyFromAServerThatStops) {
  expect_service();  // this connection is measured, the next one is not
  expect_all_back();
  UcxOptions options;
  options.close_timeout = kForgotten;
  OwnServer own(GetParam().lanes, options, echo_);
  auto& [shard, server, node] = own;
  const Bytes bytes = random_bytes(rng_, 24'000'000);
  std::future<Result<Reply>> call = start(node, 2, bytes, nullptr);
  while (echo_.calls < 2) std::this_thread::yield();
  std::future<Status> stopped;
  {
    const Frozen frozen(client_shard_);
    asio::post(shard.executor(), [this] { echo_.release(); });
    while (calls_at(shard, *server) > 0) std::this_thread::yield();  // it is being sent
    stopped = asio::co_spawn(shard.executor(), server->stop(node), asio::use_future);
    EXPECT_EQ(calls_at(shard, *server), 0);  // stop() has begun
  }
  const Result<Reply> reply = call.get();
  EXPECT_TRUE(reply.has_value() && std::ranges::equal(std::as_const(reply->payload).bytes(), bytes))
      << reply.status().to_string();
  EXPECT_TRUE(stopped.get().ok());
}

// The server looks for the next fragment, but not each time before others get their turn.
TEST_P(StalledClient, DoesNotTakeTheTimeOfOthersFromAServerThatPolls) {
  constexpr int kTurns = 100;
  UcxOptions options;
  options.poll = true;
  OwnServer own(GetParam().lanes, options, echo_);
  auto& [shard, server, node] = own;
  EXPECT_TRUE(call(node, 1, {std::span(half_).first(1000)}, 1000).has_value());
  {
    Stall stall;
    std::future<Result<Reply>> half = start(node, 1, half_, &stall);
    while (calls_at(shard, *server) < 1) std::this_thread::yield();
    const auto turns = [this]() -> Task<std::chrono::nanoseconds> {
      const auto begin = clock_.now();
      for (int i = 0; i < kTurns; ++i) {
        co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
      }
      co_return clock_.now() - begin;
    };
    std::chrono::nanoseconds least = kForgotten;
    for (int i = 0; i < 20; ++i) {
      least = std::min(least, sync_wait(shard.executor(), turns()).value());
    }
    EXPECT_LT(least, kTurns * 50us);
    stall.go_on();
    EXPECT_TRUE(half.get().has_value());
  }
}

// Who takes no replies runs out of credits, as who does not finish its requests does.
TEST_P(StalledClient, HoldsNoMoreRepliesThanItMay) {
  expect_service();  // this connection is measured, the next one is not
  expect_all_back();
  UcxOptions options;
  options.max_unsent_bytes = 1'000'000;
  OwnServer own(GetParam().lanes, options, echo_);
  auto& [shard, server, node] = own;
  const Bytes bytes = random_bytes(rng_, 24'000'000);
  std::future<Result<Reply>> large = start(node, 2, bytes, nullptr);
  while (echo_.calls < 2) std::this_thread::yield();
  std::future<Result<Reply>> small = start(node, 2, ConstByteSpan(bytes).first(1000), nullptr);
  while (echo_.calls < 3) std::this_thread::yield();
  {
    const Frozen frozen(client_shard_);
    asio::post(shard.executor(), [this] { echo_.release(); });
    while (echo_.held < 2 && calls_at(shard, *server) > 0) std::this_thread::yield();
    EXPECT_EQ(calls_at(shard, *server), 1) << "the small one, behind the reply to the large one";
  }
  EXPECT_TRUE(large.get().has_value());
  EXPECT_TRUE(small.get().has_value());
  EXPECT_EQ(calls_at(shard, *server), 0);
}

INSTANTIATE_TEST_SUITE_P(Ucx, StalledClient,
                         testing::ValuesIn(std::begin(kTransportKinds) + 1,
                                           std::end(kTransportKinds)),
                         transport_kind_name);

// ------------------------------------------------------------------------- a cable that goes bad

class BadCable : public TransportFaults {
 protected:
  std::uint16_t port() const { return ucx::parse_address(node_).value().port; }
  std::int64_t connections() {
    auto& server = static_cast<UcxTransport&>(*ends_.server);
    return sync_wait(server_.executor(), server.usage()).value().connections;
  }
  void expect_reconnected(const Address& peer) {
    const Bytes bytes = random_bytes(rng_, 100'000);
    const Deadline limit = Deadline::after(clock_, kForgotten);
    Result<Reply> again = Status(Code::kUnavailable, "not asked yet");
    while (!again.has_value() && !limit.passed(clock_)) {
      again = call(peer, 1, {bytes}, 100'000, limit);  // at once while none is due
    }
    ASSERT_TRUE(again.has_value()) << again.error().to_string();
    EXPECT_TRUE(std::ranges::equal(again->payload.bytes(), bytes));
    while (connections() > 1 && !limit.passed(clock_)) std::this_thread::yield();
    EXPECT_EQ(connections(), 1) << "the one that was cut is gone";
  }
};

// In the middle of the introduction, wherever that is: the call fails in time, the node frees what
// it had for the connection and serves the next one.
TEST_P(BadCable, AnIntroductionThatBreaksOffAnywhereCostsNoMoreThanTheDeadline) {
  const Bytes bytes = random_bytes(rng_, 1000);
  for (const CableFault fault : {CableFault::kClose, CableFault::kSilence, CableFault::kFlip}) {
    for (const bool from_server : {false, true}) {
      for (const std::int64_t at : {0, 1, 4, 7, 8, 9, 12, 30}) {
        TcpRelay relay(port(), {.fault = fault, .at = at, .from_server = from_server});
        const auto begin = clock_.now();
        const Result<Reply> reply =
            call(relay.address(), 1, {bytes}, 1000, Deadline::after(clock_, 50ms));
        EXPECT_LT(clock_.now() - begin, kForgotten);
        // A flip where it does not matter, in the challenge that nobody answers without tokens.
        const bool harmless = fault == CableFault::kFlip && reply.has_value() &&
                              std::ranges::equal(reply->payload.bytes(), bytes);
        EXPECT_TRUE(!reply.has_value() || harmless)
            << "fault " << static_cast<int>(fault) << " at " << at << ", server " << from_server;
      }
    }
  }
  expect_service();
  expect_all_back();
}

TEST_P(BadCable, CallsEndWhenItIsCutAndTheNextOnesConnectAgain) {
  TcpRelay relay(port(), {});
  const Bytes bytes = random_bytes(rng_, 100'000);
  Calls calls(client_, client_end());
  for (int i = 0; i < 20; ++i) calls.start(relay.address(), 2, "", bytes, Deadline::never());
  while (echo_.calls < 20) client_.poll();
  relay.cut();
  for (const Status& status : calls.wait()) EXPECT_EQ(status.code(), Code::kUnavailable);
  asio::post(server_.executor(), [this] { echo_.release(); });
  expect_all_back();
  expect_reconnected(relay.address());
}

INSTANTIATE_TEST_SUITE_P(Ucx, BadCable,
                         testing::ValuesIn(std::begin(kTransportKinds) + 1,
                                           std::end(kTransportKinds)),
                         transport_kind_name);

// UCX carries the calls on a TCP connection of its own, beside the one of the introduction.
class BadBulkCable : public BadCable {};

TEST_P(BadBulkCable, CallsEndWhenItIsCutAndTheNextOnesConnectAgain) {
  const Bytes bytes = random_bytes(rng_, 100'000);
  Calls calls(client_, client_end());
  for (int i = 0; i < 20; ++i) calls.start(node_, 2, "", bytes, Deadline::never());
  while (echo_.calls < 20) client_.poll();
  EXPECT_GE(cut_own_connections(port()), 1) << "the other end may be gone by then";
  for (const Status& status : calls.wait()) EXPECT_EQ(status.code(), Code::kUnavailable);
  asio::post(server_.executor(), [this] { echo_.release(); });
  expect_all_back();
  expect_reconnected(node_);
}

// In the middle of requests and replies.
TEST_P(BadBulkCable, ACutInMidTransferLosesNoBytesAndLeavesNone) {
  const Bytes bytes = random_bytes(rng_, 4'000'000);
  expect_service();  // so that the first round has something to cut
  int cut = 0;
  for (int round = 0; round < 10; ++round) {
    Calls calls(client_, client_end());
    for (int i = 0; i < 8; ++i) {
      calls.start(node_, 1, "", bytes, Deadline::after(clock_, kForgotten));
    }
    const auto begin = clock_.now();
    while (clock_.now() - begin < round * 1ms) client_.poll();
    cut += cut_own_connections(port());
    for (const Status& status : calls.wait()) {
      EXPECT_TRUE(status.ok() || status.code() == Code::kUnavailable) << status.to_string();
    }
    expect_all_back();
    expect_reconnected(node_);
  }
  EXPECT_GE(cut, 10);
}

// However many fragments were under way side by side: what is kept is for those that are copied.
TEST_P(BadBulkCable, MemoryForFragmentsIsBounded) {
  mallopt(M_MMAP_THRESHOLD, 256 << 10);  // so that all of it is seen in mallinfo2()
  const Bytes bytes = random_bytes(rng_, 4'000'000);
  expect_service();
  const std::size_t before = mallinfo2().hblkhd;
  for (int round = 0; round < 6; ++round) {
    Calls calls(client_, client_end());
    for (int i = 0; i < kCredits; ++i) {
      calls.start(node_, 1, "", bytes, Deadline::after(clock_, kForgotten));
    }
    for (const Status& status : calls.wait()) EXPECT_TRUE(status.ok()) << status.to_string();
  }
  expect_all_back();
  EXPECT_LT(mallinfo2().hblkhd, before + (std::size_t{2 * 16 * 512} << 10));
}

INSTANTIATE_TEST_SUITE_P(Ucx, BadBulkCable, testing::Values(kTransportKinds[1]),
                         transport_kind_name);

}  // namespace
}  // namespace icefield
