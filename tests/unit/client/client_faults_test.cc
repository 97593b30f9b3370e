// The value store when nodes are down, silent or slow, and callers give up.
#include <gtest/gtest.h>

#include "cache_node/node_messages.h"
#include "client/value_store.h"
#include "common/waiters.h"
#include "tests/support/holding_service.h"
#include "tests/support/objects.h"
#include "tests/support/value_cluster.h"

namespace icefield {
namespace {

using std::chrono::milliseconds;

Status put(ValueCluster& cluster, std::string_view key, ConstByteSpan value, ValueCall call = {}) {
  return cluster.run(cluster.store().put(key, value, {}, call)).status();
}
Status get(ValueCluster& cluster, std::string_view key, ValueCall call = {}) {
  return cluster.run(cluster.store().get(key, Buffer(1 << 20), call)).status();
}

TEST(CircuitBreaker, OpensAfterFailuresInARowAndTriesAgainLaterAndLater) {
  CircuitBreaker breaker(
      {.failures_to_open = 2, .pause = milliseconds(100), .max_pause = milliseconds(250)});
  Clock::TimePoint now{};
  breaker.fail(now);
  breaker.succeed();
  breaker.fail(now);
  EXPECT_TRUE(breaker.allow(now)) << "not in a row";
  breaker.fail(now);
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::kOpen);
  EXPECT_FALSE(breaker.allow(now + milliseconds(99)));
  breaker.fail(now + milliseconds(99));  // a late one changes nothing
  for (const int pause : {100, 200, 250, 250}) {
    now += milliseconds(pause);
    EXPECT_TRUE(breaker.allow(now)) << pause;
    EXPECT_FALSE(breaker.allow(now)) << "one try at a time";
    breaker.fail(now);
    EXPECT_FALSE(breaker.allow(now + milliseconds(99)));
  }
  now += milliseconds(250);
  EXPECT_TRUE(breaker.allow(now));
  EXPECT_TRUE(breaker.allow(now + std::chrono::seconds(5))) << "a try that never reported";
  breaker.succeed();
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::kClosed);
  breaker.fail(now);
  EXPECT_TRUE(breaker.allow(now));
}

TEST(CircuitBreaker, ACallThatWasGivenUpSaysNothingOfTheNode) {
  CircuitBreaker breaker({.failures_to_open = 2, .pause = milliseconds(100)});
  Clock::TimePoint now{};
  breaker.fail(now);
  breaker.give_up(now);
  breaker.fail(now);
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::kOpen) << "two failures in a row all the same";
  breaker.give_up(now);
  EXPECT_FALSE(breaker.allow(now)) << "of a call that went out before";
  now += milliseconds(100);
  EXPECT_TRUE(breaker.allow(now));
  breaker.give_up(now);
  EXPECT_TRUE(breaker.allow(now)) << "the next one is the try";
  EXPECT_FALSE(breaker.allow(now));
}

TEST(NodeSpeed, TellsTheRoundTripFromTheBytes) {
  NodeSpeed speed;
  EXPECT_EQ(speed.estimate(1 << 20).count(), 0) << "nothing known: everything pays";
  for (int i = 0; i < 50; ++i) {
    speed.note(100, std::chrono::microseconds(50));
    speed.note(1'000'000, std::chrono::microseconds(1050));
  }
  EXPECT_NEAR(static_cast<double>(speed.estimate(0).count()), 50e3, 1e3);
  EXPECT_NEAR(static_cast<double>(speed.estimate(2'000'000).count()), 2050e3, 20e3);
}

TEST(MissMemory, RemembersTheNewestAndForgetsOnRequest) {
  MissMemory memory(8);
  for (std::uint64_t i = 1; i <= 8; ++i) memory.note(i << 8, MissReason::kEvicted);
  EXPECT_EQ(memory.recall(1 << 8), MissReason::kEvicted);
  memory.note(1 << 8, MissReason::kExpired);
  memory.note(9 << 8, MissReason::kFlushed);
  EXPECT_EQ(memory.recall(1 << 8), MissReason::kExpired);
  EXPECT_EQ(memory.recall(2 << 8), MissReason::kNeverStored) << "the oldest fell out";
  EXPECT_EQ(memory.recall(9 << 8), MissReason::kFlushed);
  memory.forget(9 << 8);
  EXPECT_EQ(memory.recall(9 << 8), MissReason::kNeverStored);
}

