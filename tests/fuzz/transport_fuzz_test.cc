// Garbage at a node: on its port, in the handshake and as fragments. Whatever comes, the connection
// it came by ends or goes on, others do not notice, and everything taken comes back. By seed; a
// failure names the case.
#include <gtest/gtest.h>

#include <boost/asio/write.hpp>

#include "common/hash.h"
#include "common/rng.h"
#include "common/shard.h"
#include "proto/transport.pb.h"
#include "tests/support/test_landing.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/listener.h"
#include "transport/ucx/ucx_transport.h"

namespace icefield::ucx {
namespace {

using asio::ip::tcp;

constexpr int kPortCases = 1500;
constexpr int kFragmentConnections = 150;
constexpr int kFragmentsEach = 40;
constexpr std::int64_t kMaxRequestBytes = 1 << 20;

// Payloads of an odd length land with the service.
class EchoService final : public Service {
 public:
  std::unique_ptr<Landing> land(const Caller&, MethodId, std::string_view,
                                std::int64_t payload_bytes) override {
    if (payload_bytes % 2 == 0) return nullptr;
    return std::make_unique<TestLanding>(payload_bytes, landings);
  }
  Task<ServiceReply> handle(const Caller&, MethodId, std::string header, Payload payload) override {
    ++requests;
    auto kept = std::make_shared<Payload>(std::move(payload));
    ServiceReply reply;
    reply.header = std::move(header);
    if (kept->landing == nullptr) {
      reply.payload.push_back(std::as_const(kept->buffer).bytes());
    } else {
      reply.payload.push_back(static_cast<TestLanding&>(*kept->landing).bytes());
    }
    reply.keep_alive = std::move(kept);
    co_return reply;
  }

  std::atomic<int> landings = 0;  // that have not come back
  std::atomic<int> requests = 0;
};

// A listener and, on the same shard, whoever attacks it.
class TransportFuzz : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(on_shard(open()).ok()); }
  void TearDown() override {
    ASSERT_TRUE(on_shard(close()).ok());
    shard_.stop();
    EXPECT_EQ(echo_.landings, 0);
  }

  template <class R>
  R on_shard(asio::awaitable<R> task) {
    return sync_wait(shard_.executor(), std::move(task));
  }

  Task<> open() {
    options_.max_calls = 4;
    options_.max_request_bytes = kMaxRequestBytes;
    ICE_CO_TRY(const auto context, UcxContext::create(options_));
    ICE_CO_TRY(worker_, UcxWorker::create(shard_.executor(), context));
    ICE_CO_TRY(attacker_, UcxWorker::create(shard_.executor(), context));
    listener_ = std::make_unique<Listener>(worker_, echo_, options_, 1, lanes_log_, [] {});
    ICE_CO_TRY(const Address bound, co_await listener_->open("127.0.0.1:0"));
    ICE_CO_TRY(address_, parse_address(bound));
    co_return Status();
  }
  Task<> close() {
    co_await listener_->stop();
    co_await worker_->stop();
    co_await attacker_->stop();
    worker_ = nullptr;  // on their shard
    attacker_ = nullptr;
    listener_ = nullptr;
    co_return Status();
  }

