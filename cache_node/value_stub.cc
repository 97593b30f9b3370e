#include "cache_node/value_stub.h"

#include <optional>

#include "cache_node/node_messages.h"
#include "cache_node/stub_call.h"

namespace icefield {
namespace {

template <class Items, class KeyOf>
void put_keys(const Items& items, KeyOf key_of, proto::ValueKeys* out) {
  std::size_t bytes = 0;
  for (const auto& item : items) bytes += key_of(item).size();
  out->mutable_text()->reserve(bytes);
  out->mutable_lengths()->Reserve(static_cast<int>(items.size()));
  for (const auto& item : items) {
    out->mutable_text()->append(key_of(item));
    out->add_lengths(static_cast<std::uint32_t>(key_of(item).size()));
  }
}

std::string_view same(std::string_view key) { return key; }

ValueHead head_of(const proto::ValueReplyHead& head) {
  return {.status = from_proto(head.outcome()), .flush_number = head.flush_number()};
}

// Failures by item, all others ok.
Result<std::vector<Status>> statuses_of(
    const google::protobuf::RepeatedPtrField<proto::ItemFailure>& failures, std::size_t count) {
  std::vector<Status> statuses(count);
  for (const proto::ItemFailure& failure : failures) {
    if (failure.item() >= count) return Status(Code::kInternal, "no such item");
    statuses[failure.item()] = from_proto(failure.outcome());
  }
  return statuses;
}

// All but the scope and what room is there.
void put_values(const PutValues& request, proto::PutValuesRequest& message,
                std::vector<ConstByteSpan>& payload) {
  put_keys(
      request.values, [](const PutValue& value) { return value.key; }, message.mutable_keys());
  for (const PutValue& value : request.values) {
    message.add_value_bytes(static_cast<std::uint64_t>(value.value_bytes));
    message.add_first_chunks(static_cast<std::uint32_t>(value.first_chunk));
    message.add_chunk_counts(static_cast<std::uint32_t>(value.checksums.size()));
    payload.insert(payload.end(), value.parts.begin(), value.parts.end());
  }
  for (const PutValue& value : request.values) payload.push_back(std::as_bytes(value.checksums));
  message.set_upload(request.upload);
  message.set_level(static_cast<std::uint32_t>(request.options.level));
  message.set_ttl_ms(static_cast<std::uint64_t>(request.options.ttl_ms));
  message.set_pin(static_cast<std::uint32_t>(request.options.pin));
  message.set_pin_ttl_ms(static_cast<std::uint64_t>(request.options.pin_ttl_ms));
}

template <class T, class Repeated>
void take(const Repeated& from, std::vector<T>& to) {
  to.assign(from.begin(), from.end());
}

}  // namespace

Status ValueStub::impossible(const std::string& what) const {
  return Status(Code::kInternal, "node " + node_ + " answered " + what);
}

void ValueStub::put_scope(const ValueScope& scope, proto::ValueScope* out) {
  out->set_name_space(std::string(scope.name_space));
  out->set_flush_number(scope.flush_number);
  memory_.tell(*out);
}

template <class Message>
Task<Reply> ValueStub::ask(NodeMethod method, const Message& message, Buffer into,
                           Deadline deadline) {
  Result<Reply> reply =
      co_await call_node(transport_, node_, method, message, {}, std::move(into), deadline);
  if (!reply.has_value()) memory_.take_back(message.scope());
  co_return reply;
}

Task<PutValuesReply> ValueStub::put(PutValues request, Deadline deadline) {
  proto::PutValuesRequest message;
  put_scope(request.scope, message.mutable_scope());
  std::vector<ConstByteSpan> payload;
  put_values(request, message, payload);
  NodeMemory::Known known;
  std::optional<NodeMemory::Room> room = memory_.start_put(request, message, known);
  while (true) {
    message.set_room(room.has_value() ? room->number : 0);
    Request call(static_cast<MethodId>(NodeMethod::kPutValues), message.SerializeAsString());
    call.payload = payload;
    call.departure = request.departure;
    if (room.has_value()) call.room = NodeMemory::place_of(*room, request);
    Buffer nothing;
    const Result<Reply> reply =
        co_await transport_.call(node_, std::move(call), std::move(nothing), deadline);
    if (!reply.has_value()) {
      memory_.take_back(message.scope());
      if (room.has_value()) memory_.give_up(*room);
      co_return reply.error();
    }
    Status lost = reply->unplaced;
    if (lost.ok()) {
      ICE_CO_TRY(const auto answer, parse_message<proto::PutValuesReply>(reply->header));
      if (answer.room().number() != 0) memory_.keep_room(answer.room(), known);
      if (!answer.room_gone()) co_return parse_put(answer, request.values.size());
      lost = Status(Code::kAborted, "the node has taken the room back");
      message.mutable_scope()->clear_ended_leases();  // it has heard of those
      message.mutable_scope()->clear_ended_rooms();
    }
    if (!room.has_value()) co_return impossible("of a room that was not named");
    memory_.lose_room(*room, lost.code(), message, known);
    room.reset();
  }
}

Result<PutValuesReply> ValueStub::parse_put(const proto::PutValuesReply& answer,
                                            std::size_t count) const {
  PutValuesReply result;
  result.head = head_of(answer.head());
  if (!result.head.status.ok()) return result;
  ICE_TRY(const auto statuses, statuses_of(answer.failures(), count));
  for (const Status& status : statuses) {
    if (status.ok()) {
      result.outcomes.emplace_back(PutOutcome::kStored);
    } else {
      result.outcomes.emplace_back(status);
    }
  }
  for (const std::uint32_t item : answer.already_there()) {
    if (item >= result.outcomes.size()) return impossible("no such item");
    result.outcomes[item] = PutOutcome::kAlreadyThere;
  }
  return result;
}

// Understands the reply as soon as its header is there; sees a payload that is read one-sided, too.
class ValueStub::GetArrival final : public Arrival {
 public:
  GetArrival(const ValueStub& stub, std::size_t count, std::shared_ptr<ValueArrival> next)
      : stub_(stub), count_(count), next_(std::move(next)) {}

