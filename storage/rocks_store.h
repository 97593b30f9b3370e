// storage/rocks_store.h — what the NVMe tier keeps on disk, in RocksDB: values in blob files by
// number, and a catalog whose records stand inline. Blocking.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "storage/blob_reader.h"
#include "storage/disk_reserve.h"
#include "storage/tier.h"
#include "storage/value_places.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
class Env;
class FileSystem;
class Status;
}  // namespace rocksdb

namespace icefield {

class RocksEvents;

// An object as the catalog has it. Values are filed under numbers that only grow, not under keys:
// then the files of values are written, sorted and dropped in the order of puts, and the blocks
// that say where values are take some 20 bytes an object, so they stay in a small cache and a read
// is one access to the device.
struct StoredObject {
  ObjectKey key;
  ObjectInfo info;
  std::uint64_t number = 0;
};

// Written without a log: what was not flushed is lost in a crash as if it had not been written, and
// catalog and values always agree, because they are flushed together.
//
// When others fill the disk, what was written is flushed into the reserve, and what does not fit
// there when there is room again. A store that had to touch its reserve is full until recover()
// ends well: whoever uses it writes nothing meanwhile. Reads go on.
//
// A store whose device fails otherwise takes no more writes until it is opened anew: RocksDB has
// stopped. Reads go on, also of what was not flushed.
//
// Threads  Safe from any thread.
// Errors   kResourceExhausted: the disk is full, or it cannot keep up with the writes (never waited
//          for here). kDataLoss: what is read is damaged. kInternal: anything else the device says.
class RocksStore {
 public:
  struct Options {
    std::string path;
    bool direct_io = true;
    std::int64_t write_buffer_bytes = 0;
    std::int64_t reserve_bytes = 0;  // at most a sixteenth of the file system
    bool create = true;
    int layout_version = 0;
    std::shared_ptr<rocksdb::FileSystem> file_system;  // null: the machine's
  };

  // Errors as NvmeTier::open().
  static Result<std::unique_ptr<RocksStore>> open(Options options);
  ~RocksStore();

  // Every object of the catalog. Reads the catalog only, once through, and where values stand.
  Status load(const std::function<void(const StoredObject&)>& visit);
  Status write(const StoredObject& object, std::span<const ConstByteSpan> pieces);
  Status update(const StoredObject& object);  // its catalog record
  Status erase(std::span<const StoredObject> objects);
  // The value: one piece, in memory of its own, checked against `object`.
  Result<ObjectBytes> read(const StoredObject& object);
  Status flush();
  // Gives space of erased values back to the file system, the oldest files first, until at most
  // `garbage_bytes` of it are left.
  Status reclaim(std::int64_t garbage_bytes);
  // From now on nothing waits for room, and reclaim() ends soon: what it has not done is done after
  // the next start. To be called where others must have ended before the destructor.
  void close_soon();

  bool full() const;
  // Takes the reserve back and makes RocksDB go on. kResourceExhausted when there is no room yet.
  Status recover();
  std::int64_t reserve_bytes() const { return reserve_.bytes(); }

  struct Space {
    std::int64_t file_bytes = 0;     // of values
    std::int64_t pending_bytes = 0;  // written, not yet in files
  };
  // Exact to a few MiB of pending bytes; does not block.
  Space space() const;
  // Reads that went straight to their place in a blob file; the others asked RocksDB.
  std::int64_t reads_in_place() const { return reads_in_place_.load(std::memory_order_relaxed); }
  bool direct_io() const { return options_.direct_io; }

 private:
  explicit RocksStore(Options options);

  Status take_reserve();
  Status open_database();
  Status check_version();
  Status load_places();
  std::optional<ObjectBytes> read_in_place(const StoredObject& object);
  Status from_rocksdb(const rocksdb::Status& status, const char* operation) const;
  void measure() const;
  // Until everything up to a sequence number is in files.
  Status wait_flushed(std::uint64_t sequence);
  Status device_failed(const char* operation) const;
  bool nothing_in_memory() const;

  Options options_;
  // These outlive the database, which uses them or tells them what it does.
  DiskReserve reserve_;
  const std::shared_ptr<RocksEvents> events_;
  std::unique_ptr<rocksdb::Env> environment_;
  ValuePlaces places_;
  std::unique_ptr<BlobReader> blob_reader_;
  std::unique_ptr<rocksdb::DB> database_;
  rocksdb::ColumnFamilyHandle* catalog_ = nullptr;  // owned by database_
  rocksdb::ColumnFamilyHandle* values_ = nullptr;
  std::atomic<bool> closing_{false};  // a flag alone
  // Statistics without an order between them.
  std::atomic<std::int64_t> reads_in_place_{0};
  mutable std::atomic<std::int64_t> file_bytes_{0};
  mutable std::atomic<std::int64_t> memory_bytes_{0};
  mutable std::atomic<std::int64_t> unmeasured_bytes_{0};  // written since
};

}  // namespace icefield
