// cache_node/value_server.h — answers requests about values for a node.
#pragma once

#include "cache_node/messages.h"
#include "cache_node/node_values.h"
#include "transport/transport.h"

namespace icefield {

// Threads  The node's shard.
// Errors   kInvalidArgument for a request that cannot be decoded or exceeds a limit; what goes
//          wrong with an item is that item's outcome.
class ValueServer {
 public:
  explicit ValueServer(NodeValues& values) : values_(values) {}
  // As those of Service.
  std::unique_ptr<Landing> land(const Caller& caller, NodeMethod method, std::string_view header,
                                std::int64_t payload_bytes);
  Task<ServiceReply> handle(const Caller& caller, NodeMethod method, const std::string& header,
                            Payload payload);

 private:
  // Decodes any request and checks what all have in common. The one place where a caller's right
  // to a namespace of values is checked.
  template <class Message>
  static Result<Message> admit(const Caller& caller, std::string_view header);

  Task<ServiceReply> put(const Caller& caller, const std::string& header, Payload payload);
  Task<ServiceReply> get(const Caller& caller, const std::string& header);
  Task<ServiceReply> find(const Caller& caller, const std::string& header);
  Task<ServiceReply> remove(const Caller& caller, const std::string& header);
  Task<ServiceReply> list(const Caller& caller, const std::string& header);
  Task<ServiceReply> flush(const Caller& caller, const std::string& header);

  NodeValues& values_;
};

}  // namespace icefield
