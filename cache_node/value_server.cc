#include "cache_node/value_server.h"

#include "cache_node/node_messages.h"
#include "cache_node/put_landing.h"
#include "cache_node/value_decode.h"
#include "common/rng.h"

namespace icefield {
namespace {

constexpr std::uint32_t kMaxListed = 10'000;
// A landing waits for its payload with every item decoded: about 330 bytes each, where the limits
// on requests under way count the bytes that were sent, as few as 13. Beside so much payload an
// item is small; smaller ones are decoded when all of them are there.
constexpr std::int64_t kLandedItemBytes = 1024;
// Of memory, for all that clients are reading: what is read must not keep out what comes.
constexpr std::int64_t kLeasedShare = 8;
// Of memory, for all that clients may write, and of that for one of them.
constexpr std::int64_t kRoomShare = 8;
constexpr std::int64_t kConnectionShare = 2;

template <class Message>
ServiceReply reply_with(const Message& message) {
  ServiceReply reply;
  reply.header = message.SerializeAsString();
  return reply;
}

void put_head(const ValueHead& head, proto::ValueReplyHead* out) {
  if (!head.status.ok()) to_proto(head.status, out->mutable_outcome());
  out->set_flush_number(head.flush_number);
}

template <class Message>
void put_failure(std::size_t item, const Status& status, Message& message) {
  proto::ItemFailure* failure = message.add_failures();
  failure->set_item(static_cast<std::uint32_t>(item));
  to_proto(status, failure->mutable_outcome());
}

}  // namespace

ValueServer::ValueServer(NodeValues& values, const Clock& clock, Region slab)
    : values_(values),
      clock_(clock),
      slab_(std::move(slab)),
      region_(xxh3(as_bytes(slab_.key), 0)),
      leases_({.max_bytes = std::ssize(slab_.bytes) / kLeasedShare,
               .first_number = SystemRng().next()}),
      rooms_({.max_bytes = std::ssize(slab_.bytes) / kRoomShare,
              .max_connection_bytes = std::ssize(slab_.bytes) / kRoomShare / kConnectionShare,
              .first_number = SystemRng().next() >> 1 | 1}) {}

template <class Message>
Result<Message> ValueServer::admit(const Caller& caller, std::string_view header) {
  ICE_TRY(Message message, parse_message<Message>(header));
  const std::uint64_t connection = caller.connection().number;
  for (const std::uint64_t lease : message.scope().ended_leases()) leases_.end(connection, lease);
  for (const std::uint64_t room : message.scope().ended_rooms()) rooms_.end(connection, room);
  ICE_TRY(validate_namespace(message.scope().name_space()));
  ICE_TRY(check_grant(caller, message.scope().name_space()));
  return message;
}

std::unique_ptr<Landing> ValueServer::land(const Caller& caller, NodeMethod method,
                                           std::string_view header, std::int64_t payload_bytes) {
  if (method != NodeMethod::kPutValues) return nullptr;
  Result<proto::PutValuesRequest> message = admit<proto::PutValuesRequest>(caller, header);
  if (!message.has_value() || message->room() != 0) return nullptr;
  if (payload_bytes < message->keys().lengths_size() * kLandedItemBytes) return nullptr;
  auto landing = PutLanding::open(std::move(*message), payload_bytes, values_);
  return landing.has_value() ? std::move(*landing) : nullptr;
}

Task<ServiceReply> ValueServer::handle(const Caller& caller, NodeMethod method,
                                       const std::string& header, Payload payload) {
  switch (method) {
    case NodeMethod::kPutValues: co_return co_await put(caller, header, std::move(payload));
    case NodeMethod::kGetValues: co_return co_await get(caller, header);
    case NodeMethod::kFindValues: co_return co_await find(caller, header);
    case NodeMethod::kRemoveValues: co_return co_await remove(caller, header);
    case NodeMethod::kListValues: co_return co_await list(caller, header);
    case NodeMethod::kFlushValues: co_return co_await flush(caller, header);
    default: co_return invalid("unknown method " + std::to_string(static_cast<int>(method)));
  }
}

// What landed is here. Else the values are small, or in a room, or the request makes no sense.
Task<ServiceReply> ValueServer::put(const Caller& caller, const std::string& header,
                                    Payload payload) {
  proto::PutValuesReply reply;
  if (payload.landing == nullptr) {
    ICE_CO_TRY(auto message, admit<proto::PutValuesRequest>(caller, header));
    std::optional<DramTier::Reservation> room;
    if (message.room() != 0) {
      room = rooms_.take(caller.connection().number, message.room());
      reply.set_room_gone(!room.has_value());
      if (reply.room_gone()) co_return reply_with(reply);
    }
    ICE_CO_TRY(auto landing,
               PutLanding::open(std::move(message), payload.size(), values_, std::move(room)));
    landing->add(std::as_const(payload.buffer).bytes());
    payload.landing = std::move(landing);
  }
  auto& landing = static_cast<PutLanding&>(*payload.landing);
  ICE_CO_TRY(const PutValuesReply done, co_await values_.put(landing.request(), landing.chunks()));
  if (landing.message().room() != 0) placed_puts.add();
  put_head(done.head, reply.mutable_head());
  for (std::size_t i = 0; i < done.outcomes.size(); ++i) {
    const Result<PutOutcome>& outcome = done.outcomes[i];
    if (!outcome.has_value()) {
      put_failure(i, outcome.error(), reply);
    } else if (*outcome == PutOutcome::kAlreadyThere) {
      reply.add_already_there(static_cast<std::uint32_t>(i));
    }
  }
  ICE_CO_TRY(co_await grant(caller, landing, reply));
  co_return reply_with(reply);
}

Task<> ValueServer::grant(const Caller& caller, PutLanding& landing, proto::PutValuesReply& reply) {
  const proto::PutValuesRequest& request = landing.message();
  const auto largest = static_cast<std::uint64_t>(rooms_.largest());
  std::int64_t wanted = 0;
  if (request.room_wanted() <= largest) {
    wanted = values_.slots_bytes(static_cast<std::int64_t>(request.room_wanted()));
  } else {
    for (const IncomingChunk& chunk : landing.chunks()) wanted += values_.slots_bytes(chunk.bytes);
  }
  const bool too_little =
      wanted < kPlacedBytes || request.room_wanted() < static_cast<std::uint64_t>(kPlacedBytes);
  const bool unreachable = request.unreachable() && request.region() == region_;
  if (too_little || unreachable || !may_reach(caller)) co_return Status();
  // From here on to its number nobody else has a turn, so the bounds hold.
  const std::uint64_t connection = caller.connection().number;
  if (!rooms_.make_room(connection, wanted, clock_.now())) co_return Status();
  Result<DramTier::Reservation> slots = values_.reserve_slots(wanted);
  if (!slots.has_value()) co_return Status();  // none, and the put is done all the same
  proto::PutRoom& out = *reply.mutable_room();
  std::vector<ByteSpan> runs;
  slots->append_runs(runs);
  for (const ByteSpan run : runs) {
    out.add_offsets(static_cast<std::uint64_t>(run.data() - slab_.bytes.data()));
    out.add_lengths(run.size());
  }
  out.set_slot_bytes(static_cast<std::uint64_t>(values_.slots_bytes(1)));
  if (request.region() != region_) out.set_region_key(slab_.key);
  out.set_number(rooms_.add(connection, std::move(*slots), clock_.now()));
  values_.start_removing();
  co_return Status();
}

Task<ServiceReply> ValueServer::get(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, admit<proto::GetValuesRequest>(caller, header));
  ICE_CO_TRY(const auto keys, keys_of(message.keys()));
  const auto count = static_cast<int>(keys.size());
  if (message.offsets_size() != count || message.rooms_size() != count) {
    co_return invalid("get of values: arrays of different lengths");
  }
  GetValues request;
  request.scope = scope_of(message.scope());
  request.scrub = message.scrub();
  request.values.reserve(keys.size());
  constexpr auto kMost = static_cast<std::uint64_t>(kMaxValueBytes);
  for (int i = 0; i < count; ++i) {
    request.values.push_back(
        {.key = keys[static_cast<std::size_t>(i)],
         .offset = static_cast<std::int64_t>(std::min(message.offsets(i), kMost)),
         .room = static_cast<std::int64_t>(std::min(message.rooms(i), kMost))});
  }
  ValueReads reads;
  ICE_CO_TRY(const ValueHead head, co_await values_.get(request, reads));
  proto::GetValuesReply answer;
  put_head(head, answer.mutable_head());
  for (std::size_t i = 0; i < reads.statuses.size(); ++i) {
    if (!reads.statuses[i].ok()) put_failure(i, reads.statuses[i], answer);
  }
  answer.mutable_value_bytes()->Add(reads.value_bytes.begin(), reads.value_bytes.end());
  answer.mutable_versions()->Add(reads.versions.begin(), reads.versions.end());
  answer.mutable_checksums()->Add(reads.checksums.begin(), reads.checksums.end());
  answer.mutable_piece_checks()->Add(reads.piece_checks.begin(), reads.piece_checks.end());
  const bool placed_now = message.locate() && place(caller, message, reads, answer);
  ServiceReply reply = reply_with(answer);
  if (placed_now) co_return reply;
  reply.payload = std::move(reads.payload);
  reply.keep_alive = std::make_shared<ReadLeases::Held>(std::move(reads.leases));
  co_return reply;
}

