#include "transport/loopback/loopback_transport.h"

#include <optional>

#include "transport/placing.h"

namespace icefield {
// A call between its start and its reply or its deadline, whichever is first. The destination
// buffer stays here when the deadline comes first, until the server is done with it.
struct LoopbackTransport::Pending {
  Pending(const asio::any_io_executor& executor, Buffer into_in)
      : wake(executor), into(std::move(into_in)) {}

  asio::steady_timer wake;                    // the caller's; cancelled when the reply is there
  Buffer into;                                // the server's until `result` is set
  std::optional<Result<std::string>> result;  // the header; the caller's
};

LoopbackTransport::~LoopbackTransport() { ICE_CHECK(listeners_.empty()); }

Task<Address> LoopbackTransport::listen(Address self, asio::any_io_executor executor,
                                        Service& service) {
  const std::lock_guard lock(mutex_);
  if (listeners_.contains(self)) {
    co_return Status(Code::kAlreadyExists, "address " + self + " is in use");
  }
  listeners_.emplace(self, std::make_shared<Listener>(std::move(executor), service));
  co_return self;
}

Task<Region> LoopbackTransport::allocate_region(std::int64_t bytes) {
  if (bytes <= 0) co_return Status(Code::kInvalidArgument, "region of no bytes");
  const std::lock_guard lock(mutex_);
  Buffer& memory = regions_.emplace_back(bytes);
  memory.resize(bytes);
  co_return Region{.bytes = memory.bytes(), .key = std::to_string(regions_.size() - 1)};
}

Result<ByteSpan> LoopbackTransport::find_region(const std::string& key) {
  const std::lock_guard lock(mutex_);
  std::size_t index = 0;
  while (index < regions_.size() && std::to_string(index) != key) ++index;
  if (index == regions_.size()) return Status(Code::kInvalidArgument, "no such region");
  return regions_[index].bytes();
}

Status LoopbackTransport::place(Request& request) {
  ICE_TRY(const ByteSpan region, find_region(request.room->to.key));
  const SystemClock clock;
  Placing placing(request, region, clock);
  ICE_TRY(placing.begin());
  while (!placing.done()) ICE_TRY(placing.step().status());
  placing.finish();
  return Status();
}

Task<Buffer> LoopbackTransport::read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                                     Deadline) {
  {
    const std::lock_guard lock(mutex_);
    if (!listeners_.contains(peer)) {
      co_return Status(Code::kUnavailable, "nobody listens at " + peer);
    }
  }
  ICE_CO_TRY(const ConstByteSpan region, find_region(from.key));
  ICE_CO_TRY(check_runs(from.runs, std::ssize(region), into.capacity()).status());
  std::vector<ConstByteSpan> runs;
  for (const auto& [offset, size] : from.runs) {
    runs.push_back(
        region.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size)));
  }
  gather(runs, into);
  if (arrival != nullptr) arrival->arrived({}, into.bytes());
  co_return std::move(into);
}

Task<PeerHealth> LoopbackTransport::health(Address peer) {
  PeerHealth health;
  const std::lock_guard lock(mutex_);
  if (listeners_.contains(peer)) {
    health.state = PeerState::kUp;
    health.lanes = "loopback";
    health.local = true;
  }
  co_return health;
}

Task<> LoopbackTransport::stop(Address self) {
  std::shared_ptr<Listener> listener;
  {
    const std::lock_guard lock(mutex_);
    const auto found = listeners_.find(self);
    if (found == listeners_.end()) co_return Status();
    listener = found->second;
    listeners_.erase(found);
  }
  co_await listener->scope.join();
  listener->service.closed(listener->everyone);
  co_return Status();
}

Task<> LoopbackTransport::shutdown() {
  std::vector<Address> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [address, listener] : listeners_) all.push_back(address);
  }
  for (const Address& address : all) ICE_CO_TRY(co_await stop(address));
  co_return Status();
}

std::int64_t LoopbackTransport::calls_under_way() {
  const std::lock_guard lock(mutex_);
  std::int64_t sum = 0;
  for (const auto& [address, listener] : listeners_) sum += listener->scope.running();
  return sum;
}

// As over a wire: piece by piece to who takes it.
Payload LoopbackTransport::land(Listener& listener, MethodId method, std::string_view header,
                                Buffer payload) {
  constexpr std::size_t kPieceBytes = 30'000;
  if (payload.size() == 0) return Payload(std::move(payload));
  auto landing = listener.service.land(listener.everyone, method, header, payload.size());
  if (landing == nullptr) return Payload(std::move(payload));
  for (ConstByteSpan left = std::as_const(payload).bytes(); !left.empty();) {
    const ConstByteSpan piece = left.first(std::min(left.size(), kPieceBytes));
    landing->add(piece);
    left = left.subspan(piece.size());
  }
  return Payload(std::move(landing));
}

asio::awaitable<void> LoopbackTransport::serve(std::shared_ptr<Listener> listener, MethodId method,
                                               std::string header, Buffer payload,
                                               std::shared_ptr<Pending> pending) {
  Payload landed = land(*listener, method, header, std::move(payload));
  Result<ServiceReply> reply = co_await listener->service.handle(
      listener->everyone, method, std::move(header), std::move(landed));
  Result<std::string> result = reply.status().ok() ? Result<std::string>(std::string())
                                                   : Result<std::string>(reply.status());
  if (reply.has_value()) {
    const std::int64_t size = payload_bytes(reply->payload);
    if (size > pending->into.capacity()) {
      result = Status(Code::kResourceExhausted, "reply of " + std::to_string(size) +
                                                    " bytes, buffer of " +
                                                    std::to_string(pending->into.capacity()));
    } else {
      gather(reply->payload, pending->into);
      result = std::move(reply->header);
    }
  }
  auto deliver = [pending, result = std::move(result)]() mutable {
    pending->result = std::move(result);
    pending->wake.cancel();
  };
  asio::post(pending->wake.get_executor(), std::move(deliver));
}

Task<Reply> LoopbackTransport::call(Address peer, Request request, Buffer into, Deadline deadline) {
  std::shared_ptr<Listener> listener;
  {
    const std::lock_guard lock(mutex_);
    const auto found = listeners_.find(peer);
    if (found != listeners_.end()) listener = found->second;
  }
  if (listener == nullptr) co_return Status(Code::kUnavailable, "nobody listens at " + peer);
  if (request.room.has_value()) {
    Status placed = place(request);
    if (Placing::unplaced(placed)) co_return Reply(std::move(placed));
    ICE_CO_TRY(placed);
  }
  Buffer payload(payload_bytes(request.payload));
  if (request.departure != nullptr && payload.capacity() > 0) {
    request.departure->leaving(payload.capacity());
  }
  gather(request.payload, payload);
  auto pending = std::make_shared<Pending>(co_await asio::this_coro::executor, std::move(into));
  pending->wake.expires_at(deadline.time_point());
  auto start = [listener, method = request.method, header = std::move(request.header),
                payload = std::move(payload), pending]() mutable {
    listener->scope.spawn(serve(listener, method, std::move(header), std::move(payload), pending));
  };
  asio::post(listener->executor, std::move(start));
  boost::system::error_code ignored;
  co_await pending->wake.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  if (!pending->result.has_value()) {
    co_return Status(Code::kDeadlineExceeded, "no reply from " + peer);
  }
  ICE_CO_TRY(std::string header, std::move(*pending->result));
  if (request.arrival != nullptr) request.arrival->arrived(header, pending->into.bytes());
  co_return Reply(std::move(header), std::move(pending->into));
}

}  // namespace icefield