TEST(ClientFaults, ANodeThatIsDownMeansMissesAtOnceAndIsFoundAgain) {
  ValueCluster cluster({}, 2);
  const Bytes value(1000, std::byte{1});
  const std::string here = cluster.key_of(0);
  const std::string there = cluster.key_of(1);
  ASSERT_TRUE(put(cluster, here, value).ok());
  ASSERT_TRUE(put(cluster, there, value).ok());
  cluster.stop(1);
  for (int i = 0; i < 3; ++i) {
    const Status status = get(cluster, there);
    EXPECT_EQ(status.code(), Code::kNotFound);
    EXPECT_EQ(status.reason(), MissReason::kNodeDown);
  }
  EXPECT_EQ(cluster.client_of(1).state(), CircuitBreaker::State::kOpen);
  EXPECT_EQ(get(cluster, there).reason(), MissReason::kNodeDown);
  EXPECT_EQ(put(cluster, there, value).code(), Code::kUnavailable) << "writes say so";
  EXPECT_TRUE(get(cluster, here).ok()) << "the other node serves";

  std::vector<ValueToGet> items = {{.key = there, .room = 1000}, {.key = here, .room = 1000}};
  const ValueBatch batch = cluster.run(cluster.store().get_batch(items, {})).value();
  EXPECT_EQ(batch.values[0].error().reason(), MissReason::kNodeDown);
  EXPECT_TRUE(batch.values[1].has_value());
  EXPECT_EQ(cluster.run(cluster.store().exists({there}, {})).value()[0].error().reason(),
            MissReason::kNodeDown);

  cluster.start(1);
  EXPECT_EQ(get(cluster, there).reason(), MissReason::kNodeDown) << "not asked yet";
  cluster.clock().advance(std::chrono::seconds(1));
  EXPECT_EQ(get(cluster, there).reason(), MissReason::kNeverStored) << "back, with nothing";
  EXPECT_EQ(cluster.client_of(1).state(), CircuitBreaker::State::kClosed);
}

// Takes requests and answers none until it is told to.
class SilentService final : public Service {
 public:
  Task<ServiceReply> handle(const Caller&, MethodId, std::string, Payload) override {
    ++asked;
    if (on_ask) on_ask();
    while (!released) (void)co_await waiters.wait(Deadline::never());
    co_return Status(Code::kUnavailable, "released");
  }
  int asked = 0;
  bool released = false;
  std::function<void()> on_ask;
  Waiters waiters;
};

