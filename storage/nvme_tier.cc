#include "storage/nvme_tier.h"

#include <glog/logging.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <filesystem>

namespace icefield {
namespace {

// Keys of the catalog that are no objects have another length than object keys.
constexpr char kVersionKey[] = "icefield.layout_version";
constexpr char kObjectFamily[] = "objects";

struct CatalogRecord {
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;
};

rocksdb::Slice slice(ConstByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

rocksdb::DBOptions database_options(const NvmeTier::Options& options, bool direct_io) {
  rocksdb::DBOptions db;
  db.create_if_missing = options.create;
  db.create_missing_column_families = true;
  db.use_direct_reads = direct_io;
  db.use_direct_io_for_flush_and_compaction = direct_io;
  db.atomic_flush = true;  // catalog and objects always agree
  db.keep_log_file_num = 4;
  db.max_background_jobs = 2;
  db.max_open_files = 1024;
  return db;
}

rocksdb::ColumnFamilyOptions catalog_options() {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = 8 << 20;
  return family;
}

rocksdb::ColumnFamilyOptions object_options(const NvmeTier::Options& options) {
  rocksdb::ColumnFamilyOptions family;
  family.write_buffer_size = static_cast<std::size_t>(options.write_buffer_bytes);
  family.compression = rocksdb::kNoCompression;  // K/V does not compress
  family.enable_blob_files = true;
  family.min_blob_size = 1024;
  family.blob_file_size = 256 << 20;
  family.enable_blob_garbage_collection = true;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = nullptr;  // the DRAM tier is the cache
  table.no_block_cache = true;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return family;
}

rocksdb::WriteOptions without_log() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  return options;
}

bool says(const rocksdb::Status& status, const char* text) {
  return status.ToString().find(text) != std::string::npos;
}

}  // namespace

Status NvmeTier::Options::validate() const {
  if (path.empty()) return Status(Code::kInvalidArgument, "store path is empty");
  if (io_threads < 1 || io_threads > 1024) {
    return Status(Code::kInvalidArgument,
                  std::to_string(io_threads) + " I/O threads, expected 1 to 1024");
  }
  if (write_buffer_bytes < (1 << 20)) {
    return Status(Code::kInvalidArgument, "write buffer of " + std::to_string(write_buffer_bytes) +
                                              " bytes, expected at least 1 MiB");
  }
  return Status();
}

NvmeTier::NvmeTier(Options options, bool direct_io)
    : options_(std::move(options)),
      direct_io_(direct_io),
      io_(static_cast<std::size_t>(options_.io_threads)) {}

Result<std::unique_ptr<NvmeTier>> NvmeTier::open(Options options) {
  ICE_TRY(options.validate());
  std::error_code error;
  const bool exists = std::filesystem::exists(options.path + "/CURRENT", error);
  if (!options.create && !exists) {
    return Status::miss(MissReason::kNeverStored,
                        "no store at " + options.path + "; icefield run --store=DIR makes one");
  }
  std::filesystem::create_directories(options.path, error);
  if (error || !std::filesystem::is_directory(options.path)) {
    const bool file = std::filesystem::exists(options.path);
    return Status(Code::kInvalidArgument,
                  "store directory " + options.path +
                      " cannot be made: " + (file ? std::string("it is a file") : error.message()) +
                      "; choose another with --store");
  }
  std::unique_ptr<NvmeTier> tier(new NvmeTier(std::move(options), false));
  ICE_TRY(tier->check_space(0));
  Status status = Status(Code::kUnimplemented, "direct I/O is off");
  if (tier->options_.direct_io) status = tier->open_database(true);
  if (status.code() == Code::kUnimplemented) {
    if (tier->options_.direct_io) {
      LOG(WARNING) << "the file system of " << tier->options_.path
                   << " has no direct I/O: reads go through the page cache";
    }
    status = tier->open_database(false);
  }
  ICE_TRY(status);
  ICE_TRY(tier->check_version());
  ICE_TRY(tier->load_catalog());
  return tier;
}

NvmeTier::~NvmeTier() {
  io_.join();
  if (database_ == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* family : {catalog_family_, object_family_}) {
    const rocksdb::Status status = database_->DestroyColumnFamilyHandle(family);
    if (!status.ok()) LOG(WARNING) << "store " << options_.path << ": " << status.ToString();
  }
  const rocksdb::Status status = database_->Close();
  if (!status.ok()) LOG(WARNING) << "store " << options_.path << ": " << status.ToString();
}

Status NvmeTier::check_space(std::int64_t bytes) const {
  std::error_code error;
  const auto space = std::filesystem::space(options_.path, error);
  if (error) return Status();  // the write will say what is wrong
  const auto reserve =
      std::min(options_.reserve_bytes, static_cast<std::int64_t>(space.capacity / 16));
  // Until they are flushed, objects take memory only; then files, and a little beside them.
  const std::int64_t wanted = reserve + unflushed_bytes_ + bytes + bytes / 16;
  if (static_cast<std::int64_t>(space.available) >= wanted) return Status();
  return Status(Code::kResourceExhausted,
                "store " + options_.path + ": the disk is full (" +
                    std::to_string(space.available) + " bytes free, " + std::to_string(wanted) +
                    " wanted); free some space or choose another --store");
}

Status NvmeTier::from_rocksdb(const rocksdb::Status& status, const char* operation) const {
  if (status.ok()) return Status();
  const std::string where = "store " + options_.path + ", " + operation + ": ";
  if (status.IsNoSpace() || says(status, "No space left")) {
    return Status(Code::kResourceExhausted,
                  where + "the disk is full; free some space or choose another --store");
  }
  if (status.IsCorruption() || says(status, "No such file")) {
    return Status(Code::kDataLoss,
                  where + "it is damaged (" + status.ToString() +
                      "); delete the directory, the cache is rebuilt from the documents");
  }
  if (says(status, "lock")) {
    return Status(Code::kUnavailable, where + "another process has it open");
  }
  if (says(status, "Direct I/O is not supported")) {
    return Status(Code::kUnimplemented, where + status.ToString());
  }
  if (says(status, "Permission denied") || says(status, "Read-only file system")) {
    return Status(Code::kInvalidArgument, where + "it cannot be written (" + status.ToString() +
                                              "); choose another --store");
  }
  return Status(Code::kInternal, where + status.ToString());
}

Status NvmeTier::open_database(bool direct_io) {
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, catalog_options()},
      {kObjectFamily, object_options(options_)}};
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* database = nullptr;
  ICE_TRY(from_rocksdb(rocksdb::DB::Open(database_options(options_, direct_io), options_.path,
                                         families, &handles, &database),
                       "open"));
  database_.reset(database);
  catalog_family_ = handles[0];
  object_family_ = handles[1];
  direct_io_ = direct_io;
  return Status();
}