  Task<tcp::socket> connect() {
    tcp::socket socket(shard_.executor());
    boost::system::error_code error;
    const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), address_.port);
    co_await socket.async_connect(endpoint, asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return Status(Code::kUnavailable, error.message());
    co_return socket;
  }

  // A handshake of the right form with the attacker's address. The id of the server's connection.
  Task<std::uint64_t> shake(tcp::socket& socket) {
    ICE_CO_TRY(co_await read_message<proto::Hello>(socket));
    proto::ConnectRequest request = good_request();
    ICE_CO_TRY(co_await write_frame(socket, request.SerializeAsString()));
    ICE_CO_TRY(const auto reply, co_await read_message<proto::ConnectReply>(socket));
    if (reply.code() != 0) co_return Status(static_cast<Code>(reply.code()), reply.message());
    co_return reply.connection();
  }
  proto::ConnectRequest good_request() const {
    proto::ConnectRequest request;
    request.set_wire_version(kWireVersion);
    request.set_worker_address(attacker_->address());
    request.set_address_xxh3(xxh3(as_bytes(attacker_->address()), 0));
    request.set_connection(1);
    return request;
  }

  // What a case sends: noise, or a good frame with a few bytes changed, cut off or appended.
  std::string garbage() {
    std::string text;
    if (rng_.below(3) == 0) {
      text.resize(rng_.below(200));
      for (char& c : text) c = static_cast<char>(rng_.next());
      return text;
    }
    proto::ConnectRequest request = good_request();
    if (rng_.below(2) == 0) request.set_proof(std::string(rng_.below(64), 'x'));
    const std::string body = request.SerializeAsString();
    const auto bytes = static_cast<std::uint32_t>(body.size());
    text = "ICE1" + std::string(as_text(std::as_bytes(std::span(&bytes, 1)))) + body;
    for (std::uint64_t i = rng_.below(4); i > 0; --i) {
      text[rng_.below(text.size())] = static_cast<char>(rng_.next());
    }
    if (rng_.below(3) == 0) text.resize(rng_.below(text.size() + 1));
    if (rng_.below(3) == 0) text += std::string(rng_.below(100), '\0');
    return text;
  }

  Task<> attack_port() {
    for (int i = 0; i < kPortCases; ++i) {
      ICE_CO_TRY(tcp::socket socket, co_await connect());
      const std::string text = garbage();
      boost::system::error_code ignored;
      const auto buffer = asio::buffer(text);
      co_await asio::async_write(socket, buffer,
                                 asio::redirect_error(asio::use_awaitable, ignored));
      socket.shutdown(tcp::socket::shutdown_send, ignored);
      co_await wait_for_end(socket);
    }
    co_return Status();
  }

  FragmentHeader random_fragment(std::uint64_t connection, std::size_t bytes) {
    FragmentHeader header;
    header.connection = connection;
    header.call = rng_.below(3);
    header.kind = static_cast<FragmentKind>(rng_.below(8) == 0 ? rng_.below(6) : 1);
    header.header_bytes = static_cast<std::uint32_t>(rng_.below(64));
    header.payload_bytes = bytes > header.header_bytes ? bytes - header.header_bytes : 0;
    header.reply_capacity = rng_.below(2) == 0 ? kMaxRequestBytes : rng_.below(100);
    if (rng_.below(4) == 0) header.offset = rng_.below(200);
    if (rng_.below(8) == 0) header.payload_bytes = rng_.next() >> rng_.below(64);
    if (rng_.below(8) == 0) header.header_bytes = static_cast<std::uint32_t>(rng_.next());
    return header;
  }

  Task<> attack_with_fragments() {
    const Bytes bytes(300);
    for (int i = 0; i < kFragmentConnections; ++i) {
      ICE_CO_TRY(tcp::socket socket, co_await connect());
      ICE_CO_TRY(const std::uint64_t id, co_await shake(socket));
      for (int j = 0; j < kFragmentsEach; ++j) {
        const std::size_t size = rng_.below(bytes.size());
        worker_->deliver(random_fragment(id, size), ConstByteSpan(bytes).first(size));
        co_await asio::post(shard_.executor(), asio::use_awaitable);
      }
      worker_->deliver(random_fragment(rng_.next(), 0), {});  // for nobody
      for (const auto& connection : listener_->connections()) {
        if (connection->calls_held() < 0 || connection->bytes_held() < 0) {
          co_return Status(Code::kInternal,
                           "more given back than taken, case " + std::to_string(i));
        }
      }
    }
    co_return Status();
  }

  // A request that lands by one method and ends by another. The number of those served.
  Task<int> change_method() {
    ICE_CO_TRY(tcp::socket socket, co_await connect());
    FragmentHeader header;
    ICE_CO_TRY(header.connection, co_await shake(socket));
    const Bytes bytes(1);
    header.header_bytes = 1;
    header.payload_bytes = 1;
    header.method = 1;
    worker_->deliver(header, bytes);
    header.offset = 1;
    header.method = 2;
    worker_->deliver(header, bytes);
    socket.close();
    ICE_CO_TRY(co_await everything_is_back());
    co_return echo_.requests.load();
  }

  // Until the last connection has gone, which closing the sockets brings about.
  Task<> everything_is_back() {
    while (!listener_->connections().empty()) {
      co_await asio::post(shard_.executor(), asio::use_awaitable);
    }
    co_return Status();
  }

  Task<> good_connection_works() {
    ICE_CO_TRY(tcp::socket socket, co_await connect());
    co_return (co_await shake(socket)).status();
  }

  EchoService echo_;
  UcxOptions options_;
  Shard shard_;
  SeededRng rng_{20};
  LanesLog lanes_log_{UcxLanes::kAuto};
  std::unique_ptr<UcxWorker> worker_;
  std::unique_ptr<UcxWorker> attacker_;
  std::unique_ptr<Listener> listener_;
  HostPort address_;
};

TEST_F(TransportFuzz, GarbageOnThePortClosesThatConnectionOnly) {
  const Status attacked = on_shard(attack_port());
  ASSERT_TRUE(attacked.ok()) << attacked.to_string();
  EXPECT_TRUE(on_shard(good_connection_works()).ok());
  EXPECT_TRUE(on_shard(everything_is_back()).ok());
}

TEST_F(TransportFuzz, GarbageFragmentsNeitherCrashNorLeak) {
  const Status attacked = on_shard(attack_with_fragments());
  ASSERT_TRUE(attacked.ok()) << attacked.to_string();
  EXPECT_GE(worker_->counters().stray_fragments.value(), kFragmentConnections);
  EXPECT_TRUE(on_shard(good_connection_works()).ok());
  EXPECT_TRUE(on_shard(everything_is_back()).ok());
}

TEST_F(TransportFuzz, ARequestThatChangesItsMethodIsNotServed) {
  const Result<int> served = on_shard(change_method());
  ASSERT_TRUE(served.has_value()) << served.error().to_string();
  EXPECT_EQ(*served, 0);
}

}  // namespace
}  // namespace icefield::ucx
