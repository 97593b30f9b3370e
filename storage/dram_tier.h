// storage/dram_tier.h — objects in host memory: slots of one slab, least recently used out first.
#pragma once

#include <list>
#include <unordered_map>
#include <vector>

#include "common/metrics.h"
#include "storage/tier.h"

namespace icefield {

// The slab is mapped once, in open(), and touched by the operating system as it is used. An object
// is a chain of slots, so memory never fragments and any object can take the place of any other. A
// row never crosses a slot: slots are a multiple of 4 KiB and rows divide that.
//
// Ownership  The tier owns the slab; an ObjectBytes pins its object. The tier must outlive its
//            leases (checked in the destructor).
// Threads    One shard.
class DramTier final : public Tier {
 public:
  struct Options {
    std::int64_t capacity_bytes = 0;      // rounded down to whole slots
    std::int64_t slot_bytes = 16 * 1024;  // multiple of 4096

    Status validate() const;
  };

  static Result<std::unique_ptr<DramTier>> open(Options options);
  ~DramTier() override;

  // `notify` is called after an object was evicted to make room. It must not call the tier.
  void on_evict(std::function<void(const ObjectKey&)> notify) { on_evict_ = std::move(notify); }

  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override;
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override;
  Task<> remove(ObjectKey key) override;
  Task<> flush() override;
  std::optional<ObjectInfo> find(const ObjectKey& key) const override;
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override;
  TierUsage usage() const override;

  // The slab, for registration with a transport, and for tests that damage it.
  ByteSpan memory() { return slab_; }

  Counter evicted{"icefield_storage_dram_evicted_objects_total", "objects evicted to make room"};
  Counter damaged{"icefield_storage_dram_damaged_objects_total", "objects dropped: wrong checksum"};

 private:
  struct Entry {
    ObjectInfo info;
    std::vector<std::uint32_t> slots;
    std::list<ObjectKey>::iterator age;  // in by_age_
    int pins = 0;
    bool doomed = false;  // removed while pinned: its slots come back with the last pin
  };
  using EntryPtr = std::shared_ptr<Entry>;

  DramTier(Options options, ByteSpan slab);

  ByteSpan slot(std::uint32_t index) const;
  std::vector<ConstByteSpan> pieces_of(const Entry& entry) const;
  Status make_room(std::size_t slots);
  void drop(const ObjectKey& key);  // gives the slots back, now or with the last pin
  void release(Entry& entry);

  const Options options_;
  std::function<void(const ObjectKey&)> on_evict_;
  const ByteSpan slab_;
  std::unordered_map<ObjectKey, EntryPtr, ObjectKeyHasher> entries_;
  std::list<ObjectKey> by_age_;      // the least recently used first
  std::vector<std::uint32_t> free_;  // slots
  std::int64_t slot_count_ = 0;
  int leases_ = 0;
};

}  // namespace icefield
