#include "storage/nvme_tier.h"

#include <glog/logging.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <filesystem>
#include <unordered_map>

namespace icefield {
namespace {

// Shares of the limit. Below the stop there is room for what reclaiming rewrites.
constexpr double kEvictAbove = 0.85;
constexpr double kEvictDownTo = 0.84;
constexpr double kGarbageAllowed = 0.05;
constexpr double kStopAbove = 0.95;
constexpr std::size_t kEraseBatch = 4096;
// Of the reserve, for values that are not flushed. The rest is for the catalog and what the file
// system keeps beside the bytes.
constexpr double kReserveForValues = 0.75;
constexpr std::int64_t kReserveBuffers = 4;

std::int64_t share(double part, std::int64_t bytes) {
  return static_cast<std::int64_t>(part * static_cast<double>(bytes));
}

// Objects weigh in the smallest blocks that a device writes.
constexpr std::int64_t kBlock = 512;

std::uint32_t weight_of(std::int64_t bytes) {
  return static_cast<std::uint32_t>(std::max<std::int64_t>(ceil_div(bytes, kBlock), 1));
}

// Without a limit nothing is evicted but what expires: the order needs no ghosts.
std::unique_ptr<EvictionPolicy> policy_for(const NvmeTier::Options& options) {
  if (options.capacity_bytes == 0) return make_eviction_policy(EvictionKind::kLru, 0);
  return make_eviction_policy(options.eviction,
                              share(kEvictAbove, options.capacity_bytes) / kBlock);
}

std::int64_t reserve_for(const NvmeTier::Options& options) {
  return options.reserve_bytes > 0 ? options.reserve_bytes
                                   : kReserveBuffers * options.write_buffer_bytes;
}

// Adds its bytes to a count while it lives.
class Counted {
 public:
  Counted(std::shared_ptr<std::atomic<std::int64_t>> count, std::int64_t bytes)
      : count_(std::move(count)), bytes_(bytes) {
    count_->fetch_add(bytes_, std::memory_order_relaxed);
  }
  ~Counted() { count_->fetch_sub(bytes_, std::memory_order_relaxed); }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  std::shared_ptr<const void> inner;  // what the bytes are in

