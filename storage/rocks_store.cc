#include "storage/rocks_store.h"

#include <glog/logging.h>
#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <charconv>
#include <filesystem>

#include "storage/reserving_file_system.h"
#include "storage/rocks_crc32c.h"
#include "storage/rocks_environment.h"
#include "storage/rocks_events.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

// Keys of the catalog that are no objects have another length than object keys.
constexpr char kVersionKey[] = "icefield.layout_version";
constexpr char kFormatKey[] = "icefield.store_format";
constexpr char kFormat[] = "2";  // 1, without this key: values filed under object keys
constexpr char kValueFamily[] = "values";
constexpr std::string_view kReserveFile = "icefield.reserve";
constexpr std::int64_t kMeasureEvery = 4 << 20;
constexpr auto kFlushedWait = 20ms;
constexpr std::int64_t kMinBlobBytes = 512;  // smaller values stand in the tables themselves

struct CatalogRecord {
  std::uint64_t number = 0;
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
  std::int64_t expires_at_ms = 0;
  std::int64_t pinned_until_ms = 0;
};

CatalogRecord record_of(const StoredObject& object) {
  return {.number = object.number,
          .bytes = static_cast<std::uint64_t>(object.info.bytes),
          .checksum = object.info.checksum,
          .expires_at_ms = object.info.retention.expires_at_ms,
          .pinned_until_ms = object.info.retention.pinned_until_ms};
}

StoredObject object_of(const ObjectKey& key, const char* record_bytes) {
  const auto record = load<CatalogRecord>(reinterpret_cast<const std::byte*>(record_bytes));
  return {.key = key,
          .info = {.bytes = static_cast<std::int64_t>(record.bytes),
                   .checksum = record.checksum,
                   .retention = {.expires_at_ms = record.expires_at_ms,
                                 .pinned_until_ms = record.pinned_until_ms}},
          .number = record.number};
}

rocksdb::Slice slice(ConstByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Big-endian, so that numbers sort.
struct ValueKey {
  explicit ValueKey(std::uint64_t number) : bytes(__builtin_bswap64(number)) {}
  rocksdb::Slice slice() const { return {reinterpret_cast<const char*>(&bytes), sizeof bytes}; }
  std::uint64_t bytes;
};

// Deleted blob files must not stay open.
class DeletionListener final : public rocksdb::EventListener {
 public:
  explicit DeletionListener(BlobReader& reader) : reader_(reader) {}
  void OnBlobFileDeleted(const rocksdb::BlobFileDeletionInfo& info) override {
    const std::string name = info.file_path.substr(info.file_path.rfind('/') + 1);
    std::uint32_t file = 0;
    const char* const end = name.data() + name.size();
    if (std::from_chars(name.data(), end, file).ec == std::errc()) reader_.forget(file);
  }

 private:
  BlobReader& reader_;
};

std::int64_t reserve_for(const RocksStore::Options& options) {
  std::error_code error;
  const auto space = std::filesystem::space(options.path, error);
  if (error) return options.reserve_bytes;
  return std::min(options.reserve_bytes, static_cast<std::int64_t>(space.capacity / 16));
}

rocksdb::DBOptions database_options(const RocksStore::Options& options) {
  rocksdb::DBOptions db;
  db.create_if_missing = options.create;
  db.create_missing_column_families = true;
  db.use_direct_reads = options.direct_io;
  // Through the page cache a flush copies into fresh pages, which takes longer than the device.
  db.use_direct_io_for_flush_and_compaction = options.direct_io;
  db.bytes_per_sync = 1 << 20;
  db.atomic_flush = true;      // catalog and values always agree
  db.max_background_jobs = 8;  // of which a quarter flush: two keep the device busy
  db.max_open_files = 1024;
  db.skip_stats_update_on_db_open = true;
  db.skip_checking_sst_file_sizes_on_db_open = true;
  db.avoid_unnecessary_blocking_io = true;
  db.writable_file_max_buffer_size = 4 << 20;  // of one write to the device
  return db;
}

// Writes never wait, and a group of small flushes makes many files: only a real backlog is a stall.
void allow_many_flushes(rocksdb::ColumnFamilyOptions& family) {
  family.level0_slowdown_writes_trigger = 64;
  family.level0_stop_writes_trigger = 128;
  family.max_write_buffer_number = 6;
}

rocksdb::ColumnFamilyOptions catalog_options() {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = 16 << 20;
  allow_many_flushes(family);
  rocksdb::BlockBasedTableOptions table;
  table.block_size = 64 << 10;  // read as a whole, at open
  table.no_block_cache = true;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return family;
}

rocksdb::ColumnFamilyOptions value_options(const RocksStore::Options& options,
                                           ValuePlaces& places) {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = static_cast<std::size_t>(options.write_buffer_bytes);
  allow_many_flushes(family);
  family.compression = rocksdb::kNoCompression;  // K/V does not compress
  family.enable_blob_files = true;
  family.min_blob_size = kMinBlobBytes;
  family.blob_file_size = static_cast<std::uint64_t>(options.write_buffer_bytes);
  // Compaction moves references; values move when reclaim() says so.
  family.enable_blob_garbage_collection = false;
  family.table_properties_collector_factories.push_back(collect_places(places));
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(32 << 20);  // of references: the DRAM tier has values
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return family;
}

rocksdb::WriteOptions write_options() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  options.no_slowdown = true;
  return options;
}

