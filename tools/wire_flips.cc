#include "tools/wire_flips.h"

#include "cache_node/node_host.h"
#include "client/value_store.h"
#include "common/rng.h"
#include "common/shard.h"
#include "transport/loopback/loopback_transport.h"

namespace icefield {
namespace {

void flip_one(ByteSpan bytes, Rng& rng) {
  bytes[rng.below(bytes.size())] ^= static_cast<std::byte>(1 << rng.below(8));
}

// Flips a bit of what has arrived before anybody looks at it.
class FlippingArrival final : public Arrival {
 public:
  FlippingArrival(Arrival* next, Rng& rng, std::int64_t& flips)
      : next_(next), rng_(rng), flips_(flips) {}

  void arrived(std::string_view header, ConstByteSpan payload) override {
    if (!flipped_ && !payload.empty()) {
      flipped_ = true;
      ++flips_;
      // The buffer of the call, which is nobody else's.
      flip_one({const_cast<std::byte*>(payload.data()), payload.size()}, rng_);
    }
    if (next_ != nullptr) next_->arrived(header, payload);
  }

 private:
  Arrival* const next_;
  Rng& rng_;
  std::int64_t& flips_;
  bool flipped_ = false;
};

// Flips one bit of every payload, while it is told to.
class FlippingTransport final : public Transport {
 public:
  explicit FlippingTransport(std::uint64_t seed) : rng_(seed) {}

  Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) override {
    if (!flipping) {
      co_return co_await next_.call(std::move(peer), std::move(request), std::move(into), deadline);
    }
    FlippingArrival arrival(request.arrival, rng_, flips);
    request.arrival = &arrival;
    Buffer sent(payload_bytes(request.payload));
    if (sent.capacity() > 0) {
      Departure* const departure = std::exchange(request.departure, nullptr);
      if (departure != nullptr) departure->leaving(sent.capacity());
      gather(request.payload, sent);
      flip_one(sent.bytes(), rng_);
      ++flips;
      request.payload = {sent.bytes()};
    }
    co_return co_await next_.call(std::move(peer), std::move(request), std::move(into), deadline);
  }
  Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                    Deadline deadline) override {
    return next_.read(std::move(peer), std::move(from), std::move(into), arrival, deadline);
  }
  Task<Region> allocate_region(std::int64_t bytes) override { return next_.allocate_region(bytes); }
  Task<PeerHealth> health(Address peer) override { return next_.health(std::move(peer)); }
  void disconnect(const Address& peer) override { next_.disconnect(peer); }
  Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) override {
    return next_.listen(std::move(self), std::move(executor), service);
  }
  Task<> stop(Address self) override { return next_.stop(std::move(self)); }
  Task<> shutdown() override { return next_.shutdown(); }

  bool flipping = false;
  std::int64_t flips = 0;

 private:
  LoopbackTransport next_;
  SeededRng rng_;
};

// Gets and puts in turn. Whatever was flipped in an operation must make it fail.
Task<FlipOutcome> flip_values(FlippingTransport& transport, ValueStore& store, std::int64_t flips,
                              Bytes value) {
  ICE_CO_TRY(co_await store.put("stays", value, {}, {}));
  FlipOutcome outcome;
  transport.flipping = true;
  while (outcome.detected + outcome.returned < flips) {
    const std::int64_t before = transport.flips;
    Buffer into(std::ssize(value));
    const Result<Buffer> got = co_await store.get("stays", std::move(into), {});
    (got.has_value() ? outcome.returned : outcome.detected) += transport.flips - before;

    const std::int64_t between = transport.flips;
    const Result<PutOutcome> put = co_await store.put("comes", value, {}, {});
    (put.has_value() ? outcome.returned : outcome.detected) += transport.flips - between;
    if (transport.flips == before) co_return Status(Code::kInternal, "nothing was flipped");
  }
  transport.flipping = false;
  // The flips were on the way, not in the node.
  Buffer into(std::ssize(value));
  ICE_CO_TRY(const Buffer right, co_await store.get("stays", std::move(into), {}));
  if (std::ranges::equal(right.bytes(), value)) co_return outcome;
  co_return Status(Code::kDataLoss, "the node's own copy is damaged");
}

}  // namespace

Result<FlipOutcome> flip_on_the_wire(std::int64_t flips, std::int64_t value_bytes,
                                     std::uint64_t seed) {
  Shard shard;
  ICE_TRY(const auto host, NodeHost::open({.dram_bytes = 64 << 20}, shard.executor()));
  FlippingTransport transport(seed);
  ICE_TRY(sync_wait(shard.executor(), transport.listen("node", shard.executor(), host->service())));
  const SystemClock clock;
  SeededRng rng(seed);
  StaticMembership members({{.name = "node"}});
  Nodes nodes(clock, transport, members);
  ValueStore store(clock, rng, nodes, {});
  Bytes value(static_cast<std::size_t>(value_bytes));
  for (std::byte& b : value) b = static_cast<std::byte>(rng.next());
  auto outcome =
      sync_wait(shard.executor(), flip_values(transport, store, flips, std::move(value)));
  ICE_TRY(sync_wait(shard.executor(), transport.shutdown()));
  ICE_TRY(sync_wait(shard.executor(), host->stop()));
  return outcome;
}

}  // namespace icefield
