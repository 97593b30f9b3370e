// cache_node/value_stub.h — the values of a cache node as its clients see them.
#pragma once

#include <atomic>
#include <optional>

#include "cache_node/messages.h"
#include "cache_node/node_memory.h"
#include "cache_node/value_messages.h"
#include "transport/transport.h"

namespace icefield {

namespace proto {
class PlacedPayload;
class PutValuesReply;
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

  // At most kMaxRequestBytes and RequestKeys, as all batches.
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
  // The payload of a get, and what came of it when it was read one-sided.
  struct Fetched {
    Buffer payload;
    Status unread;
  };
  Result<PutValuesReply> parse_put(const proto::PutValuesReply& answer, std::size_t count) const;
  Result<GetValuesReply> parse_get(std::string_view header, std::size_t count,
                                   std::optional<proto::PlacedPayload>& placed) const;
  Task<Fetched> read_placed(const proto::PlacedPayload& placed, NodeMemory::Known region,
                            Buffer into, GetArrival& arrival, Deadline deadline);
  // What starts every request.
  void put_scope(const ValueScope& scope, proto::ValueScope* out);
  // Calls the node with a message that begins with a scope.
  template <class Message>
  Task<Reply> ask(NodeMethod method, const Message& message, Buffer into, Deadline deadline);
  Status impossible(const std::string& what) const;

  Transport& transport_;
  const Address node_;
  NodeMemory memory_;
};

}  // namespace icefield