bool says(const rocksdb::Status& status, const char* text) {
  return status.ToString().find(text) != std::string::npos;
}

}  // namespace

// A new store wants its reserve; one that is there is read with what it has.
Status RocksStore::take_reserve() {
  Status taken = reserve_.take();
  std::error_code error;
  if (taken.ok() || std::filesystem::exists(options_.path + "/CURRENT", error)) return Status();
  return taken.with_context("store " + options_.path);
}

Result<std::unique_ptr<RocksStore>> RocksStore::open(Options options) {
  VLOG(1) << "store " << options.path << ": checksums by "
          << (has_fast_crc32c() ? "the processor's instruction" : "RocksDB's own function");
  const bool wants_direct_io = options.direct_io;
  std::unique_ptr<RocksStore> store(new RocksStore(std::move(options)));
  ICE_TRY(store->take_reserve());
  Status status = store->open_database();
  if (status.code() == Code::kUnimplemented && wants_direct_io) {
    LOG(WARNING) << "the file system of " << store->options_.path
                 << " has no direct I/O: reads go through the page cache";
    store->options_.direct_io = false;
    status = store->open_database();
  }
  ICE_TRY(status);
  ICE_TRY(store->check_version());
  store->reserve_.let_wait(true);
  store->measure();
  return store;
}

RocksStore::RocksStore(Options options)
    : options_(std::move(options)),
      reserve_(options_.path + "/" + std::string(kReserveFile), reserve_for(options_)),
      events_(std::make_shared<RocksEvents>()),
      environment_(
          rocks_environment(reserving_file_system(reserve_, options_.file_system != nullptr
                                                                ? options_.file_system
                                                                : rocksdb::FileSystem::Default()),
                            events_)) {}

RocksStore::~RocksStore() {
  if (database_ == nullptr) return;
  close_soon();
  for (rocksdb::ColumnFamilyHandle* family : {catalog_, values_}) {
    const rocksdb::Status status = database_->DestroyColumnFamilyHandle(family);
    if (!status.ok()) LOG(WARNING) << "store " << options_.path << ": " << status.ToString();
  }
  const rocksdb::Status status = database_->Close();
  if (!status.ok()) LOG(WARNING) << "store " << options_.path << ": " << status.ToString();
}

void RocksStore::close_soon() {
  closing_.store(true, std::memory_order_relaxed);
  reserve_.let_wait(false);
  if (events_->broken()) rocksdb::CancelAllBackgroundWork(database_.get(), false);
  events_->let_go();  // what waits finds the store closed
}

Status RocksStore::device_failed(const char* operation) const {
  return Status(Code::kInternal, "store " + options_.path + ", " + operation +
                                     ": the device failed, see the log above; mend it and "
                                     "restart the node");
}

