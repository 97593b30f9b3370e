// cache_node/value_stub.h — the values of a cache node as its clients see them.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>

#include "cache_node/messages.h"
#include "cache_node/value_messages.h"
#include "transport/transport.h"

namespace icefield {

namespace proto {
class GetValuesRequest;
class PlacedPayload;
class PutRoom;
class PutValuesReply;
class PutValuesRequest;
class ValueScope;
}  // namespace proto

struct GetValuesReply {
  ValueHead head;
  ValueFacts facts;
  Buffer payload;  // the bytes of the items that were found, back to back; not verified
  // Not ok: the node said where the payload is, and it could not be read there. A scrubbing get
  // asks for it by message.
  Status unread;
};

// Sees the values of a get while they arrive; as transport's Arrival otherwise.
class ValueArrival {
 public:
  virtual ~ValueArrival() = default;
  virtual void arrived(const ValueFacts& facts, ConstByteSpan payload) = 0;

  // The caller of the get has gone, and stub and transport may: it touches them no more.
  void abandon() { abandoned_ = true; }
  bool abandoned() const { return abandoned_; }

 private:
  std::atomic<bool> abandoned_ = false;
};

// What keys, parts and checksums point at must stay in place until the call returns.
//
// A node of this machine says of large payloads where they are, and they are read one-sided. What
// it keeps in place for that it gets back with the next request, whatever that is; if none follows,
// after a second. With replies to large puts it grants room, where one put to come is written
// one-sided: those that find none go by message, and bring some.
//
// Errors   Those of the transport, and kInternal when the node answers something impossible.
//          Reply heads say what the node refused, items what went wrong with them.
// Threads  Any executor; calls may run side by side.
class ValueStub {
 public:
  ValueStub(Transport& transport, Address node) : transport_(transport), node_(std::move(node)) {}

  const Address& address() const { return node_; }

  // At most kMaxRequestBytes and kMaxRequestItems, as all batches.
  Task<PutValuesReply> put(PutValues request, Deadline deadline);
  // `into` must hold what is found. `arrival` may be null. Scrubbing gets come by message.
  Task<GetValuesReply> get(GetValues request, Buffer into, Deadline deadline,
                           std::shared_ptr<ValueArrival> arrival);
  Task<FoundValues> find(ValueScope scope, std::vector<std::string_view> keys, Deadline deadline);
  Task<ValueHead> remove(ValueScope scope, std::vector<std::string_view> keys, Deadline deadline);
  Task<ListedValues> list(ValueScope scope, std::string_view prefix, std::string after,
                          std::int64_t limit, Deadline deadline);
  // Raises the flush number to the scope's.
  Task<ValueHead> flush(ValueScope scope, Deadline deadline);
  Task<NodeStats> stats(Deadline deadline);
  Task<> ping(Deadline deadline);
  // Of the connection, as this side knows.
  Task<PeerHealth> health() { return transport_.health(node_); }

 private:
  class GetArrival;
  // What was read of a node before it was started again is another region.
  struct KnownRegion {
    std::string key;
    std::uint64_t hash = 0;  // 0: none
  };
  // The payload of a get, and what came of it when it was read one-sided.
  struct Fetched {
    Buffer payload;
    Status unread;
  };
  // Granted for a put to come.
  struct Room {
    std::uint64_t number = 0;
    std::shared_ptr<const KnownRegion> region;
    std::vector<RegionRun> runs;  // whole slots
    std::int64_t bytes = 0;       // of all runs
    std::int64_t slot_bytes = 0;
  };
  // Asks for room and takes what there is for the put; none: it goes by message. `known` is the
  // region that the message names.
  std::optional<Room> start_put(const PutValues& request, proto::PutValuesRequest& message,
                                std::shared_ptr<const KnownRegion>& known);
  // With mutex_. Says what a request to put knows of the region.
  void name_region(proto::PutValuesRequest& message, std::shared_ptr<const KnownRegion>& known);
  void keep_room(const proto::PutRoom& granted, std::shared_ptr<const KnownRegion> known);
  // Of a put that goes by message after all: the node has taken the room back (kAborted), or it is
  // out of reach.
  void lose_room(const Room& room, Code why, proto::PutValuesRequest& message,
                 std::shared_ptr<const KnownRegion>& known);
  // With mutex_. Nothing is written there any more.
  void end_room(const Room& room);
  // With mutex_. How much the next put may want, this one wanted so much.
  std::int64_t room_wanted(std::int64_t bytes);
  static RegionRoom place_of(Room& room, const PutValues& request);
  Result<PutValuesReply> parse_put(const proto::PutValuesReply& answer, std::size_t count) const;
  // With mutex_. The region that a reply names.
  std::shared_ptr<const KnownRegion> learn_region(const std::string& key);

  Result<GetValuesReply> parse_get(std::string_view header, std::size_t count,
                                   std::optional<proto::PlacedPayload>& placed) const;
  Task<Fetched> read_placed(const proto::PlacedPayload& placed,
                            std::shared_ptr<const KnownRegion> region, Buffer into,
                            GetArrival& arrival, Deadline deadline);
  // What starts every request.
  void put_scope(const ValueScope& scope, proto::ValueScope* out);
  // The leases and rooms that a request was to end, which nobody has answered.
  void take_back(const proto::ValueScope& scope);
  // As put_scope(), and whether and where the node may leave the payload.
  std::shared_ptr<const KnownRegion> start_get(const GetValues& request,
                                               proto::GetValuesRequest& message);
  // Calls the node with a message that begins with a scope.
  template <class Message>
  Task<Reply> ask(NodeMethod method, const Message& message, Buffer into, Deadline deadline);
  Status impossible(const std::string& what) const;

  Transport& transport_;
  const Address node_;
  std::mutex mutex_;  // guards the rest; never held across a call
  std::shared_ptr<const KnownRegion> region_ = std::make_shared<const KnownRegion>();
  int unreachable_ = 0;                      // so many more calls until the region is tried again
  std::vector<std::uint64_t> ended_leases_;  // not told yet
  std::vector<std::uint64_t> ended_rooms_;   // as well: few, the node grants no more until it knows
  std::vector<Room> rooms_;                  // the newest last; few
  std::int64_t room_puts_ = 0;               // those that had room, or would have liked it
  std::int64_t largest_put_ = 0;             // of them, since they were a multiple of kRecentPuts
  std::int64_t largest_before_ = 0;          // of as many before
  std::int64_t slot_bytes_ = 1;              // of the last room
};

}  // namespace icefield
