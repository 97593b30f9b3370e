// What only connections between processes have: tokens, versions, peers that do not play along.
// All of it on 127.0.0.1.
#include "transport/ucx/ucx_transport.h"

#include <gmock/gmock.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <thread>

#include "common/shard.h"
#include "common/task_scope.h"
#include "common/waiters.h"
#include "proto/transport.pb.h"
#include "tests/support/frozen.h"
#include "tests/support/test_landing.h"
#include "tests/support/transport_kinds.h"
#include "tests/support/ucx_end.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/wire.h"

namespace icefield {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr const char* kToken = "0123456789abcdef";

UcxOptions server_options() {
  UcxOptions options;
  options.tokens = {{.token = kToken, .namespaces = {"red"}}};
  return options;
}

TEST(UcxTokens, CallerMayUseWhatItsTokenGrants) {
  GateService gate;
  End server(server_options());
  const Address node = server.listen(gate).value();
  UcxOptions options;
  options.token = kToken;
  End client(options);
  EXPECT_EQ(client.ask(node, "red").value(), "yes");
  EXPECT_EQ(client.ask(node, "blue").value(), "no");
}

TEST(UcxTokens, NoTokenOrAnotherIsRefusedInWords) {
  GateService gate;
  End server(server_options());
  const Address node = server.listen(gate).value();
  for (const char* token : {"", "fedcba9876543210"}) {
    UcxOptions options;
    options.token = token;
    End client(options);
    const Status status = client.ask(node, "red").status();
    EXPECT_EQ(status.code(), Code::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("the node wants a token"));
  }
}

TEST(UcxTokens, WithoutThemEverybodyMayUseEverything) {
  GateService gate;
  End server{UcxOptions()};
  const Address node = server.listen(gate).value();
  UcxOptions options;
  options.token = kToken;  // not asked for
  End client(options);
  EXPECT_EQ(client.ask(node, "blue").value(), "yes");
}

TEST(UcxListen, BeyondThisMachineWantsTokensOrThatItIsSaid) {
  GateService gate;
  End server{UcxOptions()};
  for (const char* self : {"0.0.0.0:0", "[::]:0", "192.0.2.1:7070"}) {
    const Status status = server.listen(gate, self).status();  // refused before it binds
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << self;
    EXPECT_THAT(status.message(), HasSubstr("--token_file"));
    EXPECT_THAT(status.message(), HasSubstr("--insecure_listen"));
  }
}

using asio::ip::tcp;

// Listens on 127.0.0.1 and does with the first connection what `play` says.
class FakePeer {
 public:
  using Play = std::function<Task<>(tcp::socket&)>;
  explicit FakePeer(Play play)
      : play_(std::move(play)),
        acceptor_(shard_.executor(), tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        scope_(shard_.executor()) {
    address_ = "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
    asio::post(shard_.executor(), [this] { scope_.spawn(run()); });
  }
  ~FakePeer() {
    EXPECT_TRUE(sync_wait(shard_.executor(), close()).ok());
    shard_.stop();
  }
  const Address& address() const { return address_; }

 private:
  asio::awaitable<void> run() {
    boost::system::error_code error;
    co_await acceptor_.async_accept(socket_, asio::redirect_error(asio::use_awaitable, error));
    if (!error) (void)co_await play_(socket_);
  }
  Task<> close() {
    acceptor_.close();
    socket_.close();
    co_await scope_.join();
    co_return Status();
  }

  Shard shard_;
  const Play play_;
  tcp::acceptor acceptor_;
  tcp::socket socket_{shard_.executor()};
  TaskScope scope_;
  Address address_;
};

// Reads until the other side closes.
Task<> say_nothing(tcp::socket& socket) {
  co_await ucx::wait_for_end(socket);
  co_return Status();
}

TEST(UcxPeers, HalfOpenOneCostsNoMoreThanTheDeadline) {
  FakePeer silent(say_nothing);
  End client{UcxOptions()};
  const SystemClock clock;
  const auto begin = clock.now();
  const Result<Reply> reply = run_task(client.transport->call(
      silent.address(), Request(1, ""), Buffer(0), Deadline::after(clock, 20ms)));
  EXPECT_EQ(reply.status().code(), Code::kDeadlineExceeded);
  EXPECT_GE(clock.now() - begin, 20ms);
  EXPECT_EQ(health_of(client, silent.address()).state, PeerState::kConnecting);
}

TEST(UcxPeers, WhatIsNoAddressIsRefusedAtOnce) {
  End client{UcxOptions()};
  for (const char* address : {"", "nowhere", "127.0.0.1", "127.0.0.1:x", "::1:70"}) {
    EXPECT_EQ(client.ask(address, "").status().code(), Code::kInvalidArgument) << address;
  }
}

TEST(UcxPeers, HalfOpenOneIsGivenUpAndThenFailsAtOnce) {
  FakePeer silent(say_nothing);
  UcxOptions options;
  options.connect_timeout = 10ms;
  End client(options);
  EXPECT_EQ(client.ask(silent.address(), "").status().code(), Code::kUnavailable);
  const PeerHealth health = health_of(client, silent.address());
  EXPECT_EQ(health.state, PeerState::kFailing);
  EXPECT_EQ(health.failures, 1);
  EXPECT_THAT(health.last_failure, HasSubstr("no answer"));
}

TEST(UcxPeers, OneOfAnotherVersionIsRefusedInWords) {
  FakePeer future([](tcp::socket& socket) -> Task<> {
    proto::Hello hello;
    hello.set_wire_version(ucx::kWireVersion + 1);
    ICE_CO_TRY(co_await ucx::write_frame(socket, hello.SerializeAsString()));
    co_return co_await say_nothing(socket);
  });
  End client{UcxOptions()};
  const Status status = client.ask(future.address(), "").status();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("version " + std::to_string(ucx::kWireVersion + 1)));
}

TEST(UcxPeers, ClientOfAnotherVersionIsToldSo) {
  GateService gate;
  End server{UcxOptions()};
  const Address node = server.listen(gate).value();
  const std::uint16_t port = ucx::parse_address(node).value().port;
  asio::io_context io;
  auto shake = [&io, port]() -> Task<proto::ConnectReply> {
    tcp::socket socket(io);
    boost::system::error_code error;
    const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), port);
    co_await socket.async_connect(endpoint, asio::redirect_error(asio::use_awaitable, error));
    ICE_CO_TRY(co_await ucx::read_message<proto::Hello>(socket));
    proto::ConnectRequest request;
    request.set_wire_version(ucx::kWireVersion + 1);
    request.set_worker_address("anything");
    request.set_connection(1);
    ICE_CO_TRY(co_await ucx::write_frame(socket, request.SerializeAsString()));
    co_return co_await ucx::read_message<proto::ConnectReply>(socket);
  };
  const auto reply = run_task(io, shake());
  ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
  EXPECT_EQ(static_cast<Code>(reply->code()), Code::kFailedPrecondition);
}