Status NvmeTier::check_version() {
  std::string stored;
  const rocksdb::Status found =
      database_->Get(rocksdb::ReadOptions(), catalog_family_, kVersionKey, &stored);
  const std::string ours = std::to_string(options_.layout_version);
  if (found.IsNotFound()) {
    ICE_TRY(
        from_rocksdb(database_->Put(without_log(), catalog_family_, kVersionKey, ours), "open"));
    return from_rocksdb(
        database_->Flush(rocksdb::FlushOptions(), {catalog_family_, object_family_}), "open");
  }
  ICE_TRY(from_rocksdb(found, "open"));
  if (stored != ours) {
    return Status(Code::kFailedPrecondition,
                  "store " + options_.path + " has layout version " + stored +
                      ", this program reads version " + ours +
                      "; use another --store, or delete the directory to rebuild the cache");
  }
  return Status();
}

Status NvmeTier::load_catalog() {
  const std::unique_ptr<rocksdb::Iterator> records(
      database_->NewIterator(rocksdb::ReadOptions(), catalog_family_));
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
    const auto record =
        load<CatalogRecord>(reinterpret_cast<const std::byte*>(records->value().data()));
    const ObjectInfo info{.bytes = static_cast<std::int64_t>(record.bytes),
                          .checksum = record.checksum};
    catalog_.emplace(key, info);
    used_bytes_ += info.bytes;
  }
  return from_rocksdb(records->status(), "open");
}

