// Peers that were killed in the middle of writing into a process's queue in shared memory: the
// queue is stuck for ever, its owner notices and goes on with another.
#include "transport/ucx/hearing.h"

#include <gtest/gtest.h>

#include "common/hash.h"
#include "common/shard.h"
#include "proto/transport.pb.h"
#include "tests/support/run_task.h"
#include "tests/support/stuck_queue.h"
#include "tests/support/transport_kinds.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/ucx_transport.h"

namespace icefield {
namespace {

using asio::ip::tcp;
using namespace std::chrono_literals;
using ucx::UcxContext;
using ucx::UcxWorker;

// A transport with a shard of its own, and its queue.
struct End {
  End() : transport(make_ucx(shard.executor(), UcxOptions())) { queue.find(); }
  ~End() {
    EXPECT_TRUE(sync_wait(shard.executor(), transport->shutdown()).ok());
    shard.stop();
  }
  Result<Address> listen(Service& service) {
    return sync_wait(shard.executor(), transport->listen("127.0.0.1:0", shard.executor(), service));
  }
  Status ask(const Address& peer, std::chrono::milliseconds patience) {
    const Deadline deadline = Deadline::after(SystemClock(), patience);
    return run_task(transport->call(peer, Request(1, "x"), Buffer(0), deadline)).status();
  }
  std::int64_t connections() {
    return sync_wait(shard.executor(), transport->usage()).value().connections;
  }

  StuckQueue queue;
  Shard shard;
  std::unique_ptr<UcxTransport> transport;
};

// One that shakes hands, on either side, and then goes without saying goodbye.
class Victim {
 public:
  Victim() : acceptor_(shard_.executor()), socket_(shard_.executor()) {
    EXPECT_TRUE(on_shard(open()).ok());
  }
  ~Victim() {
    EXPECT_TRUE(on_shard(close()).ok());
    shard_.stop();
  }

  // As a client of a node.
  Status connect_to(const Address& node) { return on_shard(connect(node)); }
  // As a node: takes the next client.
  Address address() const { return address_; }
  void accept_one() {
    asio::co_spawn(shard_.executor(), accept(), [this](std::exception_ptr, const Status& status) {
      accepted_.set_value(status);
    });
  }
  Status accepted() { return accepted_.get_future().get(); }

  void die() {
    asio::post(shard_.executor(), [this] { socket_.close(); });
  }

 private:
  template <class R>
  R on_shard(asio::awaitable<R> task) {
    return sync_wait(shard_.executor(), std::move(task));
  }
  Task<> open() {
    UcxOptions options;
    options.lanes = UcxLanes::kSharedMemory;
    ICE_CO_TRY(auto context, UcxContext::create(options));
    ICE_CO_TRY(worker_, UcxWorker::create(shard_.executor(), std::move(context)));
    const tcp::endpoint any(asio::ip::address_v4::loopback(), 0);
    acceptor_.open(any.protocol());
    acceptor_.bind(any);
    acceptor_.listen();
    address_ = ucx::format_address("127.0.0.1", acceptor_.local_endpoint().port());
    co_return Status();
  }
  Task<> close() {
    co_await worker_->stop();
    worker_ = nullptr;
    co_return Status();
  }
  Task<> connect(Address node) {
    ICE_CO_TRY(const ucx::HostPort at, ucx::parse_address(node));
    socket_.connect({asio::ip::address_v4::loopback(), at.port});
    ICE_CO_TRY(co_await ucx::read_message<proto::Hello>(socket_));
    proto::ConnectRequest request;
    request.set_wire_version(ucx::kWireVersion);
    request.set_worker_address(worker_->address());
    request.set_address_xxh3(xxh3(as_bytes(worker_->address()), 0));
    request.set_connection(1);
    ICE_CO_TRY(co_await ucx::write_frame(socket_, request.SerializeAsString()));
    ICE_CO_TRY(const auto reply, co_await ucx::read_message<proto::ConnectReply>(socket_));
    co_return Status(static_cast<Code>(reply.code()), reply.message());
  }
  Task<> accept() {
    boost::system::error_code error;
    co_await acceptor_.async_accept(socket_, asio::redirect_error(asio::use_awaitable, error));
    proto::Hello hello;
    hello.set_wire_version(ucx::kWireVersion);
    ICE_CO_TRY(co_await ucx::write_frame(socket_, hello.SerializeAsString()));
    ICE_CO_TRY(co_await ucx::read_message<proto::ConnectRequest>(socket_));
    proto::ConnectReply reply;
    reply.set_worker_address(worker_->address());
    reply.set_address_xxh3(xxh3(as_bytes(worker_->address()), 0));
    reply.set_connection(1);
    reply.set_max_calls(1);
    reply.set_max_request_bytes(1 << 20);
    co_return co_await ucx::write_frame(socket_, reply.SerializeAsString());
  }