// A peer that is there again, at the same address, is a new one: calls reach it without help.
TEST(UcxPeers, RestartedOneIsFoundAgain) {
  GateService gate;
  auto server = std::make_unique<End>(UcxOptions());
  const Address node = server->listen(gate).value();
  End client{UcxOptions()};
  EXPECT_EQ(client.ask(node, "x").value(), "yes");
  server = nullptr;
  EXPECT_EQ(client.ask(node, "x").status().code(), Code::kUnavailable);
  EXPECT_NE(health_of(client, node).state, PeerState::kUp);
  server = std::make_unique<End>(UcxOptions());
  ASSERT_TRUE(server->listen(gate, node).has_value());
  const SystemClock clock;
  const Deadline limit = Deadline::after(clock, 10s);
  Result<std::string> answer;
  do {
    answer = client.ask(node, "x");  // at once while the next attempt is not due
  } while (!answer.has_value() && !limit.passed(clock));
  EXPECT_EQ(answer.value(), "yes");
  EXPECT_EQ(health_of(client, node).state, PeerState::kUp);
  EXPECT_EQ(health_of(client, node).failures, 0);
}

TEST(UcxPeers, WhoIsLetGoOfIsConnectedAgainWhenSomebodyAsks) {
  GateService gate;
  End server{UcxOptions()};
  const Address node = server.listen(gate).value();
  End client{UcxOptions()};
  const auto connections = [&server] { return server.transport->counters().connections.load(); };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(client.ask(node, "x").value(), "yes");
    while (connections() == 0) std::this_thread::yield();
    client.transport->disconnect(node);
    while (connections() > 0) std::this_thread::yield();
    EXPECT_EQ(health_of(client, node).state, PeerState::kClosed);
  }
  client.transport->disconnect(node);
  client.transport->disconnect("127.0.0.1:1");  // never heard of
  EXPECT_EQ(client.ask(node, "x").value(), "yes");
}

TEST(UcxPeers, WhoIsLetGoOfWhileItIsBeingConnectedEndsItsCalls) {
  GateService gate;
  End server{UcxOptions()};
  const Address node = server.listen(gate).value();
  End client{UcxOptions()};
  for (int i = 0; i < 20; ++i) {
    std::promise<Status> ended;
    const auto end = [&ended](std::exception_ptr, Result<Reply> reply) {
      ended.set_value(reply.status());
    };
    // One behind the other on the client's thread: no answer comes in between.
    const auto begin = [&] {
      auto call = client.transport->call(node, Request(1, "x"), Buffer(0), Deadline::never());
      asio::co_spawn(client.shard.executor(), std::move(call), end);
      client.transport->disconnect(node);
    };
    asio::post(client.shard.executor(), begin);
    EXPECT_EQ(ended.get_future().get().code(), Code::kUnavailable);
  }
  EXPECT_EQ(client.ask(node, "x").value(), "yes");
}

