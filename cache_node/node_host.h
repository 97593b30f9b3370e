// cache_node/node_host.h — a cache node with its tiers and its server, ready for a transport.
#pragma once

#include <memory>
#include <string>

#include "cache_node/measured_service.h"
#include "cache_node/node_server.h"
#include "storage/nvme_tier.h"

namespace icefield {

// Ownership  Owns everything from the tiers up.
// Threads    One shard: the executor given to open().
class NodeHost {
 public:
  struct Options {
    std::int64_t dram_bytes = std::int64_t{1} << 30;
    // The memory for objects, in the place of dram_bytes, when it is a region of the transport:
    // then clients read values by themselves. It must outlive the host.
    Region slab = {};
    std::string store;                           // directory of the NVMe tier; empty: memory only
    std::int64_t nvme_bytes = 0;                 // limit of its files; 0: the disk's
    EvictionKind eviction = EvictionKind::kArc;  // of both tiers
    bool create = true;                          // false: a store that is not there is kNotFound
  };

  // Opens the tiers and recovers what the disk holds. Errors as NvmeTier::open(),
  // DramTier::open() and CacheNode::recover(). Blocks; not from the shard's own thread.
  static Result<std::unique_ptr<NodeHost>> open(Options options, asio::any_io_executor shard);

  Service& service() { return measured_; }
  // What the node, its tiers and its requests counted. On the shard.
  void collect(MetricsPage& page) const;
  // After the transport has stopped, before the destructor: everything acknowledged survives a
  // restart.
  Task<> stop();

  DramTier& memory() { return *memory_; }
  NvmeTier* disk() { return disk_.get(); }
  CacheNode& node() { return node_; }

 private:
  NodeHost(std::unique_ptr<DramTier> memory, std::unique_ptr<NvmeTier> disk, Region slab)
      : memory_(std::move(memory)),
        disk_(std::move(disk)),
        node_(clock_, *memory_, disk_.get()),
        server_(node_, clock_, std::move(slab)),
        measured_(server_, clock_) {}

  SystemClock clock_;
  std::unique_ptr<DramTier> memory_;
  std::unique_ptr<NvmeTier> disk_;
  CacheNode node_;
  NodeServer server_;
  MeasuredService measured_;
};

}  // namespace icefield
