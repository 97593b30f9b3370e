// cache_node/node_server.h — answers requests for a node: decodes, validates once, encodes.
#pragma once

#include "cache_node/node.h"
#include "cache_node/value_server.h"
#include "transport/transport.h"

namespace icefield {

// Threads  The node's shard.
// Errors   kInvalidArgument for a request that cannot be decoded or exceeds a limit; what goes
//          wrong with an item is that item's outcome.
class NodeServer final : public Service {
 public:
  // `slab` is the node's memory tier, where that is a region; else empty.
  explicit NodeServer(CacheNode& node, const Clock& clock = system_clock(), Region slab = {})
      : node_(node), values_(node.values(), clock, std::move(slab)) {}
  std::unique_ptr<Landing> land(const Caller& caller, MethodId method, std::string_view header,
                                std::int64_t payload_bytes) override;
  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override;
  void closed(const Caller& caller) override { values_.closed(caller); }

  const ValueServer& values() const { return values_; }

 private:
  Task<ServiceReply> put(const Caller& caller, const std::string& header, ConstByteSpan payload);
  Task<ServiceReply> get(const Caller& caller, const std::string& header);
  Task<ServiceReply> remove(const Caller& caller, const std::string& header);
  Task<ServiceReply> match(const Caller& caller, const std::string& header);
  Task<ServiceReply> read_pages(const Caller& caller, const std::string& header);
  Task<ServiceReply> list(const Caller& caller, const std::string& header);
  ServiceReply stats(const Caller& caller) const;

  CacheNode& node_;
  ValueServer values_;
};

}  // namespace icefield
