// What only connections between processes have: tokens, versions, peers that do not play along.
// All of it on 127.0.0.1.
#include "transport/ucx/ucx_transport.h"

#include <gmock/gmock.h>

#include "common/shard.h"
#include "tests/support/run_task.h"

namespace icefield {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr const char* kToken = "0123456789abcdef";

// Answers whether the caller may use the namespace that the header names.
class GateService final : public Service {
 public:
  Task<ServiceReply> handle(const Caller& caller, MethodId, std::string header, Buffer) override {
    ServiceReply reply;
    reply.header = caller.may_use(header) ? "yes" : "no";
    co_return reply;
  }
};

std::unique_ptr<UcxTransport> make_ucx(asio::any_io_executor shard, const UcxOptions& options) {
  auto make = [shard, &options]() -> Task<std::unique_ptr<UcxTransport>> {
    co_return UcxTransport::create(shard, options);
  };
  return sync_wait(shard, make()).value();
}

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
    const Deadline deadline = Deadline::after(SystemClock(), 10s);
    Result<Reply> reply =
        run_task(transport->call(peer, Request(1, std::move(header)), Buffer(0), deadline));
    if (!reply.has_value()) return reply.error();
    return std::move(reply->header);
  }

  Shard shard;
  std::unique_ptr<UcxTransport> transport;
};

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

}  // namespace
}  // namespace icefield