TEST(UcxPeers, FailedHandshakesAreCountedByTheirReason) {
  GateService gate;
  UcxOptions options = server_options();
  options.connect_timeout = 1s;
  End server(options);
  const Address node = server.listen(gate).value();
  const tcp::endpoint endpoint(asio::ip::address_v4::loopback(),
                               ucx::parse_address(node).value().port);
  asio::io_context io;
  // What a client of these bytes leaves behind.
  const auto say = [&](const std::string& bytes, bool leave) {
    tcp::socket socket(io);
    socket.connect(endpoint);
    boost::system::error_code ignored;
    asio::write(socket, asio::buffer(bytes), ignored);
    if (leave) socket.shutdown(tcp::socket::shutdown_send, ignored);
    std::string rest;
    asio::read(socket, asio::dynamic_buffer(rest), ignored);  // until it is closed
  };
  proto::ConnectRequest request;
  request.set_wire_version(ucx::kWireVersion + 1);
  const std::string future = request.SerializeAsString();
  const auto size = static_cast<char>(future.size());
  say("", true);
  say(std::string("ICE1") + size + std::string(3, '\0') + future.substr(1), true);
  say("GET / HTTP/1.1\r\n\r\n", false);
  say(std::string("ICE1") + size + std::string(3, '\0') + future, false);
  say("ICE1", false);  // and no more
  EXPECT_EQ(End(UcxOptions()).ask(node, "red").status().code(), Code::kFailedPrecondition);
  // The last one may still be ending.
  const auto counts = [&] {
    std::vector<std::int64_t> all;
    for (const Counter& one : server.transport->counters().by_reason) all.push_back(one.value());
    return all;
  };
  const std::vector<std::int64_t> expected = {2, 1, 1, 1, 1, 0};  // as HandshakeFailure
  const Deadline limit = Deadline::after(SystemClock(), 10s);
  while (counts() != expected && !limit.passed(SystemClock())) std::this_thread::yield();
  EXPECT_EQ(counts(), expected);
  EXPECT_EQ(server.transport->counters().connections.load(), 0);
}

// Answers requests without a header at let_go() only, which a lost connection must not wait for.
class StuckService final : public Service {
 public:
  Task<ServiceReply> handle(const Caller&, MethodId, std::string header, Payload) override {
    if (!header.empty()) co_return ServiceReply{.header = std::move(header)};
    arrived.set_value();
    while (!released_) co_await wait_.wait(Deadline::never());
    co_return ServiceReply();
  }
  void let_go() {
    released_ = true;
    wait_.notify_all();
  }
  std::promise<void> arrived;

 private:
  bool released_ = false;
  Waiters wait_;
};

