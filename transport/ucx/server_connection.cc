#include "transport/ucx/server_connection.h"

#include "common/hash.h"
#include "proto/transport.pb.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/proof.h"

namespace icefield::ucx {
namespace {

constexpr std::int64_t kReplyBytes = 1024;  // what one takes beside its bytes

Status stopping() { return Status(Code::kUnavailable, "the node is stopping"); }

}  // namespace

ServerConnection::ServerConnection(UcxWorker& worker, asio::ip::tcp::socket control,
                                   Service& service, const UcxOptions& options,
                                   std::uint64_t incarnation, LanesLog& lanes_log)
    : worker_(worker),
      control_(std::move(control)),
      service_(service),
      options_(options),
      incarnation_(incarnation),
      lanes_log_(lanes_log),
      id_(worker.add_sink(*this)),
      scope_(worker.shard()) {}

ServerConnection::~ServerConnection() { worker_.remove_sink(id_); }

asio::awaitable<void> ServerConnection::run() {
  const auto self = shared_from_this();
  asio::steady_timer limit(worker_.shard(), options_.connect_timeout);
  auto give_up = [weak = weak_from_this()](const boost::system::error_code& cancelled) {
    const auto connection = weak.lock();
    if (!cancelled && connection != nullptr) connection->control_.close();
  };
  limit.async_wait(std::move(give_up));
  const Status shaken = co_await shake_hands();
  if (limit.cancel() == 0) handshake_failure_ = HandshakeFailure::kLate;
  UcxCounters& counters = worker_.counters();
  if (!shaken.ok()) {
    if (!stopping_) counters.failed_handshakes(handshake_failure_).add();
    co_return;
  }
  counters.connections.fetch_add(1, std::memory_order_relaxed);
  scope_.spawn(watch());
  while (ended_.ok() && !(stopping_ && calls_held_ == 0)) {
    co_await changed_.wait(Deadline::never());
  }
  const SystemClock clock;
  const Deadline flush =
      ended_.ok() ? Deadline::after(clock, options_.close_timeout) : Deadline::never();
  for (bool in_time = true; ended_.ok() && replies_unsent_ > 0 && in_time;) {
    in_time = co_await changed_.wait(flush);
  }
  end(Status(Code::kUnavailable, "stopped"));
  co_await endpoint_->close(flush);
  say_goodbye(control_);
  control_.close();
  co_await scope_.join();
  counters.connections.fetch_sub(1, std::memory_order_relaxed);
  service_.closed(caller_);
}

void ServerConnection::stop() {
  stopping_ = true;
  if (remote_id_ == 0) control_.close();  // in the middle of the handshake
  // Those not whole: the rest may never come.
  while (!incoming_.empty()) drop(incoming_.begin(), stopping());
  changed_.notify_all();
}

Task<> ServerConnection::shake_hands() {
  set_socket_options(control_);
  proto::Hello hello;
  hello.set_wire_version(kWireVersion);
  hello.set_incarnation(incarnation_);
  if (!options_.tokens.empty()) {
    SystemRng rng;
    hello.set_challenge(make_challenge(rng));
  }
  ICE_CO_TRY(co_await write_frame(control_, hello.SerializeAsString()));
  const auto request = co_await read_message<proto::ConnectRequest>(control_);
  if (!request.has_value()) {
    const bool broken = request.error().code() == Code::kUnavailable;
    if (!broken) handshake_failure_ = HandshakeFailure::kGarbage;
    co_return request.error();
  }
  proto::ConnectReply reply;
  Result<Caller> caller = check(hello, *request);
  Status status = caller.status();
  if (status.ok()) {
    auto broken = [weak = weak_from_this()](const Status& why) {
      if (const auto self = weak.lock()) self->lost(why);
    };
    auto endpoint = Endpoint::create(worker_, request->worker_address(), std::move(broken));
    status = endpoint.status();
    if (!status.ok()) handshake_failure_ = HandshakeFailure::kNoLane;
    if (status.ok()) endpoint_ = std::move(*endpoint);
    if (status.ok()) {
      const bool one_sided = endpoint_->shares_memory() || options_.emulated_reads;
      caller_ = caller->over({.number = id_, .one_sided = one_sided});
      boost::system::error_code ignored;
      lanes_log_.accepted(endpoint_->lanes(), control_.remote_endpoint(ignored).address() ==
                                                  control_.local_endpoint(ignored).address());
    }
  }
  reply.set_code(static_cast<std::uint32_t>(status.code()));
  reply.set_message(status.message());
  reply.set_worker_address(worker_.address());
  reply.set_address_xxh3(xxh3(as_bytes(worker_.address()), 0));
  reply.set_connection(id_);
  reply.set_max_calls(static_cast<std::uint32_t>(options_.max_calls));
  reply.set_max_request_bytes(static_cast<std::uint64_t>(options_.max_request_bytes));
  if (status.ok()) handshake_failure_ = HandshakeFailure::kBrokenOff;  // unless the reply arrives
  if (status.ok()) remote_id_ = request->connection();  // fragments count from here on
  const Status sent = co_await write_frame(control_, reply.SerializeAsString());
  if (endpoint_ != nullptr && !sent.ok()) co_await endpoint_->close(Deadline::never());
  co_return status.ok() ? sent : status;
}

Result<Caller> ServerConnection::check(const proto::Hello& hello,
                                       const proto::ConnectRequest& request) {
  handshake_failure_ = HandshakeFailure::kVersion;
  if (request.wire_version() != kWireVersion) {
    return Status(Code::kFailedPrecondition, "version " + std::to_string(request.wire_version()) +
                                                 " of the protocol, not " +
                                                 std::to_string(kWireVersion));
  }
  handshake_failure_ = HandshakeFailure::kGarbage;
  if (request.connection() == 0 || request.worker_address().empty()) {
    return Status(Code::kInvalidArgument, "handshake without an address");
  }
  if (xxh3(as_bytes(request.worker_address()), 0) != request.address_xxh3()) {
    return Status(Code::kInvalidArgument, "the UCX address is damaged");
  }
  if (options_.tokens.empty()) return Caller();
  handshake_failure_ = HandshakeFailure::kToken;
  if (request.proof().empty()) {
    return Status(Code::kFailedPrecondition, "the node wants a token, none was given");
  }
  const ProofSubject subject{.challenge = hello.challenge(),
                             .incarnation = incarnation_,
                             .connection = request.connection(),
                             .worker_address = request.worker_address()};
  const TokenGrant* const grant = find_grant(options_.tokens, subject, request.proof());
  if (grant == nullptr) {
    return Status(Code::kFailedPrecondition, "the node wants a token that it knows");
  }
  return Caller(*grant);
}

asio::awaitable<void> ServerConnection::watch() {
  Status why(Code::kUnavailable, "closed by the client");
  const bool polite = co_await wait_for_end(control_);
  polite ? end(std::move(why)) : lost(std::move(why));
}

void ServerConnection::lost(Status why) {
  abrupt_ = ended_.ok() && endpoint_->lanes() != "tcp";
  end(std::move(why));
}

void ServerConnection::end(Status why) {
  if (!ended_.ok()) return;
  ended_ = std::move(why);
  incoming_.clear();
  changed_.notify_all();
}

bool ServerConnection::on_fragment(const FragmentHeader& header, ConstByteSpan bytes) {
  if (!ended_.ok() || remote_id_ == 0) return true;
  if (stopping_ && header.offset > 0) return true;  // of a request that was dropped or refused
  auto found = incoming_.find(header.call);
  if (header.kind == FragmentKind::kAbort) {
    if (found == incoming_.end()) return true;
    drop(found, Status(Code::kCancelled, "request aborted"));
    return true;
  }
  if (found == incoming_.end()) {
    if (!accept(header)) {
      end(Status(Code::kInvalidArgument, "a request beyond what was granted"));
      return true;
    }
    if (stopping_) {
      scope_.spawn(refuse(header, stopping()));
      return true;
    }
    found = incoming_.emplace(header.call, Assembly(header)).first;
  }
  const auto place = [&](std::string_view text) { return this->place(header, text); };
  if (!found->second.add(header, bytes, place)) {
    end(Status(Code::kInvalidArgument, "a fragment that does not fit its request"));
    return true;
  }
  if (!found->second.complete()) return false;
  Assembly message = std::move(found->second);
  incoming_.erase(found);
  scope_.spawn(serve(header, std::move(message)));
  return true;
}

// Counts a new request, if the client may have one more.
bool ServerConnection::accept(const FragmentHeader& header) {
  const bool sane = header.kind == FragmentKind::kRequest &&
                    header.header_bytes <= kMaxHeaderBytes &&
                    header.payload_bytes <= static_cast<std::uint64_t>(options_.max_request_bytes);
  if (!sane) return false;
  ++calls_held_;
  bytes_held_ += static_cast<std::int64_t>(header.message_bytes());
  return calls_held_ <= options_.max_calls && bytes_held_ <= options_.max_request_bytes;
}

Payload ServerConnection::place(const FragmentHeader& request, std::string_view header) {
  const auto bytes = static_cast<std::int64_t>(request.payload_bytes);
  if (bytes > 0 && request.method != kProbeMethod) {
    auto landing = service_.land(caller_, request.method, header, bytes);
    if (landing != nullptr) return Payload(std::move(landing));
  }
  return Payload(Buffer(bytes));
}

void ServerConnection::drop(Incoming::iterator found, Status why) {
  FragmentHeader request;  // as it was when it was accepted
  request.call = found->first;
  request.header_bytes = static_cast<std::uint32_t>(found->second.header().size());
  request.payload_bytes = found->second.payload_bytes();
  incoming_.erase(found);
  scope_.spawn(refuse(request, std::move(why)));
}

void ServerConnection::release(const FragmentHeader& request) {
  --calls_held_;
  bytes_held_ -= static_cast<std::int64_t>(request.message_bytes());
  changed_.notify_all();
}

asio::awaitable<void> ServerConnection::serve(FragmentHeader request, Assembly message) {
  Result<ServiceReply> reply{ServiceReply()};  // to a probe
  if (request.method != kProbeMethod) {
    reply = co_await service_.handle(caller_, request.method, std::move(message.header()),
                                     std::move(message.payload()));
  }
  co_await answer(request, std::move(reply));
}

asio::awaitable<void> ServerConnection::refuse(FragmentHeader request, Status why) {
  Result<ServiceReply> reply(std::move(why));
  co_await answer(request, std::move(reply));
}

asio::awaitable<void> ServerConnection::answer(const FragmentHeader& request,
                                               Result<ServiceReply> reply) {
  FragmentHeader fragment;
  fragment.connection = remote_id_;
  fragment.call = request.call;
  fragment.kind = FragmentKind::kReply;
  Status status = reply.status();
  if (status.ok()) {
    const auto size = static_cast<std::uint64_t>(payload_bytes(reply->payload));
    if (size > request.reply_capacity) {
      status = Status(Code::kResourceExhausted, "reply of " + std::to_string(size) +
                                                    " bytes, buffer of " +
                                                    std::to_string(request.reply_capacity));
    }
  }
  fragment.code = static_cast<std::uint8_t>(status.code());
  Message message(fragment, status.message());
  if (status.ok()) {
    message.header = std::move(reply->header);
    message.payload = std::move(reply->payload);
  }
  // Who asks on without taking replies runs out of credits.
  while (ended_.ok() && !stopping_ && unsent_bytes_ > options_.max_unsent_bytes) {
    co_await changed_.wait(Deadline::never());
  }
  // The credit returns with the reply, so it counts no more from here on.
  const auto bytes = static_cast<std::int64_t>(message.header.size()) +
                     payload_bytes(message.payload) + kReplyBytes;
  ++replies_unsent_;
  unsent_bytes_ += bytes;
  release(request);
  (void)co_await endpoint_->send(message);
  const bool watched = stopping_ || unsent_bytes_ > options_.max_unsent_bytes;
  --replies_unsent_;
  unsent_bytes_ -= bytes;
  if (watched) changed_.notify_all();
}

}  // namespace icefield::ucx
