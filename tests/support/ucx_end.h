// tests/support/ucx_end.h — one end of connections over UCX, and a service for the other.
#pragma once

#include <gtest/gtest.h>

#include "common/shard.h"
#include "tests/support/transport_kinds.h"

namespace icefield {

// Answers whether the caller may use the namespace that the header names.
class GateService final : public Service {
 public:
  Task<ServiceReply> handle(const Caller& caller, MethodId, std::string header, Payload) override {
    ServiceReply reply;
    reply.header = caller.may_use(header) ? "yes" : "no";
    co_return reply;
  }
};

// A transport with a shard of its own.
struct End {
  explicit End(const UcxOptions& options) : transport(make_ucx(shard.executor(), options)) {}
  ~End() {
    EXPECT_TRUE(sync_wait(shard.executor(), transport->shutdown()).ok());
    shard.stop();
  }
  Result<Address> listen(Service& service, Address self = "127.0.0.1:0") {
    return sync_wait(shard.executor(),
                     transport->listen(std::move(self), shard.executor(), service));
  }
  Result<std::string> ask(const Address& peer, std::string header) {
    const Deadline deadline = Deadline::after(SystemClock(), std::chrono::seconds(10));
    Result<Reply> reply =
        run_task(transport->call(peer, Request(1, std::move(header)), Buffer(0), deadline));
    if (!reply.has_value()) return reply.error();
    return std::move(reply->header);
  }

  Shard shard;
  std::unique_ptr<UcxTransport> transport;
};

inline PeerHealth health_of(End& client, const Address& peer) {
  return run_task(client.transport->health(peer)).value();
}

inline UcxOptions tcp_options() {
  UcxOptions options;
  options.lanes = UcxLanes::kTcp;
  return options;
}

}  // namespace icefield
