// tools/embedded_node.h — a cache node in this process, reached through the loopback transport.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <string>
#include <thread>

#include "cache_node/node.h"
#include "cache_node/node_server.h"
#include "cache_node/node_stub.h"
#include "client/context_store.h"
#include "storage/dram_tier.h"
#include "storage/nvme_tier.h"
#include "transport/loopback/loopback_transport.h"

namespace icefield {

// Ownership  Owns everything down to its one thread, which runs node, transport and client.
// Threads    store() from any thread but its own.
class EmbeddedNode {
 public:
  struct Options {
    std::int64_t dram_bytes = std::int64_t{1} << 30;
    std::string store;   // directory of the NVMe tier; empty: memory only
    bool create = true;  // false: a store that is not there is kNotFound
  };

  // Opens the tiers and recovers the store. Errors as NvmeTier::open() and DramTier::open().
  static Result<std::unique_ptr<EmbeddedNode>> open(Options options);
  ~EmbeddedNode();

  ContextStore& store() { return store_; }
  NodeStub& stub() { return stub_; }
  asio::any_io_executor executor() { return io_.get_executor(); }

  // For tests that damage or count: use them on executor() only.
  DramTier& memory() { return *memory_; }
  NvmeTier* disk() { return disk_.get(); }
  CacheNode& node() { return *node_; }
  Transport& transport() { return transport_; }

 private:
  EmbeddedNode();

  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  LoopbackTransport transport_;
  std::unique_ptr<DramTier> memory_;
  std::unique_ptr<NvmeTier> disk_;
  std::unique_ptr<CacheNode> node_;
  std::unique_ptr<NodeServer> server_;
  NodeStub stub_;
  ContextStore store_;
  std::thread thread_;
};

}  // namespace icefield