TEST(ClientFaults, CallsEndByTheirDeadlineOrWhenTheyAreCancelled) {
  asio::io_context io;
  LoopbackTransport transport;
  SilentService service;
  ASSERT_TRUE(run_task(io, transport.listen("n", io.get_executor(), service)).has_value());
  const SystemClock clock;
  SeededRng rng(1);
  StaticMembership membership({{.name = "n"}});
  Nodes nodes(clock, transport, membership, {.failures_to_open = 1000});
  ValueStore store(clock, rng, nodes, {});
  const auto soon = [&] { return Deadline::after(clock, milliseconds(5)); };
  EXPECT_EQ(run_task(io, store.get("k", Buffer(10), {.deadline = soon()})).error().code(),
            Code::kDeadlineExceeded);
  const Bytes value(10);
  EXPECT_EQ(run_task(io, store.put("k", value, {}, {.deadline = soon()})).error().code(),
            Code::kDeadlineExceeded);
  EXPECT_EQ(run_task(io, store.exists({"k"}, {.deadline = soon()})).value()[0].error().code(),
            Code::kDeadlineExceeded);

  CancelToken token;
  service.on_ask = [&] { token.cancel(); };
  EXPECT_EQ(run_task(io, store.get("k", Buffer(10), {.cancel = &token})).error().code(),
            Code::kCancelled);
  const int asked = service.asked;
  EXPECT_EQ(run_task(io, store.get("k", Buffer(10), {.cancel = &token})).error().code(),
            Code::kCancelled);
  EXPECT_EQ(run_task(io, store.put("k", value, {}, {.cancel = &token})).error().code(),
            Code::kCancelled);
  EXPECT_EQ(run_task(io, store.exists({"k"}, {.cancel = &token})).value()[0].error().code(),
            Code::kCancelled);
  EXPECT_EQ(run_task(io, store.remove({"k"}, {.cancel = &token})).value()[0].code(),
            Code::kCancelled);
  EXPECT_EQ(run_task(io, store.list("", 10, {.cancel = &token})).error().code(), Code::kCancelled);
  EXPECT_EQ(run_task(io, store.flush({.cancel = &token})).error().code(), Code::kCancelled);
  EXPECT_EQ(service.asked, asked) << "nothing more went out";
  service.released = true;
  service.waiters.notify_all();
  EXPECT_TRUE(run_task(io, transport.shutdown()).ok());
  io.restart();
  io.poll();  // the abandoned read ends
}

TEST(ClientFaults, AFrozenNodeCostsContextsAFewDeadlinesAndValuesNone) {
  ValueCluster cluster({}, 1);
  HoldingService holding(cluster.node(0).service());
  ASSERT_TRUE(cluster.run(cluster.transport().listen("held", cluster.io().get_executor(), holding))
                  .has_value());
  StaticMembership membership({{.name = "held"}});
  Nodes nodes(cluster.clock(), cluster.transport(), membership);
  ContextStore contexts(nodes);
  SeededRng rng(1);
  ValueStore values(cluster.clock(), rng, nodes, {});
  const auto list = [&](Deadline deadline) {
    return cluster.run(contexts.list_builds("", deadline)).status().code();
  };
  EXPECT_EQ(list(Deadline::never()), Code::kOk);
  holding.freeze();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(list(Deadline::after(SystemClock(), milliseconds(5))), Code::kDeadlineExceeded);
  }
  EXPECT_EQ(nodes.view()->node(0).state(), CircuitBreaker::State::kOpen);
  const int asked = holding.asked;

  // Without a deadline these would not come back.
  const Deadline never = Deadline::never();
  const StoredBuild build;
  const std::vector<PrefixHash> prefix(2);
  PageRequest pages{.page_rows = 1, .row_bytes = 256, .contexts = {{}}};
  pages.contexts[0].push_back({.first_rows = {0}});
  EXPECT_EQ(list(never), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.match(prefix, {}, never)).status().code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.find({}, {}, never)).status().code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.load(build, never)).status().code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.load_order(build, never)).status().code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.read_pages(pages, never)).status().code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.publish(BuiltSegment(), "model\n", never)).code(),
            Code::kUnavailable);
  EXPECT_EQ(cluster.run(contexts.remove(Manifest(), BuildId(), never)).code(), Code::kUnavailable);
  EXPECT_EQ(cluster.run(values.get("k", Buffer(10), {})).error().reason(), MissReason::kNodeDown)
      << "the other store knows, too";
  EXPECT_EQ(holding.asked, asked) << "nobody was asked";

  holding.thaw();
  EXPECT_EQ(list(never), Code::kUnavailable) << "not asked yet";
  cluster.clock().advance(std::chrono::seconds(1));
  EXPECT_EQ(list(never), Code::kOk);
  EXPECT_EQ(cluster.run(values.get("k", Buffer(10), {})).error().reason(),
            MissReason::kNeverStored);
  EXPECT_TRUE(cluster.run(cluster.transport().stop("held")).ok());
}

