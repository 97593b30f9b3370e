// cache_node/value_server.h — answers requests about values for a node.
#pragma once

#include "cache_node/messages.h"
#include "cache_node/node_values.h"
#include "cache_node/read_leases.h"
#include "transport/transport.h"

namespace icefield {

namespace proto {
class GetValuesReply;
class GetValuesRequest;
}  // namespace proto

// Where memory is a region of the transport, large payloads of gets stay where they are, and the
// reply says where: to callers that may use every namespace, because whoever can read something of
// a region can read all of it.
//
// Threads  The node's shard.
// Errors   kInvalidArgument for a request that cannot be decoded or exceeds a limit; what goes
//          wrong with an item is that item's outcome.
class ValueServer {
 public:
  // `slab` is where the values in memory are, or empty.
  ValueServer(NodeValues& values, const Clock& clock, Region slab);
  // As those of Service.
  std::unique_ptr<Landing> land(const Caller& caller, NodeMethod method, std::string_view header,
                                std::int64_t payload_bytes);
  Task<ServiceReply> handle(const Caller& caller, NodeMethod method, const std::string& header,
                            Payload payload);
  void closed(const Caller& caller) { leases_.end_all(caller.connection().number); }
  // Before anything that may want room in memory.
  void expire_leases() { leases_.expire(clock_.now()); }

  std::vector<const Counter*> counters() const { return {&placed, &leases_.lapsed}; }
  const ReadLeases& leases() const { return leases_; }
  // Whether memory is a region.
  bool shared() const { return !slab_.bytes.empty(); }

  Counter placed{"icefield_cache_node_value_gets_placed_total",
                 "gets of values that clients were left to read by themselves"};

 private:
  // Decodes any request and checks what all have in common. The one place where a caller's right
  // to a namespace of values is checked.
  template <class Message>
  Result<Message> admit(const Caller& caller, std::string_view header);

  Task<ServiceReply> put(const Caller& caller, const std::string& header, Payload payload);
  Task<ServiceReply> get(const Caller& caller, const std::string& header);
  Task<ServiceReply> find(const Caller& caller, const std::string& header);
  Task<ServiceReply> remove(const Caller& caller, const std::string& header);
  Task<ServiceReply> list(const Caller& caller, const std::string& header);
  Task<ServiceReply> flush(const Caller& caller, const std::string& header);

  // Says where the payload of `reads` is and takes its leases; false when it has to be sent.
  bool place(const Caller& caller, const proto::GetValuesRequest& request, ValueReads& reads,
             proto::GetValuesReply& answer);

  NodeValues& values_;
  const Clock& clock_;
  const Region slab_;
  const std::uint64_t region_;  // as requests call it
  ReadLeases leases_;
};

}  // namespace icefield