bool ValueServer::place(const Caller& caller, const proto::GetValuesRequest& request,
                        ValueReads& reads, proto::GetValuesReply& answer) {
  const bool may = may_reach(caller) && !(request.unreachable() && request.region() == region_);
  const std::int64_t runs = std::ssize(reads.payload);
  if (!may || reads.payload_bytes < std::max(kPlacedBytes, runs * kPlacedRunBytes)) return false;
  if (!leases_.has_room(reads.leased_bytes)) return false;
  proto::PlacedPayload& out = *answer.mutable_placed();
  for (const ConstByteSpan run : reads.payload) {
    const std::int64_t offset = run.data() - slab_.bytes.data();
    if (offset < 0 || offset >= std::ssize(slab_.bytes)) {  // read from disk, memory had no room
      answer.clear_placed();
      return false;
    }
    out.add_offsets(static_cast<std::uint64_t>(offset));
    out.add_lengths(run.size());
  }
  if (request.region() != region_) out.set_region_key(slab_.key);
  out.set_lease(leases_.add(caller.connection().number, reads.leased_bytes, std::move(reads.leases),
                            clock_.now()));
  placed.add();
  return true;
}

Task<ServiceReply> ValueServer::find(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, admit<proto::FindValuesRequest>(caller, header));
  ICE_CO_TRY(const auto keys, keys_of(message.keys()));
  ICE_CO_TRY(const FoundValues found, co_await values_.find(scope_of(message.scope()), keys));
  proto::FindValuesReply reply;
  put_head(found.head, reply.mutable_head());
  for (std::size_t i = 0; i < found.sizes.size(); ++i) {
    const bool there = found.sizes[i].has_value();
    reply.add_value_bytes(there ? static_cast<std::uint64_t>(*found.sizes[i]) : 0);
    if (!there) put_failure(i, found.sizes[i].error(), reply);
  }
  co_return reply_with(reply);
}