// By what RocksDB says in numbers; by its words where it says no more than that.
Status RocksStore::from_rocksdb(const rocksdb::Status& status, const char* operation) const {
  if (status.ok()) return Status();
  const std::string where = "store " + options_.path + ", " + operation + ": ";
  if (status.IsNoSpace()) {
    return Status(Code::kResourceExhausted,
                  where + "the disk is full; free some space or choose another --store");
  }
  if (status.severity() >= rocksdb::Status::Severity::kHardError) return device_failed(operation);
  if (status.IsIncomplete()) {
    return Status(Code::kResourceExhausted,
                  where + "the disk cannot keep up with the writes; retry after a flush");
  }
  if (status.IsCorruption() || status.IsPathNotFound()) {
    return Status(Code::kDataLoss,
                  where + "it is damaged (" + status.ToString() +
                      "); delete the directory, the cache is rebuilt from the documents");
  }
  if (status.IsInvalidArgument() && says(status, "olumn famil")) {
    return Status(Code::kFailedPrecondition,
                  where +
                      "it was made by another version of this program; use another --store, "
                      "or delete the directory to rebuild the cache");
  }
  if (status.IsInvalidArgument() && says(status, "Direct I/O is not supported")) {
    return Status(Code::kUnimplemented, where + status.ToString());
  }
  if (status.IsIOError() && (says(status, "lock hold by") || says(status, "While lock file"))) {
    return Status(Code::kUnavailable, where + "another process has it open");
  }
  if ((status.IsIOError() || status.IsInvalidArgument()) &&
      (says(status, "Permission denied") || says(status, "Read-only file system"))) {
    return Status(Code::kInvalidArgument, where + "it cannot be written (" + status.ToString() +
                                              "); choose another --store");
  }
  return Status(Code::kInternal, where + status.ToString());
}

Status RocksStore::open_database() {
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, catalog_options()},
      {kValueFamily, value_options(options_, places_)}};
  blob_reader_ = std::make_unique<BlobReader>(options_.path, options_.direct_io);
  rocksdb::DBOptions database_wide = database_options(options_);
  database_wide.env = environment_.get();
  const auto log = std::make_shared<RocksLog>();
  database_wide.info_log = log;
  database_wide.listeners.push_back(events_);
  database_wide.listeners.push_back(std::make_shared<DeletionListener>(*blob_reader_));
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* database = nullptr;
  ICE_TRY(from_rocksdb(
      rocksdb::DB::Open(database_wide, options_.path, families, &handles, &database), "open"));
  database_.reset(database);
  log->opened();
  catalog_ = handles[0];
  values_ = handles[1];
  events_->set_flushed(database_->GetLatestSequenceNumber());  // there is no log to replay
  return Status();
}

Status RocksStore::check_version() {
  std::string layout;
  const rocksdb::Status found =
      database_->Get(rocksdb::ReadOptions(), catalog_, kVersionKey, &layout);
  const std::string ours = std::to_string(options_.layout_version);
  if (found.IsNotFound()) {
    rocksdb::WriteBatch batch;
    ICE_TRY(from_rocksdb(batch.Put(catalog_, kVersionKey, ours), "open"));
    ICE_TRY(from_rocksdb(batch.Put(catalog_, kFormatKey, kFormat), "open"));
    ICE_TRY(from_rocksdb(database_->Write(write_options(), &batch), "open"));
    return flush();
  }
  ICE_TRY(from_rocksdb(found, "open"));
  std::string format;
  const rocksdb::Status formatted =
      database_->Get(rocksdb::ReadOptions(), catalog_, kFormatKey, &format);
  if (formatted.IsNotFound()) format = "1";
  const auto refuse = [&](const char* what, const std::string& stored, const std::string& read) {
    return Status(Code::kFailedPrecondition,
                  "store " + options_.path + " has " + what + " version " + stored +
                      ", this program reads version " + read +
                      "; use another --store, or delete the directory to rebuild the cache");
  };
  if (format != kFormat) return refuse("store format", format, kFormat);
  if (layout != ours) return refuse("layout", layout, ours);
  return Status();
}

Status RocksStore::load(const std::function<void(const StoredObject&)>& visit) {
  rocksdb::ReadOptions options;
  options.readahead_size = 4 << 20;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> records(database_->NewIterator(options, catalog_));
  for (records->SeekToFirst(); records->Valid(); records->Next()) {
    if (records->key().size() != ObjectKey::kBytes) continue;
    ICE_TRY(const ObjectKey key,
            ObjectKey::parse(as_bytes(std::string_view(records->key().data(), ObjectKey::kBytes))));
    if (records->value().size() != sizeof(CatalogRecord)) {
      return Status(Code::kDataLoss, "store " + options_.path + ": catalog record of object " +
                                         to_string(key) +
                                         " is damaged; delete the directory, the "
                                         "cache is rebuilt from the documents");
    }
    const StoredObject object = object_of(key, records->value().data());
    if (object.info.bytes >= kMinBlobBytes) places_.add(object.number);
    visit(object);
  }
  ICE_TRY(from_rocksdb(records->status(), "open"));
  return load_places();
}

