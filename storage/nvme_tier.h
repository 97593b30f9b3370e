// storage/nvme_tier.h — objects on disk, with their catalog in memory.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <set>
#include <string>

#include "common/metrics.h"
#include "common/waiters.h"
#include "proto/layout.h"
#include "storage/evictor.h"
#include "storage/object_table.h"
#include "storage/rocks_store.h"
#include "storage/tier.h"

namespace icefield {

// A put is lost in a crash until the next flush(), and then as if it had not happened. flush() is a
// group commit: whoever calls it while others do shares one flush, which waits up to
// `group_commit_ms` for puts that are under way. The catalog is read at open, so find() and
// for_each() never touch the disk; it takes about 140 bytes an object, 30 more with ARC and a
// limit. Every get is verified, whatever `verify` says.
//
// With a limit, eviction begins at 85 % of it, and the space is given back to the file system in
// the background; from 95 % on puts are refused until that has happened.
//
// Threads  Calls from one shard; blocking work runs on the tier's own I/O threads. Leases may end
//          on any thread, also after the tier.
// Errors   open: kInvalidArgument (cannot be created or written), kUnavailable (another process has
//          it open), kFailedPrecondition (made with another layout or store format), kDataLoss
//          (damaged). open and put: kResourceExhausted when the disk is full. put: also when the
//          device cannot keep up; it waits for that only where the reserve is smaller than the
//          write buffers, for a flush. flush: also when the disk filled meanwhile; what was put is
//          flushed when there is room. get: also while leases hold `read_buffer_bytes`.
//
// Full disks  What others write can fill the disk at any moment. What was put and is not flushed
//          is never more than a reserve that is allocated can take (DiskReserve), so it gets there.
//          From then on puts are refused, until a put finds room to take the reserve back.
class NvmeTier final : public Tier {
 public:
  struct Options {
    std::string path;       // a directory, made when it is missing
    int io_threads = 16;    // enough to keep an NVMe device busy
    bool direct_io = true;  // falls back, with one warning, where there is none
    std::int64_t write_buffer_bytes = 64 << 20;
    std::int64_t capacity_bytes = 0;             // limit of the files; 0: the disk's
    EvictionKind eviction = EvictionKind::kArc;  // with a limit
    int group_commit_ms = 50;
    std::int64_t group_commit_bytes = 64 << 20;
    std::int64_t read_buffer_bytes = 256 << 20;
    // Allocated for flushes on a full disk, beside the limit; at most a sixteenth of the file
    // system. 0: four write buffers.
    std::int64_t reserve_bytes = 0;
    bool create = true;                   // false: opening what is not there is kNotFound
    int layout_version = kLayoutVersion;  // of the objects; a store keeps the one it was made with
    std::shared_ptr<rocksdb::FileSystem> file_system;  // null: the machine's

    Status validate() const;
  };

  static Result<std::unique_ptr<NvmeTier>> open(Options options,
                                                const Clock& clock = system_clock());
  ~NvmeTier() override;

  // `notify` is called after an object was evicted to make room. It must not call the tier.
  void on_evict(std::function<void(const ObjectKey&)> notify) { on_evict_ = std::move(notify); }

  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override;
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override;
  Task<> remove(ObjectKey key) override;
  Task<> flush() override;
  Task<> retain(ObjectKey key, Retention retention) override;
  std::optional<ObjectInfo> find(const ObjectKey& key) const override;
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override;
  TierUsage usage() const override;

  bool direct_io() const { return store_->direct_io(); }
  std::int64_t reads_in_place() const { return store_->reads_in_place(); }  // RocksStore's
  // Files and what will be in files: what the limit limits.
  std::int64_t disk_bytes() const;

  Counter evicted{"icefield_storage_nvme_evicted_objects_total", "objects evicted to make room"};
  Counter expired{"icefield_storage_nvme_expired_objects_total", "objects dropped at their time"};
  Counter damaged{"icefield_storage_nvme_damaged_objects_total", "objects dropped: wrong checksum"};
  Counter read_bytes{"icefield_storage_nvme_read_bytes_total", "bytes of objects read from disk"};
  Counter flushes{"icefield_storage_nvme_flushes_total", "group commits"};

 private:
  using Id = Evictor::Id;
  struct Entry {  // a StoredObject, but for its retention: that is in evictor_
    ObjectKey key;
    std::uint32_t bytes = 0;
    std::uint64_t checksum = 0;
    std::uint64_t number = 0;
  };
  static_assert(sizeof(Entry) == 64);

  NvmeTier(Options options, const Clock& clock, std::unique_ptr<RocksStore> store);
  Status check_space(std::int64_t bytes) const;
  Task<> recover();
  std::int64_t unflushed_bytes() const;
  bool alive(Id id) const;
  StoredObject object_of(Id id) const;
  static Entry entry_of(const StoredObject& object);
  Status load_catalog();
  void know(const StoredObject& object, std::uint64_t name);
  StoredObject forget(Id id);  // the evictor has let go of it
  Task<> remove_now(ObjectKey key);
  // Until no other coroutine changes the object of `key`.
  asio::awaitable<void> others(ObjectKey key);
  Task<> make_room(std::int64_t bytes);
  Task<> drop_expired();
  Task<> erase(std::vector<StoredObject> objects);
  Task<PutOutcome> put_new(StoredObject object, std::uint64_t name,
                           std::span<const ConstByteSpan> pieces);
  void start_reclaim(std::int64_t incoming_bytes);

  const Options options_;
  const Clock& clock_;
  const std::unique_ptr<RocksStore> store_;
  std::function<void(const ObjectKey&)> on_evict_;

  // The shard's.
  ObjectTable<Entry> objects_;
  Evictor evictor_;
  std::uint64_t next_number_ = 1;
  std::int64_t used_bytes_ = 0;
  std::set<ObjectKey> writing_;  // changed on disk at the moment
  std::int64_t writing_bytes_ = 0;
  std::int64_t unflushed_bytes_ = 0;  // put since the newest flush began
  std::int64_t flushing_bytes_ = 0;   // in that flush, until one ends well
  bool recovering_ = false;
  Waiters put_ended_;
  // Group commit: numbers of the newest flush that began and that ended, and how that ended.
  std::uint64_t flush_begun_ = 0;
  std::uint64_t flush_ended_ = 0;
  bool flushing_ = false;
  Status flush_status_;
  Waiters flush_waiters_;

  std::shared_ptr<std::atomic<std::int64_t>> leased_bytes_;  // relaxed: a limit, no order
  std::atomic<bool> reclaiming_{false};
  asio::thread_pool io_;         // waits for the device: reads and flushes
  asio::thread_pool writer_{1};  // never waits: RocksDB takes one write at a time
  asio::thread_pool maintenance_{1};
};

}  // namespace icefield
