#include "cache_node/node_host.h"

#include "cache_node/metrics_page.h"

namespace icefield {

Result<std::unique_ptr<NodeHost>> NodeHost::open(Options options, asio::any_io_executor shard) {
  ICE_TRY(auto memory, DramTier::open({.capacity_bytes = options.dram_bytes,
                                       .eviction = options.eviction,
                                       .memory = options.slab.bytes}));
  std::unique_ptr<NvmeTier> disk;
  if (!options.store.empty()) {
    ICE_TRY(disk, NvmeTier::open({.path = options.store,
                                  .capacity_bytes = options.nvme_bytes,
                                  .eviction = options.eviction,
                                  .create = options.create}));
  }
  std::unique_ptr<NodeHost> host(
      new NodeHost(std::move(memory), std::move(disk), std::move(options.slab)));
  if (host->disk_ != nullptr) {
    CacheNode& node = host->node_;
    host->disk_->on_evict([&node](const ObjectKey& key) { node.note_disk_evicted(key); });
  }
  ICE_TRY(sync_wait(shard, host->node_.recover()));
  return host;
}

void NodeHost::collect(MetricsPage& page) const {
  measured_.collect(page);
  page.add(node_.disk_reads);
  page.add(node_.page_reads);
  for (const Counter* counter : node_.values().counters()) page.add(*counter);
  for (const Counter* counter : server_.values().counters()) page.add(*counter);
  page.add(memory_->evicted);
  page.add(memory_->expired);
  page.add(memory_->damaged);
  if (disk_ != nullptr) {
    page.add(disk_->evicted);
    page.add(disk_->expired);
    page.add(disk_->flushes);
    page.add(disk_->damaged);
    page.add(disk_->read_bytes);
  }
  const ListBuildsReply listed = node_.list();
  for (const TierUsage& tier : listed.tiers) {
    const MetricsPage::Labels labels = {{"tier", tier.name}};
    page.add_gauge("icefield_storage_objects", "objects stored",
                   static_cast<double>(tier.object_count), labels);
    page.add_gauge("icefield_storage_used_bytes", "bytes of stored objects, slots included",
                   static_cast<double>(tier.used_bytes), labels);
    page.add_gauge("icefield_storage_capacity_bytes", "0: not limited",
                   static_cast<double>(tier.capacity_bytes), labels);
  }
  page.add_gauge("icefield_cache_node_read_leases_bytes",
                 "bytes that stay in place because clients read them by themselves",
                 static_cast<double>(server_.values().leases().bytes()));
  page.add_gauge("icefield_cache_node_put_rooms_bytes",
                 "bytes that clients may write by themselves, for puts to come",
                 static_cast<double>(server_.values().rooms().bytes()));
  page.add_gauge("icefield_cache_node_memory_shared",
                 "1 when clients of this machine may read and write values by themselves, else 0",
                 server_.values().shared() ? 1 : 0);
  page.add_gauge("icefield_cache_node_builds", "builds that can be found",
                 static_cast<double>(listed.builds.size()));
}

Task<> NodeHost::stop() {
  ICE_CO_TRY(co_await node_.stop());
  if (disk_ == nullptr) co_return Status();
  co_return co_await disk_->flush();
}

}  // namespace icefield
