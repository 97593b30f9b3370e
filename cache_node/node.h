// cache_node/node.h — keeps objects in its tiers and knows which builds they make up.
#pragma once

#include <map>
#include <unordered_map>
#include <vector>

#include "cache_node/messages.h"
#include "cache_node/node_values.h"
#include "cache_node/unfinished_builds.h"
#include "common/metrics.h"
#include "storage/dram_tier.h"
#include "storage/tier.h"

namespace icefield {

// A node is the truth about what it holds. Objects are written through to the disk, where there is
// one, and read from memory first. A build counts from the moment its manifest is stored, which
// must come after all of its parts; the index by prefix hash is derived from stored manifests.
//
// Builds are asked for by their names, which do not tell whose they are: the node knows. To a
// caller whose token does not grant a build's namespace it is as if the build were not there, so
// nothing shows whether it is: reads miss, puts of its parts and removals end well and do nothing.
// Such a caller reads builds whose manifest is stored, and no others.
//
// Ownership  Borrows its tiers and its clock. stop() before the destructor.
// Threads    One shard: that of the tiers.
class CacheNode {
 public:
  // `disk` may be null: then memory is all there is, and evicting a part drops its whole build.
  CacheNode(const Clock& clock, DramTier& memory, Tier* disk)
      : clock_(clock),
        memory_(memory),
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
  Task<std::vector<Status>> put(const Caller& caller, std::span<const PutObject> objects,
                                NamespaceId name_space);

  // From memory, else from disk into memory.
  Task<ObjectBytes> get(const Caller& caller, ObjectKey key, Verify verify);

  // Removing a manifest makes its build unknown; its other parts are removed one by one, or all of
  // them when that breaks off.
  Task<> remove(const Caller& caller, ObjectKey key);

  MatchReply match(const MatchQuery& query) const;

  // Pages gathered back to back into `out` [page_count × page_bytes]; one outcome per HeadPages.
  // Extents that are on disk only are read side by side, a few megabytes at a time.
  Task<std::vector<HeadOutcome>> read_pages(const Caller& caller, const PageRequest& request,
                                            std::byte* out);

  ListBuildsReply list() const;

  // To be called for objects that the disk evicted. The rest of their builds goes with the next
  // put.
  void note_disk_evicted(const ObjectKey& key);

  Counter disk_reads{"icefield_cache_node_disk_reads_total", "objects read from disk"};
  Counter page_reads{"icefield_cache_node_page_reads_total", "pages sent to workers"};

 private:
  static BuildKey build_of(const ObjectKey& key) { return {key.segment, key.build}; }
  Status check_commit(const ObjectKey& key, const Manifest& manifest) const;
  Task<> put_one(const Caller& caller, PutObject object, NamespaceId name_space);
  Task<> put_manifest(const Caller& caller, PutObject object, NamespaceId name_space);
  Task<> put_part(const Caller& caller, PutObject object, NamespaceId name_space);
  Task<> store(const PutObject& object);
  bool may_read(const Caller& caller, const ObjectKey& key) const;
  bool may_change(const Caller& caller, const ObjectKey& key) const;
  asio::awaitable<void> remove_given_up();

  // Reading pages (node_pages.cc).
  struct WantedExtent;
  struct PagePlan;
  struct WantedPage;
  asio::awaitable<void> load(const Caller& caller, std::span<WantedExtent> extents, Verify verify);
  static void gather(std::span<const WantedExtent> extents, std::span<WantedPage> pages,
                     std::int64_t page_bytes, std::byte* out);

  void note_evicted(const ObjectKey& key);
  asio::awaitable<void> drop_incomplete_builds();
  std::optional<ObjectInfo> find(const ObjectKey& key) const;
  void know(const StoredBuild& build);
  void forget(const BuildKey& build);
  void unfinish(const BuildKey& build);
  void undo_commits(const BuildKey& build);

  const Clock& clock_;
  DramTier& memory_;
  Tier* const disk_;
  NodeValues values_;
  std::map<BuildKey, StoredBuild> builds_;
  std::unordered_multimap<PrefixHash, BuildKey, Hash128Hasher> by_end_;
  // Of how many builds of a namespace, by model.
  std::map<NamespaceId, std::map<FingerprintHash, std::int64_t>> models_;
  UnfinishedBuilds unfinished_;
  std::multimap<BuildKey, bool> commits_;  // under way; true: what they store is being removed
  std::vector<BuildKey> incomplete_;       // a part was evicted, nothing else has it
};

}  // namespace icefield