  void arrived(std::string_view header, ConstByteSpan payload) override {
    if (!parsed_) {
      parsed_ = true;
      reply_ = stub_.parse_get(header, count_, placed_);
    }
    const bool found = reply_.has_value() && reply_->head.status.ok();
    if (found && next_ != nullptr) next_->arrived(reply_->facts, payload);
  }
  const std::optional<proto::PlacedPayload>& placed() const { return placed_; }
  Result<GetValuesReply> reply() { return std::move(reply_); }
  bool abandoned() const { return next_ != nullptr && next_->abandoned(); }

 private:
  const ValueStub& stub_;
  const std::size_t count_;
  const std::shared_ptr<ValueArrival> next_;
  bool parsed_ = false;
  Result<GetValuesReply> reply_;
  std::optional<proto::PlacedPayload> placed_;
};

Task<GetValuesReply> ValueStub::get(GetValues request, Buffer into, Deadline deadline,
                                    std::shared_ptr<ValueArrival> arrival) {
  proto::GetValuesRequest message;
  put_scope(request.scope, message.mutable_scope());
  message.set_scrub(request.scrub);
  message.set_locate(!request.scrub);
  const NodeMemory::Known known = memory_.start_get(message);
  put_keys(
      request.values, [](const GetValue& value) { return value.key; }, message.mutable_keys());
  for (const GetValue& value : request.values) {
    message.add_offsets(static_cast<std::uint64_t>(value.offset));
    message.add_rooms(static_cast<std::uint64_t>(value.room));
  }
  GetArrival arriving(*this, request.values.size(), std::move(arrival));
  Result<Reply> reply = co_await call_node(transport_, node_, NodeMethod::kGetValues, message, {},
                                           std::move(into), deadline, &arriving);
  if (arriving.abandoned()) co_return Status(Code::kCancelled, "read cancelled");
  if (!reply.has_value()) {
    memory_.take_back(message.scope());
    co_return reply.error();
  }
  Fetched fetched{.payload = std::move(reply->payload)};
  if (arriving.placed().has_value()) {
    if (fetched.payload.size() > 0) co_return impossible("a payload in two places");
    ICE_CO_TRY(fetched, co_await read_placed(*arriving.placed(), known, std::move(fetched.payload),
                                             arriving, deadline));
  }
  ICE_CO_TRY(GetValuesReply result, arriving.reply());
  result.payload = std::move(fetched.payload);
  result.unread = std::move(fetched.unread);
  co_return result;
}

// What the caller's patience does not end is left to a message: the region may be out of reach, or
// have gone with its node.
Task<ValueStub::Fetched> ValueStub::read_placed(const proto::PlacedPayload& placed,
                                                NodeMemory::Known region, Buffer into,
                                                GetArrival& arrival, Deadline deadline) {
  if (!placed.region_key().empty()) region = memory_.region_of(placed.region_key());
  RegionRuns runs{.key = region->key};
  const int count = std::min(placed.offsets_size(), placed.lengths_size());
  runs.runs.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    runs.runs.push_back({.offset = static_cast<std::int64_t>(placed.offsets(i)),
                         .bytes = static_cast<std::int64_t>(placed.lengths(i))});
  }
  Result<Buffer> read =
      co_await transport_.read(node_, std::move(runs), std::move(into), &arrival, deadline);
  if (arrival.abandoned()) co_return Status(Code::kCancelled, "read cancelled");
  const Code code = read.status().code();
  const bool out_of_reach = code == Code::kFailedPrecondition || code == Code::kInvalidArgument ||
                            code == Code::kResourceExhausted;
  memory_.was_read(placed.lease(), region, out_of_reach);
  if (code == Code::kDeadlineExceeded || code == Code::kCancelled) co_return read.status();
  Fetched fetched{.unread = read.status()};
  if (read.has_value()) fetched.payload = std::move(*read);
  co_return fetched;
}

