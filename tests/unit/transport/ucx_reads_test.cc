// One-sided reads over UCX: where they are refused, and where they end early.
#include <gmock/gmock.h>

#include <thread>

#include "tests/support/frozen.h"
#include "tests/support/ucx_end.h"

namespace icefield {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

TEST(UcxReads, OverTcpAreRefusedInWords) {
  GateService service;
  End server(tcp_options());
  End client(tcp_options());
  const Address node = server.listen(service).value();
  const Region region =
      sync_wait(server.shard.executor(), server.transport->allocate_region(1000)).value();
  const Result<Buffer> read = run_task(client.transport->read(
      node, {region.key, {{0, 10}}}, Buffer(10), nullptr, Deadline::after(SystemClock(), 10s)));
  EXPECT_EQ(read.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(read.error().message(), HasSubstr("tcp"));
}

TEST(UcxReads, RegionsLargerThanSharedMemoryAreRefusedAtOnce) {
  End server(UcxOptions{});
  const Result<Region> region =
      sync_wait(server.shard.executor(), server.transport->allocate_region(std::int64_t{1} << 50));
  EXPECT_EQ(region.error().code(), Code::kResourceExhausted);
  EXPECT_THAT(region.error().message(), HasSubstr("/dev/shm"));
}

// Lanes of shared memory to memory that no other process can map: as where /dev/shm is not the
// same for both.
TEST(UcxReads, RegionsOutOfReachAreRefusedInWords) {
  GateService service;
  End owner(tcp_options());
  End server(UcxOptions{});
  End client(UcxOptions{});
  const Address node = server.listen(service).value();
  const Region region =
      sync_wait(owner.shard.executor(), owner.transport->allocate_region(1000)).value();
  const Result<Buffer> read = run_task(client.transport->read(
      node, {region.key, {{0, 10}}}, Buffer(10), nullptr, Deadline::after(SystemClock(), 10s)));
  EXPECT_EQ(read.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(read.error().message(), HasSubstr("cannot be reached"));
}

// Ends the server once something of a read is there.
class EndsServer final : public Arrival {
 public:
  EndsServer(End& server, Address node) : server_(server), node_(std::move(node)) {}
  void arrived(std::string_view, ConstByteSpan) override {
    if (std::exchange(done_, true)) return;
    auto ending = server_.transport->stop(node_);
    EXPECT_TRUE(sync_wait(server_.shard.executor(), std::move(ending)).ok());
  }

 private:
  End& server_;
  const Address node_;
  bool done_ = false;
};

TEST(UcxReads, ConnectionThatEndsInTheMiddleEndsTheRead) {
  constexpr std::int64_t kBytes = 64 << 20;
  GateService service;
  End server(UcxOptions{});
  End client(UcxOptions{});
  const Address node = server.listen(service).value();
  const Region region =
      sync_wait(server.shard.executor(), server.transport->allocate_region(kBytes)).value();
  EndsServer arrival(server, node);
  const Result<Buffer> read =
      run_task(client.transport->read(node, {region.key, {{0, kBytes}}}, Buffer(kBytes), &arrival,
                                      Deadline::after(SystemClock(), 10s)));
  EXPECT_EQ(read.error().code(), Code::kUnavailable);
}

TEST(UcxReads, OneGivenUpKeepsItsBufferUntilUcxLetsGo) {
  GateService service;
  UcxOptions options = tcp_options();
  options.emulated_reads = true;
  options.close_timeout = 300ms;
  End server(options);
  End client(options);
  const Address node = server.listen(service).value();
  const Region region =
      sync_wait(server.shard.executor(), server.transport->allocate_region(1 << 20)).value();
  const auto read = [&](std::chrono::milliseconds patience) {
    return run_task(client.transport->read(node, {region.key, {{0, 1 << 20}}}, Buffer(1 << 20),
                                           nullptr, Deadline::after(SystemClock(), patience)));
  };
  const auto quarantined = [&] {
    return sync_wait(client.shard.executor(), client.transport->usage()).value().quarantined_bytes;
  };
  ASSERT_TRUE(read(10s).has_value());
  EXPECT_EQ(quarantined(), 0);

  std::optional<Frozen> frozen(std::in_place, server.shard);
  EXPECT_EQ(read(20ms).error().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(quarantined(), 1 << 20);
  while (quarantined() > 0) std::this_thread::yield();
  EXPECT_NE(health_of(client, node).state, PeerState::kUp);  // given up with its connection
  frozen.reset();
  EXPECT_TRUE(read(10s).has_value());
}

}  // namespace
}  // namespace icefield
