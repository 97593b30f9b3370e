#include "cache_node/value_stub.h"

#include <optional>

#include "cache_node/node_messages.h"
#include "cache_node/stub_call.h"

namespace icefield {
namespace {

// Of those that no request has told; they are over after a second anyway.
constexpr std::size_t kMostEndedLeases = 4096;
// Calls by message before a region that could not be reached is tried again.
constexpr int kUnreachableCalls = 4096;
// Room is wanted for the largest put of the last ones, as many as this or twice as many.
constexpr std::int64_t kRecentPuts = 16;
// Kept for puts side by side.
constexpr std::size_t kMostRooms = 16;
// Of a room, and a slot of it: more makes no sense.
constexpr std::uint64_t kMostRoomBytes = std::uint64_t{1} << 40;

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

// Every chunk of a put, in order.
template <class Visit>
void for_each_chunk(const PutValues& request, Visit visit) {
  for (const PutValue& value : request.values) {
    const std::int64_t end = value.first_chunk + std::ssize(value.checksums);
    for (std::int64_t chunk = value.first_chunk; chunk < end; ++chunk) {
      visit(chunk_range(value.value_bytes, chunk, 0, value.value_bytes).chunk_bytes);
    }
  }
}

std::int64_t slots_bytes(std::int64_t chunk_bytes, std::int64_t slot_bytes) {
  return round_up(std::max<std::int64_t>(chunk_bytes, 1), slot_bytes);
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
  const std::lock_guard lock(mutex_);
  out->mutable_ended_leases()->Add(ended_leases_.begin(), ended_leases_.end());
  ended_leases_.clear();
  out->mutable_ended_rooms()->Add(ended_rooms_.begin(), ended_rooms_.end());
  ended_rooms_.clear();
}

void ValueStub::take_back(const proto::ValueScope& scope) {
  const std::lock_guard lock(mutex_);
  ended_leases_.insert(ended_leases_.end(), scope.ended_leases().begin(),
                       scope.ended_leases().end());
  if (ended_leases_.size() > kMostEndedLeases) ended_leases_.clear();
  ended_rooms_.insert(ended_rooms_.end(), scope.ended_rooms().begin(), scope.ended_rooms().end());
}

std::shared_ptr<const ValueStub::KnownRegion> ValueStub::start_get(
    const GetValues& request, proto::GetValuesRequest& message) {
  put_scope(request.scope, message.mutable_scope());
  message.set_scrub(request.scrub);
  message.set_locate(!request.scrub);
  const std::lock_guard lock(mutex_);
  message.set_region(region_->hash);
  message.set_unreachable(unreachable_ > 0);
  if (unreachable_ > 0) --unreachable_;
  return region_;
}

std::shared_ptr<const ValueStub::KnownRegion> ValueStub::learn_region(const std::string& key) {
  const std::uint64_t hash = xxh3(as_bytes(key), 0);
  if (region_->hash != hash) {
    unreachable_ = 0;
    region_ = std::make_shared<const KnownRegion>(KnownRegion{.key = key, .hash = hash});
    rooms_.clear();  // another node's
    ended_rooms_.clear();
  }
  return region_;
}

template <class Message>
Task<Reply> ValueStub::ask(NodeMethod method, const Message& message, Buffer into,
                           Deadline deadline) {
  Result<Reply> reply =
      co_await call_node(transport_, node_, method, message, {}, std::move(into), deadline);
  if (!reply.has_value()) take_back(message.scope());
  co_return reply;
}

Task<PutValuesReply> ValueStub::put(PutValues request, Deadline deadline) {
  proto::PutValuesRequest message;
  put_scope(request.scope, message.mutable_scope());
  std::vector<ConstByteSpan> payload;
  put_values(request, message, payload);
  std::shared_ptr<const KnownRegion> known;
  std::optional<Room> room = start_put(request, message, known);
  while (true) {
    message.set_room(room.has_value() ? room->number : 0);
    Request call(static_cast<MethodId>(NodeMethod::kPutValues), message.SerializeAsString());
    call.payload = payload;
    call.departure = request.departure;
    if (room.has_value()) call.room = place_of(*room, request);
    Buffer nothing;
    const Result<Reply> reply =
        co_await transport_.call(node_, std::move(call), std::move(nothing), deadline);
    if (!reply.has_value()) {
      take_back(message.scope());
      const std::lock_guard lock(mutex_);
      if (room.has_value()) end_room(*room);
      co_return reply.error();
    }
    Status lost = reply->unplaced;
    if (lost.ok()) {
      ICE_CO_TRY(const auto answer, parse_message<proto::PutValuesReply>(reply->header));
      if (answer.room().number() != 0) keep_room(answer.room(), known);
      if (!answer.room_gone()) co_return parse_put(answer, request.values.size());
      lost = Status(Code::kAborted, "the node has taken the room back");
      message.mutable_scope()->clear_ended_leases();  // it has heard of those
      message.mutable_scope()->clear_ended_rooms();
    }
    if (!room.has_value()) co_return impossible("of a room that was not named");
    lose_room(*room, lost.code(), message, known);
    room.reset();
  }
}

std::optional<ValueStub::Room> ValueStub::start_put(const PutValues& request,
                                                    proto::PutValuesRequest& message,
                                                    std::shared_ptr<const KnownRegion>& known) {
  std::int64_t bytes = 0;
  std::int64_t chunks = 0;
  const auto count = [&](std::int64_t chunk_bytes) {
    bytes += chunk_bytes;
    ++chunks;
  };
  for_each_chunk(request, count);
  const bool large = bytes >= std::max(kPlacedBytes, chunks * kPlacedRunBytes);
  if (!large || request.options.level == WriteLevel::kDurable) return std::nullopt;
  const std::lock_guard lock(mutex_);
  std::int64_t wanted = 0;
  for_each_chunk(request, [&](std::int64_t size) { wanted += slots_bytes(size, slot_bytes_); });
  message.set_room_wanted(static_cast<std::uint64_t>(room_wanted(wanted)));
  name_region(message, known);
  if (unreachable_ > 0) {
    --unreachable_;
    return std::nullopt;
  }
  const auto fits = [&](const Room& room) {
    return room.bytes >= wanted && room.slot_bytes == slot_bytes_;
  };
  const auto newest = std::find_if(rooms_.rbegin(), rooms_.rend(), fits);
  if (newest == rooms_.rend()) return std::nullopt;
  std::optional<Room> room = std::move(*newest);
  rooms_.erase(std::next(newest).base());
  return room;
}

void ValueStub::name_region(proto::PutValuesRequest& message,
                            std::shared_ptr<const KnownRegion>& known) {
  known = region_;
  message.set_region(known->hash);
  message.set_unreachable(unreachable_ > 0);
}

std::int64_t ValueStub::room_wanted(std::int64_t bytes) {
  if (room_puts_++ % kRecentPuts == 0) largest_before_ = std::exchange(largest_put_, 0);
  largest_put_ = std::max(largest_put_, bytes);
  return std::max(largest_put_, largest_before_);
}

// Chunk by chunk, each from the start of a slot on.
RegionRoom ValueStub::place_of(Room& room, const PutValues& request) {
  RegionRoom place{.to = {.key = room.region->key, .runs = {}},
                   .ticket_offset = room.runs.front().offset,
                   .ticket = room.number};
  std::vector<RegionRun>& out = place.to.runs;
  auto run = room.runs.begin();
  const auto add = [&](std::int64_t bytes) {
    std::int64_t slots = slots_bytes(bytes, room.slot_bytes);
    while (slots > 0) {
      const std::int64_t part = std::min(run->bytes, slots);
      const std::int64_t used = std::min(part, bytes);
      if (!out.empty() && out.back().offset + out.back().bytes == run->offset) {
        out.back().bytes += used;
      } else if (used > 0) {
        out.push_back({.offset = run->offset, .bytes = used});
      }
      run->offset += part;
      run->bytes -= part;
      slots -= part;
      bytes -= used;
      if (run->bytes == 0) ++run;
    }
  };
  for_each_chunk(request, add);
  return place;
}

void ValueStub::keep_room(const proto::PutRoom& granted, std::shared_ptr<const KnownRegion> known) {
  Room room{.number = granted.number(), .region = std::move(known)};
  const int count = std::min(granted.offsets_size(), granted.lengths_size());
  for (int i = 0; i < count; ++i) {
    if (granted.lengths(i) == 0 || granted.lengths(i) > kMostRoomBytes) return;
    room.runs.push_back({.offset = static_cast<std::int64_t>(granted.offsets(i)),
                         .bytes = static_cast<std::int64_t>(granted.lengths(i))});
    room.bytes += room.runs.back().bytes;
  }
  if (count == 0 || granted.slot_bytes() == 0 || granted.slot_bytes() > kMostRoomBytes) return;
  room.slot_bytes = static_cast<std::int64_t>(granted.slot_bytes());
  const std::lock_guard lock(mutex_);
  if (!granted.region_key().empty()) room.region = learn_region(granted.region_key());
  if (room.region != region_) return;  // it was not asked for, or that node has gone
  slot_bytes_ = room.slot_bytes;
  rooms_.push_back(std::move(room));
  if (rooms_.size() <= kMostRooms) return;
  end_room(rooms_.front());
  rooms_.erase(rooms_.begin());
}

// Where the node took back one, it has those that are older, too.
void ValueStub::lose_room(const Room& room, Code why, proto::PutValuesRequest& message,
                          std::shared_ptr<const KnownRegion>& known) {
  const std::lock_guard lock(mutex_);
  const bool unreachable = why != Code::kAborted;
  if (region_ == room.region) {
    if (unreachable) unreachable_ = kUnreachableCalls;
    const auto lost = [&](const Room& other) { return unreachable || other.number < room.number; };
    end_room(room);
    for (const Room& other : rooms_) {
      if (lost(other)) end_room(other);
    }
    std::erase_if(rooms_, lost);
  }
  name_region(message, known);
}

void ValueStub::end_room(const Room& room) {
  if (room.region == region_) ended_rooms_.push_back(room.number);
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
  const std::shared_ptr<const KnownRegion> known = start_get(request, message);
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
    take_back(message.scope());
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
                                                std::shared_ptr<const KnownRegion> region,
                                                Buffer into, GetArrival& arrival,
                                                Deadline deadline) {
  if (!placed.region_key().empty()) {
    const std::lock_guard lock(mutex_);
    region = learn_region(placed.region_key());
  }
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
  {
    const std::lock_guard lock(mutex_);
    ended_leases_.push_back(placed.lease());
    if (out_of_reach && region_->hash == region->hash) unreachable_ = kUnreachableCalls;
  }
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