TEST(ClientFaults, ReadsThatTakeLongerThanRecomputingAreNotMade) {
  ValueCluster cluster({}, 1);
  const Bytes value(100'000, std::byte{1});
  ASSERT_TRUE(put(cluster, "k", value).ok());
  ValueCall call;
  call.recompute_estimate = std::chrono::microseconds(100);
  EXPECT_TRUE(get(cluster, "k", call).ok()) << "nothing known yet";
  // The clock stands still meanwhile, so a read seems to take no time; then one takes long.
  const auto slow = [&]() -> Task<Buffer> {
    auto reading = cluster.store().get("k", Buffer(1 << 20), {});
    asio::post(cluster.io(), [&] { cluster.clock().advance(std::chrono::seconds(1)); });
    co_return co_await std::move(reading);
  };
  ASSERT_TRUE(cluster.run(slow()).has_value());
  int asked = 0;
  for (int i = 0; i < 64; ++i) {
    const Status status = get(cluster, "k", call);
    asked += status.ok() ? 1 : 0;
    if (!status.ok()) {
      EXPECT_EQ(status.reason(), MissReason::kNotWorthIt);
    }
  }
  EXPECT_GT(asked, 0) << "now and then one goes out all the same";
  EXPECT_LT(asked, 64);
  EXPECT_TRUE(get(cluster, "k").ok()) << "without an estimate everything is read";
}

TEST(ClientFaults, TwoWritersOfOneLargeValueDoNotMix) {
  ValueCluster cluster({}, 1);
  ValueStub& node = cluster.client_of(0).values();
  const Bytes value(3 << 20, std::byte{7});
  const ValueHash hash = value_hash("", 0, "k");
  std::vector<std::uint64_t> sums;
  for (std::int64_t i = 0; i < 3; ++i) {
    const auto chunk = ConstByteSpan(value).subspan(static_cast<std::size_t>(i) << 20, 1 << 20);
    sums.push_back(object_checksum(value_chunk_key(hash, 3, i), std::span(&chunk, 1)));
  }
  const auto send = [&](std::uint64_t upload, std::int64_t chunk) {
    const auto part = ConstByteSpan(value).subspan(static_cast<std::size_t>(chunk) << 20, 1 << 20);
    PutValues request;
    request.upload = upload;
    request.values = {{.key = "k",
                       .value_bytes = 3 << 20,
                       .first_chunk = chunk,
                       .checksums = std::span(sums).subspan(static_cast<std::size_t>(chunk), 1),
                       .parts = std::span(&part, 1)}};
    return cluster.run(node.put(std::move(request), Deadline::never()))
        .value()
        .outcomes[0]
        .status();
  };
  EXPECT_TRUE(send(1, 0).ok());
  EXPECT_TRUE(send(1, 2).ok());
  EXPECT_EQ(send(2, 1).code(), Code::kUnavailable) << "somebody else is writing it";
  EXPECT_EQ(get(cluster, "k").reason(), MissReason::kNeverStored) << "not all of it is there";
  cluster.clock().advance(std::chrono::seconds(10));
  EXPECT_EQ(send(2, 0).code(), Code::kUnavailable) << "the first writer has gone: its part goes";
  EXPECT_TRUE(send(2, 0).ok());
  EXPECT_TRUE(send(2, 1).ok());
  EXPECT_TRUE(send(2, 2).ok());
  EXPECT_EQ(cluster.run(cluster.store().exists({"k"}, {})).value()[0].value(), 3 << 20);
  sums[1] ^= 1;
  EXPECT_TRUE(cluster.run(cluster.store().remove({"k"}, {})).has_value());
  const std::int64_t used = cluster.node(0).memory().usage().used_bytes;
  EXPECT_EQ(used, 0);
  EXPECT_EQ(send(3, 1).code(), Code::kDataLoss) << "damaged on the way";
  EXPECT_EQ(cluster.node(0).memory().usage().used_bytes, used) << "its slots have come back";
}

TEST(ClientFaults, DamagedPutIsNeverSeenAndItsNeighboursAreStored) {
  ValueCluster cluster({}, 1);
  const Bytes bytes(100'000, std::byte{3});
  const ConstByteSpan part = bytes;
  std::vector<std::uint64_t> sums;
  PutValues request;
  const std::vector<std::string> keys = {"a", "b", "c"};
  for (const std::string& key : keys) {
    const ObjectKey chunk = value_chunk_key(value_hash("", 0, key), 1, 0);
    sums.push_back(object_checksum(chunk, std::span(&part, 1)) ^ (key == "b" ? 1 : 0));
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    request.values.push_back({.key = keys[i],
                              .value_bytes = std::ssize(bytes),
                              .checksums = std::span(sums).subspan(i, 1),
                              .parts = std::span(&part, 1)});
  }
  const PutValuesReply reply =
      cluster.run(cluster.client_of(0).values().put(std::move(request), Deadline::never())).value();
  EXPECT_TRUE(reply.outcomes[0].has_value());
  EXPECT_EQ(reply.outcomes[1].status().code(), Code::kDataLoss);
  EXPECT_TRUE(reply.outcomes[2].has_value());
  EXPECT_EQ(get(cluster, "b").reason(), MissReason::kNeverStored);
  EXPECT_TRUE(get(cluster, "a").ok());
  EXPECT_EQ(cluster.node(0).memory().usage().object_count, 2);
  EXPECT_EQ(cluster.node(0).memory().usage().used_bytes, 2 * round_up(100'000, 16 << 10));
  EXPECT_TRUE(put(cluster, "b", bytes).ok()) << "the next try";
}

// Says of every flush that others were faster; after the highest number there is no next one.
class AlwaysFlushed final : public Service {
 public:
  Task<ServiceReply> handle(const Caller&, MethodId, std::string, Payload) override {
    proto::FlushValuesReply message;
    to_proto(Status(Code::kAborted, "flushed"), message.mutable_head()->mutable_outcome());
    message.mutable_head()->set_flush_number(UINT64_MAX);
    ServiceReply reply;
    reply.header = message.SerializeAsString();
    co_return reply;
  }
};

TEST(ClientFaults, AFlushThatNeverWinsEnds) {
  ValueCluster cluster({}, 1);
  cluster.stop(0);
  AlwaysFlushed service;
  auto& transport = cluster.transport();
  ASSERT_TRUE(
      cluster.run(transport.listen("node 0", cluster.io().get_executor(), service)).has_value());
  EXPECT_EQ(cluster.run(cluster.store().flush({})).error().code(), Code::kUnavailable);
  ASSERT_TRUE(cluster.run(transport.stop("node 0")).ok());
}

TEST(ClientFaults, RequestsThatMakeNoSenseAreRefused) {
  ValueCluster cluster({}, 1);
  const auto call = [&](NodeMethod method, std::string header, std::size_t payload_bytes) {
    const Bytes payload(payload_bytes);
    Request request(static_cast<MethodId>(method), std::move(header));
    request.payload = {payload};
    return cluster
        .run(cluster.transport().call(ValueCluster::name(0), std::move(request), Buffer(1 << 20),
                                      Deadline::never()))
        .status()
        .code();
  };
  SeededRng rng(11);
  for (int i = 0; i < 2000; ++i) {
    const auto method = static_cast<NodeMethod>(7 + rng.below(6));
    const Bytes noise = random_bytes(rng, rng.below(60));
    const Code code = call(method, std::string(as_text(noise)), rng.below(3) * 100);
    EXPECT_TRUE(code == Code::kInvalidArgument || code == Code::kOk) << static_cast<int>(code);
  }
  EXPECT_EQ(call(static_cast<NodeMethod>(99), "", 0), Code::kInvalidArgument);
  EXPECT_EQ(call(NodeMethod::kPutValues, "", 5), Code::kInvalidArgument) << "bytes of no value";
  EXPECT_TRUE(put(cluster, "k", Bytes(10)).ok()) << "it serves on";
}

}  // namespace
}  // namespace icefield