 private:
  std::shared_ptr<std::atomic<std::int64_t>> count_;
  std::int64_t bytes_;
};

// As offload(), for what happens per object: one hand-over to the pool and one back, where a
// coroutine of its own on the pool took four futex calls.
template <class Work>
asio::awaitable<std::invoke_result_t<Work>> on_thread(asio::thread_pool& pool, Work work) {
  using R = std::invoke_result_t<Work>;
  const auto shard = co_await asio::this_coro::executor;
  auto initiate = [&pool, shard](auto handler, Work inner) {
    asio::post(pool, [handler = std::move(handler), inner = std::move(inner),
                      guard = asio::make_work_guard(shard)]() mutable {
      asio::post(guard.get_executor(), [handler = std::move(handler), result = inner()]() mutable {
        std::move(handler)(std::move(result));
      });
    });
  };
  auto running = asio::async_initiate<const asio::use_awaitable_t<>, void(R)>(
      std::move(initiate), asio::use_awaitable, std::move(work));
  co_return co_await std::move(running);
}

Status check_directory(const NvmeTier::Options& options) {
  std::error_code error;
  if (!options.create && !std::filesystem::exists(options.path + "/CURRENT", error) && !error) {
    return Status::miss(MissReason::kNeverStored,
                        "no store at " + options.path + "; icefield run --store=DIR makes one");
  }
  std::filesystem::create_directories(options.path, error);
  if (!error && std::filesystem::is_directory(options.path, error)) return Status();
  std::error_code unknown;
  const bool file = std::filesystem::exists(options.path, unknown);
  return Status(Code::kInvalidArgument, "store directory " + options.path + " cannot be made: " +
                                            (file ? std::string("it is a file") : error.message()) +
                                            "; choose another with --store");
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
  if (capacity_bytes != 0 && capacity_bytes < 8 * write_buffer_bytes) {
    return Status(Code::kInvalidArgument,
                  "NVMe capacity of " + std::to_string(capacity_bytes) +
                      " bytes, expected 0 (no limit) or at least eight write buffers of " +
                      std::to_string(write_buffer_bytes));
  }
  if (group_commit_ms < 0 || group_commit_bytes < 0 || read_buffer_bytes <= 0 ||
      reserve_bytes < 0) {
    return Status(Code::kInvalidArgument,
                  "NVMe options: group commit, read buffers and reserve must not be negative");
  }
  return Status();
}

NvmeTier::NvmeTier(Options options, const Clock& clock, std::unique_ptr<RocksStore> store)
    : options_(std::move(options)),
      clock_(clock),
      store_(std::move(store)),
      evictor_(policy_for(options_)),
      leased_bytes_(std::make_shared<std::atomic<std::int64_t>>(0)),
      io_(static_cast<std::size_t>(options_.io_threads)) {}

Result<std::unique_ptr<NvmeTier>> NvmeTier::open(Options options, const Clock& clock) {
  ICE_TRY(options.validate());
  ICE_TRY(check_directory(options));
  ICE_TRY(auto store, RocksStore::open({.path = options.path,
                                        .direct_io = options.direct_io,
                                        .write_buffer_bytes = options.write_buffer_bytes,
                                        .reserve_bytes = reserve_for(options),
                                        .create = options.create,
                                        .layout_version = options.layout_version,
                                        .file_system = options.file_system}));
  std::unique_ptr<NvmeTier> tier(new NvmeTier(std::move(options), clock, std::move(store)));
  ICE_TRY(tier->load_catalog());
  return tier;
}

NvmeTier::~NvmeTier() {
  store_->close_soon();
  io_.join();
  writer_.join();
  maintenance_.join();
}

// The reserve is for what others do meanwhile: what is put finds room beside it.
Status NvmeTier::check_space(std::int64_t bytes) const {
  std::error_code error;
  const auto space = std::filesystem::space(options_.path, error);
  if (error) return Status();                      // the write will say what is wrong
  const std::int64_t wanted = bytes + bytes / 16;  // files, and a little beside them
  if (static_cast<std::int64_t>(space.available) >= wanted) return Status();
  return Status(Code::kResourceExhausted,
                "store " + options_.path + ": the disk is full (" +
                    std::to_string(space.available) + " bytes free, " + std::to_string(wanted) +
                    " wanted); free some space or choose another --store");
}

// Who comes meanwhile does not wait for it.
Task<> NvmeTier::recover() {
  if (recovering_) {
    co_return Status(Code::kResourceExhausted, "store " + options_.path + ": the disk is full");
  }
  recovering_ = true;
  auto work = [this] { return store_->recover(); };
  const Status status = co_await on_thread(io_, std::move(work));
  recovering_ = false;
  co_return status;
}

// Both counts are too large in their way: RocksDB flushes by itself, and counts its empty buffers.
std::int64_t NvmeTier::unflushed_bytes() const {
  return std::min(unflushed_bytes_ + flushing_bytes_, store_->space().pending_bytes) +
         writing_bytes_;
}

bool NvmeTier::alive(Id id) const {
  const std::int64_t end = evictor_.retention(id).expires_at_ms;
  return end == 0 || clock_.unix_ms() < end;
}

StoredObject NvmeTier::object_of(Id id) const {
  const Entry& entry = objects_[id];
  return {.key = entry.key,
          .info = {.bytes = entry.bytes,
                   .checksum = entry.checksum,
                   .retention = evictor_.retention(id)},
          .number = entry.number};
}

NvmeTier::Entry NvmeTier::entry_of(const StoredObject& object) {
  return {.key = object.key,
          .bytes = static_cast<std::uint32_t>(object.info.bytes),
          .checksum = object.info.checksum,
          .number = object.number};
}

std::int64_t NvmeTier::disk_bytes() const {
  const RocksStore::Space space = store_->space();
  return space.file_bytes + space.pending_bytes + writing_bytes_;
}

// Numbers tell the order of puts: after a restart it is the order of use.
Status NvmeTier::load_catalog() {
  std::vector<std::pair<std::uint64_t, Id>> order;
  std::unordered_map<Id, Retention> retentions;
  ICE_TRY(store_->load([&](const StoredObject& object) {
    const Id id = objects_.insert(entry_of(object), objects_.name_of(object.key));
    order.emplace_back(object.number, id);
    if (object.info.retention != Retention()) retentions.emplace(id, object.info.retention);
  }));
  std::sort(order.begin(), order.end());
  for (const auto& [number, id] : order) {
    const Entry& entry = objects_[id];
    const auto retention = retentions.find(id);
    evictor_.insert(id, {.name = objects_.name_of(entry.key), .weight = weight_of(entry.bytes)},
                    retention == retentions.end() ? Retention() : retention->second);
    used_bytes_ += entry.bytes;
  }
  if (!order.empty()) next_number_ = order.back().first + 1;
  return Status();
}

void NvmeTier::know(const StoredObject& object, std::uint64_t name) {
  evictor_.insert(objects_.insert(entry_of(object), name),
                  {.name = name, .weight = weight_of(object.info.bytes)}, object.info.retention);
  used_bytes_ += object.info.bytes;
}

StoredObject NvmeTier::forget(Id id) {
  const StoredObject object = object_of(id);
  objects_.hide(id, objects_.name_of(object.key));
  objects_.reuse(id);
  used_bytes_ -= object.info.bytes;
  return object;
}

// Of objects that were forgotten. What the store does not let go is known again.
Task<> NvmeTier::erase(std::vector<StoredObject> objects) {
  if (objects.empty()) co_return Status();
  auto work = [this, &objects] { return store_->erase(objects); };
  const Status erased = co_await on_thread(writer_, std::move(work));
  if (erased.ok()) co_return erased;
  for (const StoredObject& object : objects) {
    const std::uint64_t name = objects_.name_of(object.key);
    if (!objects_.find(object.key, name).has_value()) know(object, name);
  }
  co_return erased;
}

Task<> NvmeTier::drop_expired() {
  std::vector<StoredObject> doomed;
  while (doomed.size() < kEraseBatch) {
    const std::optional<Id> id = evictor_.evict_expired(clock_.unix_ms());
    if (!id.has_value()) break;
    doomed.push_back(forget(*id));
    expired.add();
  }
  co_return co_await erase(std::move(doomed));
}

Task<> NvmeTier::make_room(std::int64_t bytes) {
  if (store_->full()) ICE_CO_TRY(co_await recover());
  ICE_CO_TRY(check_space(unflushed_bytes() + bytes));
  if (unflushed_bytes() + bytes > share(kReserveForValues, store_->reserve_bytes())) {
    ICE_CO_TRY(co_await flush());
  }
  if (options_.capacity_bytes == 0) co_return Status();
  if (used_bytes_ + writing_bytes_ + bytes > share(kEvictAbove, options_.capacity_bytes)) {
    const std::int64_t target = share(kEvictDownTo, options_.capacity_bytes) - bytes;
    std::vector<StoredObject> doomed;
    while (used_bytes_ + writing_bytes_ > target && doomed.size() < kEraseBatch) {
      const std::optional<Id> id = evictor_.evict(clock_.unix_ms());
      if (!id.has_value()) break;
      (alive(*id) ? evicted : expired).add();
      doomed.push_back(forget(*id));
      if (on_evict_) on_evict_(doomed.back().key);
    }
    ICE_CO_TRY(co_await erase(std::move(doomed)));
  }
  start_reclaim(bytes);
  const std::int64_t wanted = std::max(disk_bytes(), used_bytes_ + writing_bytes_) + bytes;
  if (wanted <= share(kStopAbove, options_.capacity_bytes)) co_return Status();
  co_return Status(Code::kResourceExhausted,
                   "store " + options_.path + ": " + std::to_string(wanted) + " bytes of its " +
                       std::to_string(options_.capacity_bytes) +
                       " would be taken; space is being reclaimed, retry");
}

void NvmeTier::start_reclaim(std::int64_t incoming_bytes) {
  const std::int64_t garbage = disk_bytes() - used_bytes_ - writing_bytes_;
  const std::int64_t allowed = share(kGarbageAllowed, options_.capacity_bytes);
  const bool crowded =
      disk_bytes() + incoming_bytes > share(kEvictAbove + kGarbageAllowed, options_.capacity_bytes);
  if (garbage <= allowed && !crowded) return;
  if (garbage <= 0 || reclaiming_.exchange(true)) return;
  asio::post(maintenance_, [this, allowed] {
    const Status status = store_->reclaim(allowed / 2);
    if (!status.ok()) LOG(WARNING) << status.to_string();
    reclaiming_.store(false);
  });
}

asio::awaitable<void> NvmeTier::others(ObjectKey key) {
  while (writing_.contains(key)) co_await put_ended_.wait(Deadline::never());
}

Task<PutOutcome> NvmeTier::put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) {
  ICE_CO_TRY(check_info(info));
  co_await others(key);
  const std::uint64_t name = objects_.name_of(key);
  const std::optional<Id> old = objects_.find(key, name);
  if (old.has_value() && alive(*old)) co_return PutOutcome::kAlreadyThere;
  writing_.insert(key);
  StoredObject object{.key = key, .info = info, .number = 0};
  Result<PutOutcome> result = co_await put_new(object, name, pieces);
  writing_.erase(key);
  put_ended_.notify_all();
  co_return result;
}

Task<PutOutcome> NvmeTier::put_new(StoredObject object, std::uint64_t name,
                                   std::span<const ConstByteSpan> pieces) {
  const std::int64_t bytes = object.info.bytes;
  ICE_CO_TRY(co_await remove_now(object.key));  // one that has expired
  evictor_.expect({.name = name, .weight = weight_of(object.info.bytes)});
  ICE_CO_TRY(co_await make_room(bytes));
  object.number = next_number_++;
  writing_bytes_ += bytes;
  auto work = [this, object, pieces] { return store_->write(object, pieces); };
  const Status status = co_await on_thread(writer_, std::move(work));
  writing_bytes_ -= bytes;
  ICE_CO_TRY(status);
  unflushed_bytes_ += bytes;
  // One that was being erased may be known again: the newer record is in its place.
  if (const std::optional<Id> old = objects_.find(object.key, name); old.has_value()) {
    evictor_.erase(*old);
    forget(*old);
  }
  know(object, name);
  co_return PutOutcome::kStored;
}

Task<ObjectBytes> NvmeTier::get(ObjectKey key, Verify) {
  const std::uint64_t name = objects_.name_of(key);
  const std::optional<Id> found = objects_.find(key, name);
  if (!found.has_value()) {
    const bool evicted_lately = evictor_.remembers(name);
    co_return Status::miss(evicted_lately ? MissReason::kEvicted : MissReason::kNeverStored,
                           "object " + to_string(key));
  }
  const StoredObject object = object_of(*found);
  if (!alive(*found)) {
    co_return Status::miss(MissReason::kExpired, "object " + to_string(key));
  }
  const std::int64_t held = leased_bytes_->load(std::memory_order_relaxed);
  if (held > 0 && held + object.info.bytes > options_.read_buffer_bytes) {
    co_return Status(Code::kResourceExhausted,
                     "store " + options_.path + ": reads hold " + std::to_string(held) + " of " +
                         std::to_string(options_.read_buffer_bytes) + " bytes of read buffers");
  }
  auto counted = std::make_shared<Counted>(leased_bytes_, object.info.bytes);
  evictor_.touch(*found);
  auto work = [this, object] { return store_->read(object); };
  Result<ObjectBytes> result = co_await on_thread(io_, std::move(work));
  if (result.has_value()) {
    read_bytes.add(object.info.bytes);
    counted->inner = result->owner();
    const auto pieces = result->pieces();
    co_return ObjectBytes({pieces.begin(), pieces.end()}, std::move(counted));
  }
  if (result.error().code() != Code::kDataLoss) co_return result;
  co_await others(key);
  const std::optional<Id> now = objects_.find(key, name);
  if (!now.has_value() || objects_[*now].number != object.number) {
    // Removed or evicted while it was read.
    co_return Status::miss(MissReason::kEvicted, "object " + to_string(key));
  }
  damaged.add();
  LOG_EVERY_T(WARNING, 1) << "store " << options_.path << ": " << result.error().to_string()
                          << "; dropped";
  ICE_CO_TRY(co_await remove_now(key));
  co_return result;
}

Task<> NvmeTier::remove(ObjectKey key) {
  co_await others(key);
  co_return co_await remove_now(key);
}

Task<> NvmeTier::remove_now(ObjectKey key) {
  const std::optional<Id> id = objects_.find(key, objects_.name_of(key));
  if (!id.has_value()) co_return Status();
  evictor_.erase(*id);
  std::vector<StoredObject> doomed = {forget(*id)};
  co_return co_await erase(std::move(doomed));
}

Task<> NvmeTier::flush() {
  ICE_CO_TRY(co_await drop_expired());
  // What was put before is in the flush that begins next.
  const std::uint64_t mine = flush_begun_ + 1;
  while (flush_ended_ < mine) {
    if (flushing_) {
      co_await flush_waiters_.wait(Deadline::never());
      continue;
    }
    flushing_ = true;
    const Deadline gathered =
        Deadline::after(clock_, std::chrono::milliseconds(options_.group_commit_ms));
    while (!writing_.empty() && unflushed_bytes_ < options_.group_commit_bytes) {
      if (!co_await put_ended_.wait(gathered)) break;
    }
    ++flush_begun_;
    flushing_bytes_ += std::exchange(unflushed_bytes_, 0);
    auto work = [this] { return store_->flush(); };
    flush_status_ = co_await on_thread(io_, std::move(work));
    if (flush_status_.ok()) flushing_bytes_ = 0;
    flushes.add();
    flush_ended_ = flush_begun_;
    flushing_ = false;
    flush_waiters_.notify_all();
  }
  // A later flush than mine that succeeded had everything of mine, too.
  co_return flush_status_;
}

Task<> NvmeTier::retain(ObjectKey key, Retention retention) {
  co_await others(key);
  const std::optional<Id> id = objects_.find(key, objects_.name_of(key));
  if (!id.has_value() || !alive(*id)) {
    co_return Status::miss(MissReason::kNeverStored, "object " + to_string(key));
  }
  StoredObject object = object_of(*id);
  object.info.retention = retention;
  // Its record must not be written again after it was erased.
  writing_.insert(key);
  evictor_.begin_use(*id);
  evictor_.retain(*id, retention);
  auto work = [this, object] { return store_->update(object); };
  const Status status = co_await on_thread(writer_, std::move(work));
  evictor_.end_use(*id);
  writing_.erase(key);
  put_ended_.notify_all();
  co_return status;
}

std::optional<ObjectInfo> NvmeTier::find(const ObjectKey& key) const {
  const std::optional<Id> id = objects_.find(key, objects_.name_of(key));
  if (!id.has_value() || !alive(*id)) return std::nullopt;
  return object_of(*id).info;
}

void NvmeTier::for_each(
    const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const {
  objects_.for_each([&](Id id, const Entry& entry) {
    if (alive(id)) visit(entry.key, object_of(id).info);
  });
}

TierUsage NvmeTier::usage() const {
  return {.name = "nvme",
          .object_count = objects_.count(),
          .used_bytes = used_bytes_,
          .capacity_bytes = options_.capacity_bytes};
}

}  // namespace icefield
