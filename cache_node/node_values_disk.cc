// The disk side of NodeValues: what it holds at the start, names, copies of values in use.
#include <glog/logging.h>

#include <algorithm>

#include "cache_node/chunk_sums.h"
#include "cache_node/node_values.h"

namespace icefield {
namespace {

constexpr int kMaxCopies = 4;               // to disk, side by side
constexpr std::size_t kMaxWaiting = 16384;  // for their copy

// What a store holds of one value.
struct FoundChunks {
  std::int32_t chunk_count = 0;
  bool named = false;
};

}  // namespace

Task<> NodeValues::recover() {
  if (disk_ == nullptr) co_return Status();
  settle_in(co_await asio::this_coro::executor);
  std::unordered_map<ValueHash, FoundChunks, Hash128Hasher> found;
  found.reserve(static_cast<std::size_t>(disk_->usage().object_count / 2));
  std::vector<ObjectKey> spaces;
  disk_->for_each([&](const ObjectKey& key, const ObjectInfo&) {
    ValueHash hash;
    hash.bytes = key.segment.bytes;
    if (key.part.kind == PartKind::kValue) {
      found[hash].chunk_count = key.part.layer + 1;
    } else if (key.part.kind == PartKind::kValueName) {
      found[hash].named = true;
    } else if (key.part.kind == PartKind::kNamespace) {
      spaces.push_back(key);
    }
  });
  ICE_CO_TRY(co_await recover_namespaces(std::move(spaces)));
  values_.reserve(found.size());
  std::int64_t removed = 0;
  for (const auto& [hash, chunks] : found) {
    std::optional<Value> value;
    if (chunks.named) value = value_on_disk(hash, chunks.chunk_count);
    if (!value.has_value()) {
      ++removed;
      doom(hash, chunks.chunk_count);
      continue;
    }
    note_retention(hash, *value);
    values_.emplace(hash, std::move(*value));
    ++nameless_count_;
  }
  if (removed > 0) LOG(INFO) << removed << " values that were never finished are removed";
  start_removing();
  co_return Status();
}

// None when a chunk is missing, or is not as long as its place in the value says.
std::optional<NodeValues::Value> NodeValues::value_on_disk(const ValueHash& hash,
                                                           std::int64_t chunk_count) const {
  if (chunk_count == 0 || chunk_count > value_chunk_count(kMaxValueBytes)) return std::nullopt;
  Value value{.on_disk = true};
  std::vector<std::uint64_t> checksums;
  std::int64_t bytes = 0;
  for (std::int64_t chunk = 0; chunk < chunk_count; ++chunk) {
    const auto info = disk_->find(value_chunk_key(hash, chunk_count, chunk));
    if (!info.has_value()) return std::nullopt;
    const bool last = chunk + 1 == chunk_count;
    if (!last && info->bytes != kValueChunkBytes) return std::nullopt;
    bytes += info->bytes;
    if (chunk == 0) value.retention = info->retention;
    checksums.push_back(info->checksum);
  }
  if (value_chunk_count(bytes) != chunk_count) return std::nullopt;
  value.bytes = static_cast<std::int32_t>(bytes);
  value.version = value_version(checksums);
  return value;
}

Task<> NodeValues::recover_namespaces(std::vector<ObjectKey> records) {
  for (const ObjectKey& key : records) {
    const Result<ObjectBytes> bytes = co_await disk_->get(key, Verify::kByTier);
    if (!bytes.has_value()) continue;  // damaged: the tier has dropped it and said so
    const Result<NamespaceRecord> record = NamespaceRecord::parse(bytes->copy());
    if (!record.has_value()) continue;
    ICE_CO_TRY(Namespace* const space, space_of(record->name_space));
    space->flush_number = std::max(space->flush_number, record->flush_number);
  }
  std::set<ObjectKey> current;
  for (const auto& [name, space] : spaces_) {
    current.insert(NamespaceRecord{.flush_number = space->flush_number, .name_space = name}.key());
  }
  for (const ObjectKey& key : records) {
    if (!current.contains(key)) ICE_CO_TRY(co_await disk_->remove(key));
  }
  co_return Status();
}

Task<> NodeValues::store_namespace(NamespaceRecord record, std::uint64_t before) {
  const Bytes bytes = record.encode();
  const ConstByteSpan part = bytes;
  const ObjectKey key = record.key();
  const ObjectInfo info{.bytes = static_cast<std::int64_t>(bytes.size()),
                        .checksum = object_checksum(key, std::span(&part, 1))};
  ICE_CO_TRY(co_await disk_->put(key, std::span(&part, 1), info));
  ICE_CO_TRY(co_await disk_->flush());
  record.flush_number = before;
  (void)co_await disk_->remove(record.key());  // the highest counts
  co_return Status();
}

// -------------------------------------------------------------------------------------- names

Task<> NodeValues::store_name(ValueHash hash) {
  const auto value = values_.find(hash);
  if (value == values_.end() || value->second.name == nullptr) co_return Status();
  const Namespace& space = *value->second.name->space;
  const Bytes bytes = ValueName{.flush_number = space.flush_number,
                                .name_space = space.name,
                                .key = value->second.name->key}
                          .encode();
  const ConstByteSpan part = bytes;
  const ObjectKey key = value_name_key(hash);
  const ObjectInfo info{.bytes = static_cast<std::int64_t>(bytes.size()),
                        .checksum = object_checksum(key, std::span(&part, 1)),
                        .retention = value->second.retention};
  ICE_CO_TRY(co_await disk_->put(key, std::span(&part, 1), info));
  const auto now = values_.find(hash);
  if (now != values_.end()) now->second.on_disk = true;
  co_return Status();
}

Task<> NodeValues::load_name(ValueHash hash) {
  const Result<ObjectBytes> bytes = co_await disk_->get(value_name_key(hash), Verify::kByTier);
  const auto value = values_.find(hash);
  if (value == values_.end() || value->second.name != nullptr) co_return Status();
  Result<ValueName> name = Status(Code::kDataLoss, "no name");
  if (bytes.has_value()) name = ValueName::parse(bytes->copy());
  if (!name.has_value()) {
    const bool lost = bytes.has_value() || bytes.error().code() == Code::kDataLoss ||
                      bytes.error().code() == Code::kNotFound;
    if (!lost) co_return bytes.error();
    drop(value, MissReason::kIntegrity);
    start_removing();
    co_return Status();
  }
  ICE_CO_TRY(Namespace* const space, space_of(name->name_space));
  --nameless_count_;
  ++space->value_count;
  space->value_bytes += value->second.bytes;
  value->second.name = std::make_unique<Name>(Name{.space = space, .key = std::move(name->key)});
  if (name->flush_number >= space->flush_number) co_return Status();
  drop(value, MissReason::kFlushed);
  start_removing();
  co_return Status();
}

// Of all values, side by side in bounded numbers.
Task<> NodeValues::load_names() {
  constexpr std::size_t kBatch = 256;
  const auto load_one = [](NodeValues& self, ValueHash hash,
                           Status& status) -> asio::awaitable<void> {
    const Status loaded = co_await self.load_name(hash);
    if (!loaded.ok()) status = loaded;
  };
  if (nameless_count_ == 0) co_return Status();
  // Collected once: none comes after the start. Those that go, or get their name, meanwhile are
  // skipped.
  std::vector<ValueHash> hashes;
  hashes.reserve(static_cast<std::size_t>(nameless_count_));
  for (const auto& [hash, value] : values_) {
    if (value.name == nullptr) hashes.push_back(hash);
  }
  Status status;
  for (std::size_t at = 0; at < hashes.size() && status.ok();) {
    TaskScope scope(co_await asio::this_coro::executor);
    for (const std::size_t end = std::min(at + kBatch, hashes.size()); at < end; ++at) {
      if (nameless(hashes[at])) scope.spawn(load_one(*this, hashes[at], status));
    }
    co_await scope.join();
  }
  co_return status;
}

// -------------------------------------------------------------------------------------- copies

void NodeValues::note_use(const ValueHash& hash, Value& value) {
  if (value.hits < kManyHits) ++value.hits;
  if (disk_ == nullptr || value.on_disk || value.copying) return;
  if (value.hits < options_.disk_after_hits) return;
  if (to_copy_.size() >= kMaxWaiting) {
    copies_refused.add();
    return;
  }
  value.copying = true;
  to_copy_.push_back(hash);
  start_copies();
}

bool NodeValues::memory_fills() const {
  const TierUsage usage = memory_.usage();
  return usage.used_bytes * 2 >= usage.capacity_bytes;
}

void NodeValues::start_copies() {
  if (to_copy_.empty() || copies_->running() >= kMaxCopies || !memory_fills()) return;
  copies_->spawn(make_copies());
}

asio::awaitable<void> NodeValues::make_copies() {
  while (!to_copy_.empty() && memory_fills()) {
    const ValueHash hash = to_copy_.front();
    to_copy_.pop_front();
    auto found = values_.find(hash);
    if (found != values_.end() && found->second.on_disk) {  // put durably meanwhile
      found->second.copying = false;
      continue;
    }
    const Status copied = co_await copy_to_disk(hash);
    found = values_.find(hash);
    if (found != values_.end()) found->second.copying = false;
    if (found == values_.end()) start_removing();  // removed, or evicted, meanwhile
    if (copied.ok()) {
      copied_to_disk.add();
    } else if (copied.code() == Code::kResourceExhausted) {
      // The disk is busy or full: its next use asks for it again. Those that wait are tried again
      // with the next request.
      copies_refused.add();
      co_return;
    } else if (copied.code() != Code::kNotFound) {
      LOG_EVERY_T(WARNING, 1) << "value " << to_string(hash)
                              << " not copied to disk: " << copied.to_string();
    }
  }
}

Task<> NodeValues::copy_to_disk(ValueHash hash) {
  const auto value = values_.find(hash);
  if (value == values_.end()) co_return Status::miss(MissReason::kEvicted, "value to be copied");
  const std::int64_t count = value_chunk_count(value->second.bytes);
  const ToDisk arriving(*this, hash);
  Status copied = co_await copy_chunks(hash, count);
  if (copied.ok()) copied = co_await store_name(hash);
  if (!values_.contains(hash)) doom(hash, count);
  co_return copied;
}

Task<> NodeValues::copy_chunks(const ValueHash& hash, std::int64_t chunk_count) {
  for (std::int64_t chunk = 0; chunk < chunk_count; ++chunk) {
    const ObjectKey key = value_chunk_key(hash, chunk_count, chunk);
    if (disk_->find(key).has_value()) continue;
    const std::optional<ObjectInfo> info = memory_.find(key);
    std::optional<ObjectBytes> bytes = memory_.lease(key);
    if (!bytes.has_value()) co_return Status::miss(MissReason::kEvicted, "value to be copied");
    // Clients write into memory: what is verified is what the disk gets.
    const Bytes copy = bytes->copy();
    const ConstByteSpan part = copy;
    bytes.reset();
    const Status verified = verify_object(key, *info, std::span(&part, 1));
    if (!verified.ok()) {
      const auto value = values_.find(hash);
      if (value != values_.end()) drop(value, MissReason::kIntegrity);
      co_return verified;
    }
    ICE_CO_TRY(co_await disk_->put(key, std::span(&part, 1), *info));
  }
  co_return Status();
}

}  // namespace icefield
