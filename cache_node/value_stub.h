// cache_node/value_stub.h — the values of a cache node as its clients see them.
#pragma once

#include "cache_node/messages.h"
#include "cache_node/value_messages.h"
#include "transport/transport.h"

namespace icefield {

struct GetValuesReply {
  ValueHead head;
  ValueFacts facts;
  Buffer payload;  // the bytes of the items that were found, back to back; not verified
};

// Sees the values of a get while they arrive; as transport's Arrival otherwise.
class ValueArrival {
 public:
  virtual ~ValueArrival() = default;
  virtual void arrived(const ValueFacts& facts, ConstByteSpan payload) = 0;
};

// What keys, parts and checksums point at must stay in place until the call returns.
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
  // `into` must hold what is found. `arrival` may be null.
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
  Result<GetValuesReply> parse_get(std::string_view header, std::size_t count) const;
  Status impossible(const std::string& what) const;

  Transport& transport_;
  const Address node_;
};

}  // namespace icefield