Status RocksStore::load_places() {
  rocksdb::TablePropertiesCollection tables;
  ICE_TRY(from_rocksdb(database_->GetPropertiesOfAllTables(values_, &tables), "open"));
  for (const auto& [name, table] : tables) {
    const auto found = table->user_collected_properties.find(std::string(kPlacesProperty));
    if (found == table->user_collected_properties.end()) continue;
    const Result<std::vector<ValuePlace>> places = read_places(found->second);
    if (places.has_value()) places_.set(*places);  // else RocksDB knows
  }
  return Status();
}

Status RocksStore::write(const StoredObject& object, std::span<const ConstByteSpan> pieces) {
  std::vector<rocksdb::Slice> slices;
  slices.reserve(pieces.size());
  for (const ConstByteSpan piece : pieces) slices.push_back(slice(piece));
  const ValueKey value_key(object.number);
  const rocksdb::Slice value_slice = value_key.slice();
  const CatalogRecord record = record_of(object);
  const auto name = object.key.bytes();
  rocksdb::WriteBatch batch(static_cast<std::size_t>(object.info.bytes) + 256);
  ICE_TRY(
      from_rocksdb(batch.Put(values_, rocksdb::SliceParts(&value_slice, 1),
                             rocksdb::SliceParts(slices.data(), static_cast<int>(slices.size()))),
                   "write"));
  ICE_TRY(from_rocksdb(
      batch.Put(catalog_, slice(name), slice(std::as_bytes(std::span(&record, 1)))), "write"));
  if (object.info.bytes >= kMinBlobBytes) {
    places_.add(object.number);  // before a flush can say where it is
  }
  const Status written = from_rocksdb(database_->Write(write_options(), &batch), "write");
  if (!written.ok()) {
    places_.remove(object.number);
    return written;
  }
  const std::int64_t unmeasured =
      unmeasured_bytes_.fetch_add(object.info.bytes, std::memory_order_relaxed);
  if (unmeasured / kMeasureEvery != (unmeasured + object.info.bytes) / kMeasureEvery) measure();
  return Status();
}

Status RocksStore::update(const StoredObject& object) {
  const CatalogRecord record = record_of(object);
  const auto name = object.key.bytes();
  return from_rocksdb(database_->Put(write_options(), catalog_, slice(name),
                                     slice(std::as_bytes(std::span(&record, 1)))),
                      "write");
}

Status RocksStore::erase(std::span<const StoredObject> objects) {
  rocksdb::WriteBatch batch;
  for (const StoredObject& object : objects) {
    const auto name = object.key.bytes();
    ICE_TRY(from_rocksdb(batch.Delete(values_, ValueKey(object.number).slice()), "remove"));
    ICE_TRY(from_rocksdb(batch.Delete(catalog_, slice(name)), "remove"));
  }
  ICE_TRY(from_rocksdb(database_->Write(write_options(), &batch), "remove"));
  for (const StoredObject& object : objects) places_.remove(object.number);
  return Status();
}

std::optional<ObjectBytes> RocksStore::read_in_place(const StoredObject& object) {
  const std::optional<ValuePlace> place = places_.find(object.number);
  if (!place.has_value()) return std::nullopt;
  std::optional<BlobReader::Read> read = blob_reader_->read(
      {.file = place->file, .offset = place->offset, .bytes = object.info.bytes});
  if (!read.has_value()) return std::nullopt;
  if (!verify_object(object.key, object.info, std::span(&read->bytes, 1)).ok()) return std::nullopt;
  reads_in_place_.fetch_add(1, std::memory_order_relaxed);
  return ObjectBytes({read->bytes}, std::move(read->owner));
}

// A value that is not where it should be may have been moved: RocksDB has the last word, and checks
// its own checksums on the way there.
Result<ObjectBytes> RocksStore::read(const StoredObject& object) {
  if (std::optional<ObjectBytes> bytes = read_in_place(object); bytes.has_value()) {
    return std::move(*bytes);
  }
  auto value = std::make_shared<rocksdb::PinnableSlice>();
  const rocksdb::Status status =
      database_->Get(rocksdb::ReadOptions(), values_, ValueKey(object.number).slice(), value.get());
  if (status.IsNotFound() || status.IsCorruption()) {
    return Status(Code::kDataLoss, "object " + to_string(object.key) + ": " + status.ToString(),
                  MissReason::kIntegrity);
  }
  ICE_TRY(from_rocksdb(status, "read"));
  const ConstByteSpan bytes = as_bytes(std::string_view(value->data(), value->size()));
  ICE_TRY(verify_object(object.key, object.info, std::span(&bytes, 1)));
  return ObjectBytes({bytes}, std::move(value));
}

