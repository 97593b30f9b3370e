// cache_node/value_server.h — answers requests about values for a node.
#pragma once

#include "cache_node/messages.h"
#include "cache_node/node_values.h"
#include "cache_node/put_rooms.h"
#include "cache_node/read_leases.h"
#include "transport/transport.h"

namespace icefield {

class PutLanding;

namespace proto {
class GetValuesReply;
class GetValuesRequest;
class PutValuesReply;
class PutValuesRequest;
}  // namespace proto

// Where memory is a region of the transport, large payloads of gets stay where they are, and the
// reply says where; replies to puts say where the next one may go. To callers that may use every
// namespace, because whoever can reach something of a region can reach all of it.
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
  void closed(const Caller& caller) {
    leases_.end_all(caller.connection().number);
    rooms_.end_all(caller.connection().number, clock_.now());
  }
  // Before anything that may want room in memory.
  void expire() {
    leases_.expire(clock_.now());
    rooms_.expire(clock_.now());
  }

  std::vector<const Counter*> counters() const {
    return {&placed, &leases_.lapsed, &placed_puts, &rooms_.taken_back};
  }
  const ReadLeases& leases() const { return leases_; }
  const PutRooms& rooms() const { return rooms_; }
  // Whether memory is a region.
  bool shared() const { return !slab_.bytes.empty(); }

  Counter placed{"icefield_cache_node_value_gets_placed_total",
                 "gets of values that clients were left to read by themselves"};
  Counter placed_puts{"icefield_cache_node_value_puts_placed_total",
                      "requests to put values that clients had written by themselves"};

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

  // Whether the caller may reach memory by itself.
  bool may_reach(const Caller& caller) const {
    return shared() && caller.connection().one_sided && caller.may_use_all();
  }
  // Room for a put to come, of the size that the request says; where nobody may have so much, of
  // the size of this one.
  Task<> grant(const Caller& caller, PutLanding& landing, proto::PutValuesReply& reply);
  // Says where the payload of `reads` is and takes its leases; false when it has to be sent.
  bool place(const Caller& caller, const proto::GetValuesRequest& request, ValueReads& reads,
             proto::GetValuesReply& answer);

  NodeValues& values_;
  const Clock& clock_;
  const Region slab_;
  const std::uint64_t region_;  // as requests call it
  ReadLeases leases_;
  PutRooms rooms_;
};

}  // namespace icefield
