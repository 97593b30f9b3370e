// storage/nvme_tier.h — objects on disk: RocksDB with values in blob files and a catalog whose
// records stand inline.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <mutex>
#include <string>
#include <unordered_map>

#include "common/metrics.h"
#include "proto/layout.h"
#include "storage/tier.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
class Status;
}  // namespace rocksdb

namespace icefield {

// Values are written without a log: a put is lost in a crash until the next flush(), and then as if
// it had not happened, because flushes keep the order of puts. The catalog (key, length, checksum)
// is read at open, so find() and for_each() never touch the disk. Every get is verified.
//
// Threads  Calls from one shard; blocking work runs on the tier's own I/O threads. Leases may end
//          on any thread.
// Errors   open: kInvalidArgument (cannot be created or written), kUnavailable (another process has
//          it open), kFailedPrecondition (made with another layout version), kDataLoss (damaged).
//          open and put: kResourceExhausted when less than the reserve is left of the disk.
//          (RocksDB 7.8 as Debian builds it stops the process when a write finds no space, so it
//          must not come to that.)
class NvmeTier final : public Tier {
 public:
  struct Options {
    std::string path;       // a directory, made when it is missing
    int io_threads = 16;    // enough to keep an NVMe device busy
    bool direct_io = true;  // falls back, with one warning, where there is none
    std::int64_t write_buffer_bytes = 64 << 20;
    // Left free on the file system, on top of what is not flushed yet; on small file systems at
    // most a sixteenth of them.
    std::int64_t reserve_bytes = 64 << 20;
    bool create = true;                   // false: opening what is not there is kNotFound
    int layout_version = kLayoutVersion;  // of the objects; a store keeps the one it was made with

    Status validate() const;
  };

  static Result<std::unique_ptr<NvmeTier>> open(Options options);
  ~NvmeTier() override;

  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override;
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override;
  Task<> remove(ObjectKey key) override;
  Task<> flush() override;
  std::optional<ObjectInfo> find(const ObjectKey& key) const override;
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override;
  TierUsage usage() const override;

  bool direct_io() const { return direct_io_; }

  Counter damaged{"icefield_storage_nvme_damaged_objects_total", "objects dropped: wrong checksum"};
  Counter read_bytes{"icefield_storage_nvme_read_bytes_total", "bytes of objects read from disk"};

 private:
  NvmeTier(Options options, bool direct_io);
  Status open_database(bool direct_io);
  Status check_space(std::int64_t bytes) const;
  Status check_version();
  Status load_catalog();
  Status write(const ObjectKey& key, std::span<const ConstByteSpan> pieces, const ObjectInfo& info);
  Status erase(const ObjectKey& key);
  Status from_rocksdb(const rocksdb::Status& status, const char* operation) const;

  const Options options_;
  bool direct_io_;
  std::unique_ptr<rocksdb::DB> database_;
  rocksdb::ColumnFamilyHandle* catalog_family_ = nullptr;  // owned by database_
  rocksdb::ColumnFamilyHandle* object_family_ = nullptr;
  std::unordered_map<ObjectKey, ObjectInfo, ObjectKeyHasher> catalog_;  // the shard's
  std::int64_t used_bytes_ = 0;
  std::int64_t unflushed_bytes_ = 0;
  asio::thread_pool io_;
};

}  // namespace icefield
