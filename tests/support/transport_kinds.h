// tests/support/transport_kinds.h — every transport with a service behind it, for the suites that
// all of them must pass.
#pragma once

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <thread>

#include "common/rng.h"
#include "common/shard.h"
#include "common/waiters.h"
#include "tests/support/run_task.h"
#include "transport/loopback/loopback_transport.h"
#include "transport/ucx/ucx_transport.h"

namespace icefield {

// Echoes the payload in two pieces; method 2 not before release(), 3 refuses, 4 after as many
// milliseconds as its header says.
class EchoService final : public Service {
 public:
  Task<ServiceReply> handle(const Caller&, MethodId method, std::string header,
                            Payload payload) override {
    ++calls;
    if (method == 3) co_return Status(Code::kInvalidArgument, "method 3");
    while (method == 2 && !released_) co_await stuck_.wait(Deadline::never());
    if (method == 4) {
      const auto delay = std::chrono::milliseconds(std::stoi(header));
      (void)co_await clock_.sleep_until(clock_.now() + delay);
    }
    ++held;
    const auto give_back = [this](Buffer* buffer) {
      delete buffer;
      --held;
    };
    const std::shared_ptr<Buffer> kept(new Buffer(std::move(payload.buffer)), give_back);
    ServiceReply reply;
    reply.header = "re: " + header;
    const ConstByteSpan bytes = std::as_const(*kept).bytes();
    reply.payload = {bytes.first(bytes.size() / 2), bytes.subspan(bytes.size() / 2)};
    reply.keep_alive = kept;
    co_return reply;
  }

  void closed(const Caller&) override { ++closed_count; }

  // On the service's thread. A request may come later than its caller's deadline, or never.
  void release() {
    released_ = true;
    stuck_.notify_all();
  }

  std::atomic<int> calls{0};
  std::atomic<int> closed_count{0};
  std::atomic<int> held{0};  // payloads that the transport has not given back

 private:
  SystemClock clock_;
  bool released_ = false;
  Waiters stuck_;
};

// One transport as its client and its server see it, each on a thread of its own.
struct Ends {
  std::unique_ptr<Transport> server;
  std::unique_ptr<Transport> client;  // null: the same object
  // What a transport holds for others or has not got back: calls and bytes. On its shard.
  Task<std::int64_t> (*held)(Transport& transport);
};
struct TransportKind {
  const char* name;
  Ends (*make)(asio::any_io_executor server, asio::any_io_executor client);
  Address self;    // to listen at
  Address nobody;  // where nobody listens
  const char* lanes;
};

inline Ends make_loopback_ends(asio::any_io_executor, asio::any_io_executor) {
  const auto held = [](Transport& transport) -> Task<std::int64_t> {
    co_return static_cast<LoopbackTransport&>(transport).calls_under_way();
  };
  return {std::make_unique<LoopbackTransport>(), nullptr, held};
}

inline std::unique_ptr<UcxTransport> make_ucx(asio::any_io_executor shard, UcxOptions options) {
  auto make = [shard, &options]() -> Task<std::unique_ptr<UcxTransport>> {
    co_return UcxTransport::create(shard, options);
  };
  return sync_wait(shard, make()).value();
}

template <UcxLanes lanes>
Ends make_ucx_ends(asio::any_io_executor server, asio::any_io_executor client) {
  UcxOptions options;
  options.lanes = lanes;
  options.emulated_reads = true;
  options.max_calls = 32;
  const auto held = [](Transport& transport) -> Task<std::int64_t> {
    ICE_CO_TRY(const auto usage, co_await static_cast<UcxTransport&>(transport).usage());
    co_return usage.calls + usage.request_bytes + usage.quarantined_bytes;
  };
  return {make_ucx(std::move(server), options), make_ucx(std::move(client), options), held};
}

inline const TransportKind kTransportKinds[] = {
    {"loopback", make_loopback_ends, "node", "nobody", "loopback"},
    {"ucx_tcp", make_ucx_ends<UcxLanes::kTcp>, "127.0.0.1:0", "127.0.0.1:1", "tcp"},
    {"ucx_shared_memory", make_ucx_ends<UcxLanes::kAuto>, "127.0.0.1:0", "127.0.0.1:1", "posix"},
};
inline std::string transport_kind_name(const testing::TestParamInfo<TransportKind>& kind) {
  return kind.param.name;
}

class TransportFixture : public testing::TestWithParam<TransportKind> {
 protected:
  void SetUp() override {
    ends_ = GetParam().make(server_.executor(), client_shard_.executor());
    const Result<Address> bound = listen(GetParam().self);
    ASSERT_TRUE(bound.has_value()) << bound.error().to_string();
    node_ = *bound;
  }
  void TearDown() override {
    if (ends_.client != nullptr) {
      EXPECT_TRUE(sync_wait(client_shard_.executor(), ends_.client->shutdown()).ok());
    }
    EXPECT_TRUE(sync_wait(server_.executor(), ends_.server->shutdown()).ok());
    server_.stop();
    client_shard_.stop();
    EXPECT_EQ(echo_.held, 0) << "payloads of replies that never came back";
  }
  Transport& client_end() { return ends_.client == nullptr ? *ends_.server : *ends_.client; }
  Result<Address> listen(const Address& self) {
    return sync_wait(server_.executor(), ends_.server->listen(self, server_.executor(), echo_));
  }
  Result<Reply> call(const Address& peer, MethodId method, std::vector<ConstByteSpan> payload,
                     std::int64_t capacity, Deadline deadline = Deadline::never()) {
    Request request(method, "hello");
    request.payload = std::move(payload);
    return run_task(client_,
                    client_end().call(peer, std::move(request), Buffer(capacity), deadline));
  }
  Result<Buffer> read(RegionRuns from, std::int64_t capacity, Arrival* arrival = nullptr) {
    return run_task(client_, client_end().read(node_, std::move(from), Buffer(capacity), arrival,
                                               Deadline::never()));
  }
  // Of both ends.
  std::int64_t held() {
    std::int64_t sum = sync_wait(server_.executor(), ends_.held(*ends_.server)).value();
    if (ends_.client == nullptr) return sum;
    return sum + sync_wait(client_shard_.executor(), ends_.held(*ends_.client)).value();
  }

  EchoService echo_;
  asio::io_context client_;
  Shard server_;
  Shard client_shard_;
  Ends ends_;
  Address node_;
  SystemClock clock_;
  SeededRng rng_{1};
};

}  // namespace icefield
