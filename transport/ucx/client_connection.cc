#include "transport/ucx/client_connection.h"

#include <sys/mman.h>

#include <boost/asio/connect.hpp>

#include "common/hash.h"
#include "common/run_writer.h"
#include "proto/transport.pb.h"
#include "transport/placing.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/proof.h"
#include "transport/ucx/region_key.h"

namespace icefield::ucx {

using asio::ip::tcp;

// Copied at a time, out of a neighbour's memory or into it.
constexpr std::int64_t kTurnBytes = 1 << 20;

ClientConnection::ClientConnection(UcxWorker& worker, Address peer, const UcxOptions& options)
    : worker_(worker),
      peer_(std::move(peer)),
      options_(options),
      control_(worker.shard()),
      id_(worker.add_sink(*this)),
      next_deadline_(worker.shard()),
      scope_(worker.shard()) {}

ClientConnection::~ClientConnection() { worker_.remove_sink(id_); }

Task<> ClientConnection::connect() {
  // The timer's handler may run after the connection has gone.
  asio::steady_timer limit(worker_.shard(), options_.connect_timeout);
  auto give_up = [weak = weak_from_this()](const boost::system::error_code& cancelled) {
    const auto self = weak.lock();
    if (!cancelled && self != nullptr) self->abandon();
  };
  limit.async_wait(std::move(give_up));
  Status shaken = co_await shake_hands();
  const bool late = limit.cancel() == 0;
  if (!shaken.ok()) {
    failure_ = late ? Status(Code::kUnavailable, "no answer from " + peer_)
                    : shaken.with_context("connecting to " + peer_);
    co_return failure_;
  }
  scope_.spawn(watch());
  co_return Status();
}

Task<> ClientConnection::shake_hands() {
  ICE_CO_TRY(const HostPort address, parse_address(peer_));
  boost::system::error_code error;
  tcp::resolver resolver(worker_.shard());
  const std::string port = std::to_string(address.port);
  const auto found = co_await resolver.async_resolve(
      address.host, port, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return Status(Code::kUnavailable, error.message());
  if (abandoned_) co_return Status(Code::kUnavailable, "given up");
  co_await asio::async_connect(control_, found, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return Status(Code::kUnavailable, error.message());
  if (abandoned_) co_return Status(Code::kUnavailable, "given up");
  set_socket_options(control_);
  local_ = control_.remote_endpoint(error).address() == control_.local_endpoint(error).address();

  ICE_CO_TRY(const proto::Hello hello, co_await read_message<proto::Hello>(control_));
  if (hello.wire_version() != kWireVersion) {
    co_return Status(Code::kFailedPrecondition,
                     "the node speaks version " + std::to_string(hello.wire_version()) +
                         " of the protocol, this program " + std::to_string(kWireVersion));
  }
  proto::ConnectRequest request;
  request.set_wire_version(kWireVersion);
  request.set_worker_address(worker_.address());
  request.set_address_xxh3(xxh3(as_bytes(worker_.address()), 0));
  request.set_connection(id_);
  if (!hello.challenge().empty()) {
    const ProofSubject subject{.challenge = hello.challenge(),
                               .incarnation = hello.incarnation(),
                               .connection = id_,
                               .worker_address = worker_.address()};
    if (!options_.token.empty()) request.set_proof(make_proof(options_.token, subject));
  }
  ICE_CO_TRY(co_await write_frame(control_, request.SerializeAsString()));
  ICE_CO_TRY(const proto::ConnectReply reply, co_await read_message<proto::ConnectReply>(control_));
  if (reply.code() != 0) co_return Status(static_cast<Code>(reply.code()), reply.message());
  if (xxh3(as_bytes(reply.worker_address()), 0) != reply.address_xxh3()) {
    co_return Status(Code::kInternal, "the node's UCX address is damaged");
  }
  remote_id_ = reply.connection();
  max_calls_ = reply.max_calls();
  max_bytes_ = static_cast<std::int64_t>(reply.max_request_bytes());
  auto broken = [weak = weak_from_this()](const Status& why) {
    if (const auto self = weak.lock()) self->lost(why);
  };
  ICE_CO_TRY(endpoint_, Endpoint::create(worker_, reply.worker_address(), std::move(broken)));
  lanes_ = endpoint_->lanes();
  devices_ = endpoint_->devices();
  co_return Status();
}

Task<Reply> ClientConnection::call(Request request, Buffer into, Deadline deadline) {
  const auto self = shared_from_this();
  if (request.room.has_value()) {
    Status placed = co_await place(request, deadline);
    if (Placing::unplaced(placed)) co_return Reply(std::move(placed));
    ICE_CO_TRY(placed);
  }
  const std::int64_t bytes =
      payload_bytes(request.payload) + static_cast<std::int64_t>(request.header.size());
  ICE_CO_TRY(co_await wait_for_credit(bytes, deadline));

  FragmentHeader fragment;
  fragment.connection = remote_id_;
  fragment.call = next_call_++;
  fragment.method = request.method;
  fragment.reply_capacity = static_cast<std::uint64_t>(into.capacity());
  Pending pending(worker_.shard(), std::move(into), request.arrival, deadline);
  watch_deadline(deadline);
  Call& call = calls_[fragment.call];
  call.pending = &pending;
  call.request_bytes = bytes;
  bytes_held_ += bytes;

  Message message(fragment, std::move(request.header));
  message.payload = std::move(request.payload);
  message.departure = request.departure;
  std::shared_ptr<Upload> beside;
  if (!endpoint_->try_send_copy(message)) {
    beside = std::make_shared<Upload>(std::move(message));
    scope_.spawn(upload(beside));
  }
  boost::system::error_code ignored;
  co_await pending.wake.async_wait(asio::redirect_error(asio::use_awaitable, ignored));

  if (beside != nullptr) beside->loan.end();
  if (!pending.failure.ok()) co_return pending.failure;
  co_return Reply(std::move(pending.reply->header()), std::move(pending.reply->payload().buffer));
}

Task<> ClientConnection::wait_for_credit(std::int64_t bytes, Deadline deadline) {
  if (bytes > max_bytes_) {
    co_return Status(Code::kInvalidArgument, "request of " + std::to_string(bytes) + " bytes, " +
                                                 peer_ + " takes " + std::to_string(max_bytes_));
  }
  while (failure_.ok() && !has_credit(bytes)) {
    const bool in_time = co_await credit_.wait(deadline);
    if (!in_time) {
      co_return Status(Code::kDeadlineExceeded, peer_ + " is behind with earlier calls");
    }
  }
  co_return failure_;
}

bool ClientConnection::has_credit(std::int64_t bytes) const {
  return static_cast<std::int64_t>(calls_.size()) < max_calls_ && bytes_held_ + bytes <= max_bytes_;
}

asio::awaitable<void> ClientConnection::upload(std::shared_ptr<Upload> upload) {
  const Status sent = co_await endpoint_->send_lent(upload->message, upload->loan);
  if (sent.code() != Code::kCancelled) co_return;
  if (!upload->loan.begun()) {  // the server does not know of it, so it would not answer
    end_call(upload->message.fragment.call);
    co_return;
  }
  Message abort(upload->message.fragment, std::string());
  abort.fragment.kind = FragmentKind::kAbort;
  (void)co_await endpoint_->send(abort);
}

void ClientConnection::end_call(std::uint64_t number) {
  const auto found = calls_.find(number);
  if (found == calls_.end()) return;  // the connection has failed
  bytes_held_ -= found->second.request_bytes;
  calls_.erase(found);
  credit_.notify_all();
}

void ClientConnection::watch_deadline(Deadline deadline) {
  if (deadline.time_point() >= watched_) return;
  watched_ = deadline.time_point();
  next_deadline_.expires_at(watched_);
  auto look = [weak = weak_from_this()](const boost::system::error_code& cancelled) {
    const auto self = weak.lock();
    if (!cancelled && self != nullptr) self->end_late_calls();
  };
  next_deadline_.async_wait(std::move(look));
}

void ClientConnection::end_late_calls() {
  const auto now = SystemClock().now();
  watched_ = Clock::TimePoint::max();
  for (auto& [number, call] : calls_) {
    if (call.pending == nullptr) continue;
    const Deadline deadline = call.pending->deadline;
    if (deadline.time_point() <= now) {
      Pending& late = *std::exchange(call.pending, nullptr);
      finish(late, Status(Code::kDeadlineExceeded, "no reply from " + peer_));
    } else {
      watch_deadline(deadline);
    }
  }
}

Task<Buffer> ClientConnection::read(RegionRuns from, Buffer into, Arrival* arrival,
                                    Deadline deadline) {
  const auto self = shared_from_this();
  ICE_CO_TRY(const RegionKey key, RegionKey::parse(from.key));
  ICE_CO_TRY(const std::int64_t bytes, check_runs(from.runs, key.bytes, into.capacity()));
  if (!endpoint_->one_sided() && !options_.emulated_reads) {
    co_return Status(Code::kFailedPrecondition, "tcp to " + peer_ + " has no one-sided reads");
  }
  ICE_CO_TRY(const Endpoint::Remote region, endpoint_->unpack(key));
  into.resize(bytes);
  if (region.mapped != nullptr) {
    populate_once({region.mapped, static_cast<std::size_t>(key.bytes)}, MADV_POPULATE_READ);
    co_return co_await read_mapped(region.mapped, std::move(from.runs), std::move(into), arrival,
                                   deadline);
  }
  auto reading = std::make_shared<Reading>(worker_.shard(), std::move(into), arrival);
  auto seen = [&reading = *reading](std::size_t count) {
    if (reading.arrival == nullptr) return;
    reading.arrival->arrived({}, std::as_const(reading.into).bytes().first(count));
  };
  reading->read.emplace(*endpoint_, region, std::move(from.runs), reading->into.bytes(),
                        std::move(seen));
  if (reading->read->start()) co_return std::move(reading->into);
  scope_.spawn(finish_read(reading));
  reading->changed.expires_at(deadline.time_point());
  boost::system::error_code ignored;
  if (!reading->result.has_value()) {
    co_await reading->changed.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  if (!reading->result.has_value()) {
    reading->arrival = nullptr;
    reading->abandoned = true;
    scope_.spawn(quarantine(reading));
    co_return Status(Code::kDeadlineExceeded, "read from " + peer_ + " not done");
  }
  ICE_CO_TRY(*reading->result);
  co_return std::move(reading->into);
}

void ClientConnection::populate_once(ConstByteSpan region, int advice) {
  if (!populated_.emplace(region.data(), advice).second) return;
  if (advice == MADV_POPULATE_WRITE) populated_.emplace(region.data(), MADV_POPULATE_READ);
  scope_.spawn(populate(worker_.shard(), region, advice, failed_));
}

Task<> ClientConnection::yield(Deadline deadline) {
  co_await asio::post(worker_.shard(), asio::use_awaitable);
  ICE_CO_TRY(failure_);  // the region may have gone with the connection
  if (!deadline.passed(SystemClock())) co_return Status();
  co_return Status(Code::kDeadlineExceeded, "copy from or to " + peer_ + " not done");
}

Task<> ClientConnection::place(Request& request, Deadline deadline) {
  ICE_CO_TRY(const RegionKey key, RegionKey::parse(request.room->to.key));
  ICE_CO_TRY(const ByteSpan region, endpoint_->unpack_writable(key));
  populate_once(region, MADV_POPULATE_WRITE);
  const SystemClock clock;
  if (deadline.passed(clock)) co_return Status(Code::kDeadlineExceeded, "nothing sent in time");
  Placing placing(request, region, clock);
  ICE_CO_TRY(placing.begin());
  std::int64_t turn = 0;
  while (!placing.done()) {
    if (turn >= kTurnBytes) {
      turn = 0;
      ICE_CO_TRY(co_await yield(deadline));
    }
    ICE_CO_TRY(const std::int64_t bytes, placing.step());
    turn += bytes;
  }
  placing.finish();
  co_return Status();
}

// The owner is a neighbour, its region is plain memory. Others get their turn in between.
Task<Buffer> ClientConnection::read_mapped(const std::byte* region, std::vector<RegionRun> runs,
                                           Buffer into, Arrival* arrival, Deadline deadline) {
  constexpr std::size_t kSliceBytes = 64 << 10;  // what is seen at a time, while a cache has it
  const ByteSpan target = into.bytes();
  std::size_t done = 0;
  std::size_t turn = 0;  // where the last one ended
  if (target.empty() && arrival != nullptr) arrival->arrived({}, target);
  for (const RegionRun& run : runs) {
    ConstByteSpan left(region + run.offset, static_cast<std::size_t>(run.bytes));
    while (!left.empty()) {
      const ConstByteSpan slice = left.first(std::min(left.size(), kSliceBytes));
      if (done - turn >= static_cast<std::size_t>(kTurnBytes)) {
        turn = done;
        ICE_CO_TRY(co_await yield(deadline));
      }
      fetch_copy(target.data() + done, slice);
      left = left.subspan(slice.size());
      done += slice.size();
      if (arrival != nullptr) arrival->arrived({}, target.first(done));
    }
  }
  co_return std::move(into);
}

asio::awaitable<void> ClientConnection::finish_read(std::shared_ptr<Reading> reading) {
  reading->result = co_await reading->read->finish(reading->abandoned);
  reading->changed.cancel();
}

// Holds the buffer of a read that nobody waits for any more.
asio::awaitable<void> ClientConnection::quarantine(std::shared_ptr<Reading> reading) {
  quarantined_bytes_ += reading->into.capacity();
  reading->changed.expires_after(options_.close_timeout);
  boost::system::error_code ignored;
  if (!reading->result.has_value()) {
    co_await reading->changed.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  if (!reading->result.has_value()) fail(Status(Code::kUnavailable, "a read does not end"));
  quarantined_bytes_ -= reading->into.capacity();
}

asio::awaitable<void> ClientConnection::watch() {
  const bool polite = co_await wait_for_end(control_);
  worker_.take_in();  // a node that stops answers first, on another way
  Status why(Code::kUnavailable, "closed by the peer");
  polite ? fail(std::move(why)) : lost(std::move(why));
}

void ClientConnection::lost(Status why) {
  abrupt_ = failure_.ok() && lanes_ != "tcp";
  fail(std::move(why));
}

bool ClientConnection::on_fragment(const FragmentHeader& header, ConstByteSpan bytes) {
  const auto found = calls_.find(header.call);
  if (header.kind != FragmentKind::kReply || found == calls_.end()) {
    worker_.counters().stray_fragments.add();
    return true;
  }
  Call& call = found->second;
  call.received += bytes.size();
  if (call.pending != nullptr) take_fragment(call, header, bytes);
  if (call.received < header.message_bytes()) return false;
  end_call(header.call);
  return true;
}

void ClientConnection::take_fragment(Call& call, const FragmentHeader& header,
                                     ConstByteSpan bytes) {
  Pending& pending = *call.pending;
  Status status;
  if (!pending.reply.has_value()) status = start_reply(pending, header);
  const auto place = [&pending](std::string_view) { return Payload(std::move(pending.into)); };
  if (status.ok() && !pending.reply->add(header, bytes, place)) {
    status = Status(Code::kInternal, "fragment of " + peer_ + " does not fit its message");
  }
  const bool seen = status.ok() && header.code == 0 && pending.reply->header_complete();
  if (seen && pending.arrival != nullptr) {
    pending.arrival->arrived(pending.reply->header(), pending.reply->payload_so_far());
  }
  if (status.ok() && !pending.reply->complete()) return;
  if (status.ok() && header.code != 0) {
    status = Status(static_cast<Code>(header.code), std::move(pending.reply->header()));
  }
  call.pending = nullptr;
  finish(pending, std::move(status));
}

Status ClientConnection::start_reply(Pending& pending, const FragmentHeader& header) const {
  if (header.header_bytes > kMaxHeaderBytes) {
    return Status(Code::kInternal, "reply header of " + peer_ + " too long");
  }
  const auto capacity = static_cast<std::uint64_t>(pending.into.capacity());
  if (header.payload_bytes > capacity) {
    return Status(Code::kResourceExhausted, "reply of " + std::to_string(header.payload_bytes) +
                                                " bytes, buffer of " + std::to_string(capacity));
  }
  pending.reply.emplace(header);
  return Status();
}

void ClientConnection::finish(Pending& pending, Status failure) {
  pending.failure = std::move(failure);
  pending.wake.cancel();
}

void ClientConnection::fail(Status why) {
  if (!failure_.ok()) return;
  failure_ = why.with_context("connection to " + peer_);
  failed_ = true;
  for (auto& [number, call] : calls_) {
    if (call.pending != nullptr) finish(*call.pending, failure_);
  }
  calls_.clear();
  credit_.notify_all();
  if (notify_) notify_();
}

asio::awaitable<void> ClientConnection::close() {
  const auto self = shared_from_this();
  fail(Status(Code::kUnavailable, "closed"));
  next_deadline_.cancel();
  if (endpoint_ != nullptr) co_await endpoint_->close(Deadline::never());
  if (control_.is_open()) say_goodbye(control_);
  control_.close();
  co_await scope_.join();
}

}  // namespace icefield::ucx