// All of the reply but the payload.
Result<GetValuesReply> ValueStub::parse_get(std::string_view header, std::size_t count,
                                            std::optional<proto::PlacedPayload>& placed) const {
  ICE_TRY(auto answer, parse_message<proto::GetValuesReply>(header));
  GetValuesReply result;
  result.head = head_of(answer.head());
  if (!result.head.status.ok()) return result;
  ICE_TRY(result.facts.statuses, statuses_of(answer.failures(), count));
  take(answer.value_bytes(), result.facts.value_bytes);
  take(answer.versions(), result.facts.versions);
  take(answer.checksums(), result.facts.checksums);
  take(answer.piece_checks(), result.facts.piece_checks);
  if (result.facts.value_bytes.size() != count || result.facts.versions.size() != count) {
    return impossible("another number of values");
  }
  for (const std::int64_t bytes : result.facts.value_bytes) {
    if (bytes < 0 || bytes > kMaxValueBytes) return impossible("a value of impossible size");
  }
  if (answer.has_placed()) placed = std::move(*answer.mutable_placed());
  return result;
}

Task<FoundValues> ValueStub::find(ValueScope scope, std::vector<std::string_view> keys,
                                  Deadline deadline) {
  proto::FindValuesRequest message;
  put_scope(scope, message.mutable_scope());
  put_keys(keys, same, message.mutable_keys());
  ICE_CO_TRY(const Reply reply, co_await ask(NodeMethod::kFindValues, message, Buffer(), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::FindValuesReply>(reply.header));
  FoundValues result;
  result.head = head_of(answer.head());
  if (!result.head.status.ok()) co_return result;
  ICE_CO_TRY(const auto statuses, statuses_of(answer.failures(), keys.size()));
  if (answer.value_bytes_size() != static_cast<int>(keys.size())) {
    co_return impossible("another number of values");
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].ok()) {
      result.sizes.emplace_back(static_cast<std::int64_t>(answer.value_bytes(static_cast<int>(i))));
    } else {
      result.sizes.emplace_back(statuses[i]);
    }
  }
  co_return result;
}