Status NvmeTier::write(const ObjectKey& key, std::span<const ConstByteSpan> pieces,
                       const ObjectInfo& info) {
  std::vector<rocksdb::Slice> slices;
  for (const ConstByteSpan piece : pieces) slices.push_back(slice(piece));
  const CatalogRecord record{.bytes = static_cast<std::uint64_t>(info.bytes),
                             .checksum = info.checksum};
  const auto name = key.bytes();
  const rocksdb::Slice name_slice = slice(name);
  const rocksdb::Slice record_slice = slice(std::as_bytes(std::span(&record, 1)));
  rocksdb::WriteBatch batch;
  ICE_TRY(
      from_rocksdb(batch.Put(object_family_, rocksdb::SliceParts(&name_slice, 1),
                             rocksdb::SliceParts(slices.data(), static_cast<int>(slices.size()))),
                   "write"));
  ICE_TRY(from_rocksdb(batch.Put(catalog_family_, name_slice, record_slice), "write"));
  return from_rocksdb(database_->Write(without_log(), &batch), "write");
}

Status NvmeTier::erase(const ObjectKey& key) {
  const auto name = key.bytes();
  rocksdb::WriteBatch batch;
  ICE_TRY(from_rocksdb(batch.Delete(object_family_, slice(name)), "remove"));
  ICE_TRY(from_rocksdb(batch.Delete(catalog_family_, slice(name)), "remove"));
  return from_rocksdb(database_->Write(without_log(), &batch), "remove");
}

Task<PutOutcome> NvmeTier::put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) {
  if (catalog_.contains(key)) co_return PutOutcome::kAlreadyThere;
  ICE_CO_TRY(check_space(info.bytes));
  unflushed_bytes_ += info.bytes;
  auto work = [this, key, pieces, info] { return write(key, pieces, info); };
  ICE_CO_TRY(co_await offload(io_, std::move(work)));
  if (catalog_.emplace(key, info).second) used_bytes_ += info.bytes;
  co_return PutOutcome::kStored;
}

Task<ObjectBytes> NvmeTier::get(ObjectKey key, Verify) {
  const auto found = catalog_.find(key);
  if (found == catalog_.end()) {
    co_return Status::miss(MissReason::kNeverStored, "object " + to_string(key));
  }
  const ObjectInfo info = found->second;
  auto work = [this, key, info]() -> Result<ObjectBytes> {
    auto value = std::make_shared<rocksdb::PinnableSlice>();
    const auto name = key.bytes();
    const rocksdb::Status status =
        database_->Get(rocksdb::ReadOptions(), object_family_, slice(name), value.get());
    const bool lost = status.IsNotFound() || status.IsCorruption();
    if (lost) {
      return Status(Code::kDataLoss, "object " + to_string(key) + ": " + status.ToString(),
                    MissReason::kIntegrity);
    }
    ICE_TRY(from_rocksdb(status, "read"));
    const ConstByteSpan bytes = as_bytes(std::string_view(value->data(), value->size()));
    ICE_TRY(verify_object(key, info, std::span(&bytes, 1)));
    return ObjectBytes({bytes}, std::move(value));
  };
  Result<ObjectBytes> result = co_await offload(io_, std::move(work));
  if (result.has_value()) read_bytes.add(info.bytes);
  if (!result.has_value() && result.error().code() == Code::kDataLoss) {
    damaged.add();
    LOG(WARNING) << "store " << options_.path << ": " << result.error().to_string() << "; dropped";
    ICE_CO_TRY(co_await remove(key));
  }
  co_return result;
}

Task<> NvmeTier::remove(ObjectKey key) {
  const auto found = catalog_.find(key);
  if (found == catalog_.end()) co_return Status();
  used_bytes_ -= found->second.bytes;
  catalog_.erase(found);
  auto work = [this, key] { return erase(key); };
  co_return co_await offload(io_, std::move(work));
}

Task<> NvmeTier::flush() {
  const std::int64_t flushed = unflushed_bytes_;
  auto work = [this] {
    return from_rocksdb(
        database_->Flush(rocksdb::FlushOptions(), {catalog_family_, object_family_}), "flush");
  };
  ICE_CO_TRY(co_await offload(io_, std::move(work)));
  unflushed_bytes_ -= flushed;
  co_return Status();
}

std::optional<ObjectInfo> NvmeTier::find(const ObjectKey& key) const {
  const auto found = catalog_.find(key);
  if (found == catalog_.end()) return std::nullopt;
  return found->second;
}

void NvmeTier::for_each(
    const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const {
  for (const auto& [key, info] : catalog_) visit(key, info);
}

TierUsage NvmeTier::usage() const {
  return {.name = "nvme",
          .object_count = static_cast<std::int64_t>(catalog_.size()),
          .used_bytes = used_bytes_,
          .capacity_bytes = 0};
}

}  // namespace icefield