TEST(UcxPeers, CallsUnderWayEndWithTheirConnectionAndEverythingComesBack) {
  StuckService stuck;
  End server{UcxOptions()};
  const Address node = server.listen(stuck).value();
  auto client = std::make_unique<End>(UcxOptions());
  const Bytes payload(100'000);
  Request request(1, "");
  request.payload.push_back(payload);
  std::promise<Status> ended;
  auto call = client->transport->call(node, std::move(request), Buffer(0), Deadline::never());
  asio::co_spawn(
      client->shard.executor(), std::move(call),
      [&ended](std::exception_ptr, Result<Reply> reply) { ended.set_value(reply.status()); });
  stuck.arrived.get_future().wait();
  const auto usage = [&server] {
    return sync_wait(server.shard.executor(), server.transport->usage()).value();
  };
  EXPECT_GE(usage().calls, 1);  // the probe of the bandwidth may be there, too
  EXPECT_GE(usage().request_bytes, 100'000);
  client = nullptr;  // closes the connection
  EXPECT_EQ(ended.get_future().get().code(), Code::kUnavailable);
  asio::post(server.shard.executor(), [&stuck] { stuck.let_go(); });
  while (usage().connections > 0) std::this_thread::yield();
  EXPECT_EQ(usage().calls, 0);
  EXPECT_EQ(usage().request_bytes, 0);
}

TEST(UcxPeers, LossOfOneDoesNotEndCallsToAnother) {
  GateService gate;
  StuckService stuck;
  auto lost = std::make_unique<End>(UcxOptions());
  End server{UcxOptions()};
  const Address gone = lost->listen(gate).value();
  const Address node = server.listen(stuck).value();
  End client{UcxOptions()};
  EXPECT_EQ(client.ask(gone, "x").value(), "yes");
  std::promise<Status> ended;
  auto call = client.transport->call(node, Request(1, ""), Buffer(0), Deadline::never());
  asio::co_spawn(
      client.shard.executor(), std::move(call),
      [&ended](std::exception_ptr, Result<Reply> reply) { ended.set_value(reply.status()); });
  stuck.arrived.get_future().wait();
  lost = nullptr;
  while (health_of(client, gone).state == PeerState::kUp) std::this_thread::yield();
  EXPECT_EQ(client.ask(gone, "x").status().code(), Code::kUnavailable);
  EXPECT_EQ(client.ask(node, "y").value(), "y");
  asio::post(server.shard.executor(), [&stuck] { stuck.let_go(); });
  EXPECT_TRUE(ended.get_future().get().ok());
}

// Counts requests, and those whose payload is not all ones. Of method 2 the payload lands here.
class OnesService final : public Service {
 public:
  std::unique_ptr<Landing> land(const Caller&, MethodId method, std::string_view header,
                                std::int64_t payload_bytes) override {
    EXPECT_EQ(header, "header");
    if (method != 2) return nullptr;
    ++landed;
    return std::make_unique<TestLanding>(payload_bytes, landings);
  }
  Task<ServiceReply> handle(const Caller&, MethodId method, std::string, Payload payload) override {
    ++requests;
    EXPECT_EQ(payload.landing != nullptr, method == 2);
    const ConstByteSpan bytes = payload.landing == nullptr
                                    ? std::as_const(payload.buffer).bytes()
                                    : static_cast<TestLanding&>(*payload.landing).bytes();
    wrong += std::ranges::count(bytes, std::byte{1}) != payload.size();
    co_return ServiceReply();
  }
  std::atomic<int> requests = 0;
  std::atomic<int> wrong = 0;
  std::atomic<int> landed = 0;
  std::atomic<int> landings = 0;  // that have not come back
};

class HalfRequest : public testing::TestWithParam<std::tuple<UcxLanes, MethodId>> {
 protected:
  HalfRequest() {
    options_.lanes = std::get<UcxLanes>(GetParam());
    server_.emplace(options_);
    node_ = server_->listen(ones_).value();
  }
  Status send(End& client, ConstByteSpan payload, std::chrono::milliseconds patience) {
    Request request(std::get<MethodId>(GetParam()), "header");
    request.payload.push_back(payload);
    return run_task(client.transport->call(node_, std::move(request), Buffer(0),
                                           Deadline::after(SystemClock(), patience)))
        .status();
  }
  UcxTransport::Usage usage() {
    return sync_wait(server_->shard.executor(), server_->transport->usage()).value();
  }

  UcxOptions options_;
  OnesService ones_;
  std::optional<End> server_;
  Address node_;
};

TEST_P(HalfRequest, GivenUpIsNeverServedAndLeavesNothing) {
  End client(options_);
  Bytes payload(32 << 20, std::byte{1});
  ASSERT_TRUE(send(client, payload, 10s).ok());
  {
    const Frozen frozen(server_->shard);
    EXPECT_EQ(send(client, payload, 20ms).code(), Code::kDeadlineExceeded);
    std::ranges::fill(payload, std::byte{2});  // the caller has it back
  }
  std::ranges::fill(payload, std::byte{1});
  ASSERT_TRUE(send(client, payload, 10s).ok());
  EXPECT_EQ(ones_.requests, 2);
  EXPECT_EQ(ones_.wrong, 0);
  EXPECT_EQ(usage().calls, 0);
  EXPECT_EQ(ones_.landings, 0);
}

TEST_P(HalfRequest, OfAClientThatIsGoneLeavesNothing) {
  const Bytes payload(32 << 20, std::byte{1});
  std::optional<End> client(std::in_place, options_);
  ASSERT_TRUE(send(*client, payload, 10s).ok());
  {
    const Frozen frozen(server_->shard);
    EXPECT_EQ(send(*client, payload, 20ms).code(), Code::kDeadlineExceeded);
    client.reset();  // before the abort has come through
  }
  while (usage().connections > 0) std::this_thread::yield();
  EXPECT_EQ(ones_.landings, 0);
  EXPECT_EQ(ones_.requests, 1);
  EXPECT_EQ(ones_.wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(UcxPeers, HalfRequest,
                         testing::Combine(testing::Values(UcxLanes::kTcp, UcxLanes::kSharedMemory),
                                          testing::Values(MethodId{1}, MethodId{2})));

}  // namespace
}  // namespace icefield