Task<ValueHead> ValueStub::remove(ValueScope scope, std::vector<std::string_view> keys,
                                  Deadline deadline) {
  proto::RemoveValuesRequest message;
  put_scope(scope, message.mutable_scope());
  put_keys(keys, same, message.mutable_keys());
  ICE_CO_TRY(const Reply reply,
             co_await ask(NodeMethod::kRemoveValues, message, Buffer(), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::RemoveValuesReply>(reply.header));
  co_return head_of(answer.head());
}

Task<ListedValues> ValueStub::list(ValueScope scope, std::string_view prefix, std::string after,
                                   std::int64_t limit, Deadline deadline) {
  proto::ListValuesRequest message;
  put_scope(scope, message.mutable_scope());
  message.set_prefix(std::string(prefix));
  message.set_after(std::move(after));
  message.set_limit(static_cast<std::uint32_t>(limit));
  ICE_CO_TRY(const Reply reply, co_await ask(NodeMethod::kListValues, message, Buffer(), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::ListValuesReply>(reply.header));
  ListedValues result;
  result.head = head_of(answer.head());
  result.more = answer.more();
  std::string_view text = answer.keys().text();
  if (answer.keys().lengths_size() != answer.value_bytes_size()) {
    co_return impossible("another number of values");
  }
  for (int i = 0; i < answer.value_bytes_size(); ++i) {
    const std::size_t length = answer.keys().lengths(i);
    if (length > text.size()) co_return impossible("keys longer than their text");
    result.values.push_back({.key = std::string(text.substr(0, length)),
                             .bytes = static_cast<std::int64_t>(answer.value_bytes(i))});
    text.remove_prefix(length);
  }
  co_return result;
}

Task<ValueHead> ValueStub::flush(ValueScope scope, Deadline deadline) {
  proto::FlushValuesRequest message;
  put_scope(scope, message.mutable_scope());
  ICE_CO_TRY(const Reply reply,
             co_await ask(NodeMethod::kFlushValues, message, Buffer(), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::FlushValuesReply>(reply.header));
  co_return head_of(answer.head());
}

Task<NodeStats> ValueStub::stats(Deadline deadline) {
  const proto::NodeStatsRequest message;
  ICE_CO_TRY(const Reply reply, co_await call_node(transport_, node_, NodeMethod::kStats, message,
                                                   {}, Buffer(), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::NodeStatsReply>(reply.header));
  NodeStats stats;
  for (const proto::TierUsage& tier : answer.tiers()) stats.tiers.push_back(from_proto(tier));
  for (const proto::NamedCount& counter : answer.counters()) {
    stats.counters.push_back(
        {.name = counter.name(), .value = static_cast<std::int64_t>(counter.value())});
  }
  for (const proto::NamespaceStats& space : answer.namespaces()) {
    stats.namespaces.push_back({.name_space = space.name_space(),
                                .flush_number = space.flush_number(),
                                .value_count = static_cast<std::int64_t>(space.value_count()),
                                .value_bytes = static_cast<std::int64_t>(space.value_bytes())});
  }
  co_return stats;
}

Task<> ValueStub::ping(Deadline deadline) {
  const proto::NodeStatsRequest message;
  const Result<Reply> reply =
      co_await call_node(transport_, node_, NodeMethod::kPing, message, {}, Buffer(), deadline);
  co_return reply.status();
}

}  // namespace icefield
