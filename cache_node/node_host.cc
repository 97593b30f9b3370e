#include "cache_node/node_host.h"

namespace icefield {

Result<std::unique_ptr<NodeHost>> NodeHost::open(Options options, asio::any_io_executor shard) {
  ICE_TRY(auto memory, DramTier::open({.capacity_bytes = options.dram_bytes}));
  std::unique_ptr<NvmeTier> disk;
  if (!options.store.empty()) {
    ICE_TRY(disk, NvmeTier::open({.path = options.store, .create = options.create}));
  }
  std::unique_ptr<NodeHost> host(new NodeHost(std::move(memory), std::move(disk)));
  ICE_TRY(sync_wait(shard, host->node_.recover()));
  return host;
}

}  // namespace icefield