  Shard shard_;
  std::unique_ptr<UcxWorker> worker_;
  tcp::acceptor acceptor_;
  Address address_;
  tcp::socket socket_;
  std::promise<Status> accepted_;
};

// Until `node` answers `end` again, which may take some attempts.
void expect_answer(End& end, const Address& node) {
  Status status;
  for (int i = 0; i < 200; ++i) {
    status = end.ask(node, 100ms);
    if (status.ok()) return;
  }
  ADD_FAILURE() << status.to_string();
}

TEST(Hearing, IsLostWhenAnEntryIsNeverFilled) {
  Shard shard;
  StuckQueue queue;
  auto context = UcxContext::create(UcxOptions()).value();
  auto worker = UcxWorker::create(shard.executor(), std::move(context)).value();
  queue.find();
  EXPECT_TRUE(sync_wait(shard.executor(), ucx::hears(*worker)));
  EXPECT_TRUE(sync_wait(shard.executor(), ucx::hears(*worker))) << "once more";
  queue.get_stuck();
  EXPECT_FALSE(sync_wait(shard.executor(), ucx::hears(*worker)));
  auto stop = [](std::unique_ptr<UcxWorker> stopped) -> Task<> {
    co_await stopped->stop();
    co_return Status();
  };
  EXPECT_TRUE(sync_wait(shard.executor(), stop(std::move(worker))).ok());
  shard.stop();
}

TEST(Hearing, ANodeGetsItBack) {
  EchoService echo;
  End server;
  End client;
  Victim victim;
  const Address node = server.listen(echo).value();
  const Region region =
      sync_wait(server.shard.executor(), server.transport->allocate_region(1000)).value();
  std::ranges::fill(region.bytes, std::byte{7});
  ASSERT_TRUE(client.ask(node, 10s).ok());
  ASSERT_TRUE(victim.connect_to(node).ok());
  server.queue.get_stuck();
  EXPECT_EQ(client.ask(node, 100ms).code(), Code::kDeadlineExceeded);
  victim.die();
  expect_answer(client, node);
  const Buffer read = run_task(client.transport->read(node, {region.key, {{10, 10}}}, Buffer(10),
                                                      nullptr, Deadline::after(SystemClock(), 10s)))
                          .value();
  EXPECT_EQ(std::ranges::count(read.bytes(), std::byte{7}), 10) << "its regions stay";
}

TEST(Hearing, AClientGetsItBack) {
  EchoService echo;
  End server;
  End client;
  Victim victim;
  const Address node = server.listen(echo).value();
  ASSERT_TRUE(client.ask(node, 10s).ok());
  victim.accept_one();
  EXPECT_EQ(client.ask(victim.address(), 100ms).code(), Code::kDeadlineExceeded);
  ASSERT_TRUE(victim.accepted().ok());
  client.queue.get_stuck();
  EXPECT_EQ(client.ask(node, 100ms).code(), Code::kDeadlineExceeded);
  victim.die();
  expect_answer(client, node);
}

// The others' connections stay.
TEST(Hearing, IsNotDoubtedAfterAGoodbyeAndFoundFineAfterOthers) {
  EchoService echo;
  End server;
  End client;
  const Address node = server.listen(echo).value();
  ASSERT_TRUE(client.ask(node, 10s).ok());
  {
    End other;
    ASSERT_TRUE(other.ask(node, 10s).ok());
  }
  {
    Victim victim;
    ASSERT_TRUE(victim.connect_to(node).ok());
    victim.die();
    while (server.connections() > 1) std::this_thread::yield();
  }
  const Status status = client.ask(node, 10s);
  EXPECT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(server.connections(), 1);
}

}  // namespace
}  // namespace icefield
