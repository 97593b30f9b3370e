// cache_node/node.h — keeps objects in its tiers and knows which builds they make up.
#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "cache_node/messages.h"
#include "cache_node/node_values.h"
#include "common/metrics.h"
#include "storage/dram_tier.h"
#include "storage/tier.h"

namespace icefield {

// A node is the truth about what it holds. Objects are written through to the disk, where there is
// one, and read from memory first. A build counts from the moment its manifest is stored, which
// must come after all of its parts; the index by prefix hash is derived from stored manifests.
//
// Ownership  Borrows its tiers and its clock. stop() before the destructor.
// Threads    One shard: that of the tiers.
class CacheNode {
 public:
  // `disk` may be null: then memory is all there is, and evicting a part drops its whole build.
  CacheNode(const Clock& clock, DramTier& memory, Tier* disk)
      : memory_(memory),
        disk_(disk),
        values_(memory, disk, clock, {.hard_pin_bytes = memory.usage().capacity_bytes / 4}) {
    memory_.on_evict([this](const ObjectKey& key) { note_evicted(key); });
  }

  // Reads the manifests that the disk holds and removes what a killed writer left half done. Call
  // it once, before anything else.
  Task<> recover();
  // Waits for what the node does by itself. Nothing may be asked afterwards.
  Task<> stop() { co_return co_await values_.stop(); }

  // Values for inference frameworks, in the same tiers.
  NodeValues& values() { return values_; }
  const NodeValues& values() const { return values_; }
  NodeStats stats() const;

  // One status per object: kDataLoss when the bytes do not have their checksum,
  // kFailedPrecondition for a manifest of another namespace or whose parts are not all there,
  // kResourceExhausted when there is no room. Storing a manifest flushes the disk.
  Task<std::vector<Status>> put(std::span<const PutObject> objects, NamespaceId name_space);

  // From memory, else from disk into memory.
  Task<ObjectBytes> get(ObjectKey key, Verify verify);

  // Removing a manifest makes its build unknown; its other parts are removed one by one.
  Task<> remove(ObjectKey key);

  MatchReply match(const MatchQuery& query) const;

  // Pages gathered back to back into `out` [page_count × page_bytes]; one outcome per HeadPages.
  // Extents that are on disk only are read side by side, a few megabytes at a time.
  Task<std::vector<HeadOutcome>> read_pages(const PageRequest& request, std::byte* out);

  ListBuildsReply list() const;

  // To be called for objects that the disk evicted. The rest of their builds goes with the next
  // put.
  void note_disk_evicted(const ObjectKey& key);

  Counter disk_reads{"icefield_cache_node_disk_reads_total", "objects read from disk"};
  Counter page_reads{"icefield_cache_node_page_reads_total", "pages sent to workers"};

 private:
  struct BuildKey {
    SegmentId segment;
    BuildId build;
    friend auto operator<=>(const BuildKey&, const BuildKey&) = default;
  };

  // Reading pages (node_pages.cc).
  struct WantedExtent;
  struct PagePlan;
  struct WantedPage;
  asio::awaitable<void> load(std::span<WantedExtent> extents, Verify verify);
  static void gather(std::span<const WantedExtent> extents, std::span<WantedPage> pages,
                     std::int64_t page_bytes, std::byte* out);

  Status check_commit(const ObjectKey& key, ConstByteSpan bytes, StoredBuild& build) const;
  Task<> put_one(PutObject object, NamespaceId name_space);
  void note_evicted(const ObjectKey& key);
  asio::awaitable<void> drop_incomplete_builds();
  Task<> remove_from_disk(const StoredBuild& build);
  std::optional<ObjectInfo> find(const ObjectKey& key) const;
  void know(const StoredBuild& build);
  void forget(const BuildKey& build);

  DramTier& memory_;
  Tier* const disk_;
  NodeValues values_;
  std::map<BuildKey, StoredBuild> builds_;
  std::unordered_multimap<PrefixHash, BuildKey, Hash128Hasher> by_end_;
  // Of how many builds of a namespace, by model.
  std::map<NamespaceId, std::map<FingerprintHash, std::int64_t>> models_;
  std::vector<BuildKey> incomplete_;  // a part was evicted, nothing else has it
};

}  // namespace icefield
