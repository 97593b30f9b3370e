// tools/embedded_node.h — a cache node in this process, reached through the loopback transport.
#pragma once

#include <memory>

#include "cache_node/node_host.h"
#include "client/context_store.h"
#include "common/shard.h"
#include "transport/loopback/loopback_transport.h"

namespace icefield {

// Ownership  Owns everything down to its one thread, which runs node, transport and client.
// Threads    store() from any thread but its own.
class EmbeddedNode {
 public:
  using Options = NodeHost::Options;

  static Result<std::unique_ptr<EmbeddedNode>> open(Options options);
  ~EmbeddedNode();

  ContextStore& store() { return store_; }
  NodeStub& stub() { return nodes_.view()->node(0).contexts(); }
  asio::any_io_executor executor() { return shard_.executor(); }

  // For tests that damage or count: use them on executor() only.
  DramTier& memory() { return host_->memory(); }
  NvmeTier* disk() { return host_->disk(); }
  CacheNode& node() { return host_->node(); }
  Transport& transport() { return transport_; }

 private:
  EmbeddedNode();

  Shard shard_;  // goes last: the others have timers of it
  SystemClock clock_;
  LoopbackTransport transport_;
  StaticMembership membership_;
  Nodes nodes_;
  ContextStore store_;
  std::unique_ptr<NodeHost> host_;
};

}  // namespace icefield