// Does not wait in RocksDB: on a full disk the flush waits for room, and nobody for the flush.
Status RocksStore::flush() {
  if (events_->broken()) return device_failed("flush");  // RocksDB would say ok
  const rocksdb::SequenceNumber written = database_->GetLatestSequenceNumber();
  rocksdb::FlushOptions options;
  options.wait = false;
  options.allow_write_stall = true;
  Status status = from_rocksdb(database_->Flush(options, {catalog_, values_}), "flush");
  if (status.ok()) status = wait_flushed(written);
  measure();
  return status;
}

Status RocksStore::wait_flushed(std::uint64_t sequence) {
  while (!events_->flushed(sequence, kFlushedWait)) {
    if (nothing_in_memory()) break;
    if (events_->broken()) return device_failed("flush");
    if (reserve_.waiting() == 0 && !events_->stopped()) continue;
    return Status(Code::kResourceExhausted,
                  "store " + options_.path +
                      ", flush: the disk is full; free some space or choose another --store");
  }
  return Status();
}

bool RocksStore::nothing_in_memory() const {
  for (rocksdb::ColumnFamilyHandle* family : {catalog_, values_}) {
    for (const std::string& property : {rocksdb::DB::Properties::kNumEntriesActiveMemTable,
                                        rocksdb::DB::Properties::kNumEntriesImmMemTables}) {
      std::uint64_t entries = 0;
      if (!database_->GetIntProperty(family, property, &entries) || entries > 0) return false;
    }
  }
  return true;
}

bool RocksStore::full() const {
  return !reserve_.whole() || reserve_.waiting() > 0 || events_->stopped();
}

Status RocksStore::recover() {
  if (events_->broken()) return device_failed("resume");  // RocksDB would wait for what is held
  Status taken = reserve_.take();
  if (!taken.ok()) return taken.with_context("store " + options_.path);
  // Cleared before: what goes wrong from then on sets it again.
  if (!events_->clear_stopped()) return Status();
  const rocksdb::Status resumed = database_->Resume();
  if (!resumed.ok()) events_->set_stopped();
  return from_rocksdb(resumed, "resume");
}

Status RocksStore::reclaim(std::int64_t garbage_bytes) {
  // Files without a value in use go away for free, once the references to them are gone. Then the
  // oldest files are rewritten, a tenth at a time, because old and new ones exist side by side
  // until a step ends.
  rocksdb::CompactRangeOptions options;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  options.exclusive_manual_compaction = false;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  options.canceled = &closing_;
  for (int step = 0; step <= 10; ++step) {
    const rocksdb::Status compacted = database_->CompactRange(options, values_, nullptr, nullptr);
    if (closing_.load(std::memory_order_relaxed)) return Status();
    ICE_TRY(from_rocksdb(compacted, "reclaim"));
    measure();
    std::uint64_t garbage = 0;
    database_->GetIntProperty(values_, rocksdb::DB::Properties::kLiveBlobFileGarbageSize, &garbage);
    if (static_cast<std::int64_t>(garbage) <= garbage_bytes) return Status();
    options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
    options.blob_garbage_collection_age_cutoff = 0.1;
  }
  return Status();
}

void RocksStore::measure() const {
  unmeasured_bytes_.store(0, std::memory_order_relaxed);
  std::uint64_t files = 0;
  std::uint64_t memory = 0;
  database_->GetIntProperty(values_, rocksdb::DB::Properties::kTotalBlobFileSize, &files);
  database_->GetIntProperty(values_, rocksdb::DB::Properties::kCurSizeAllMemTables, &memory);
  file_bytes_.store(static_cast<std::int64_t>(files), std::memory_order_relaxed);
  memory_bytes_.store(static_cast<std::int64_t>(memory), std::memory_order_relaxed);
}

RocksStore::Space RocksStore::space() const {
  return {.file_bytes = file_bytes_.load(std::memory_order_relaxed),
          .pending_bytes = memory_bytes_.load(std::memory_order_relaxed) +
                           unmeasured_bytes_.load(std::memory_order_relaxed)};
}

}  // namespace icefield