Task<ServiceReply> ValueServer::remove(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, admit<proto::RemoveValuesRequest>(caller, header));
  ICE_CO_TRY(const auto keys, keys_of(message.keys()));
  ICE_CO_TRY(const ValueHead head, co_await values_.remove(scope_of(message.scope()), keys));
  proto::RemoveValuesReply reply;
  put_head(head, reply.mutable_head());
  co_return reply_with(reply);
}

Task<ServiceReply> ValueServer::list(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, admit<proto::ListValuesRequest>(caller, header));
  ICE_CO_TRY(const ListedValues listed,
             co_await values_.list(scope_of(message.scope()), message.prefix(), message.after(),
                                   std::min(message.limit(), kMaxListed)));
  proto::ListValuesReply reply;
  put_head(listed.head, reply.mutable_head());
  for (const ListedValue& value : listed.values) {
    reply.mutable_keys()->mutable_text()->append(value.key);
    reply.mutable_keys()->add_lengths(static_cast<std::uint32_t>(value.key.size()));
    reply.add_value_bytes(static_cast<std::uint64_t>(value.bytes));
  }
  reply.set_more(listed.more);
  co_return reply_with(reply);
}

Task<ServiceReply> ValueServer::flush(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, admit<proto::FlushValuesRequest>(caller, header));
  ValueHead head;
  ICE_CO_TRY(const std::int64_t dropped, co_await values_.flush(scope_of(message.scope()), head));
  proto::FlushValuesReply reply;
  put_head(head, reply.mutable_head());
  reply.set_dropped(static_cast<std::uint64_t>(dropped));
  co_return reply_with(reply);
}

}  // namespace icefield
