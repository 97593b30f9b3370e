#include "cache_node/node_values.h"

#include <algorithm>
#include <iterator>

#include "cache_node/chunk_sums.h"

namespace icefield {
namespace {

constexpr std::size_t kMaxNamespaces = 1 << 16;
// A flush number grows by one with every flush; a node may have missed some. A wrong one far ahead
// would leave no room for those to come.
constexpr std::uint64_t kMaxMissedFlushes = std::uint64_t{1} << 32;

Retention retention_of(const PutOptions& options, std::int64_t now_ms) {
  Retention retention;
  if (options.ttl_ms > 0) retention.expires_at_ms = now_ms + options.ttl_ms;
  if (options.pin == PinKind::kSoft) retention.pinned_until_ms = now_ms + options.pin_ttl_ms;
  if (options.pin == PinKind::kHard) retention.pinned_until_ms = Retention::kForever;
  return retention;
}

bool hard_pinned(const Retention& retention) {
  return retention.pinned_until_ms == Retention::kForever;
}

// Left of another value, however it came to be there: a put would find it and change nothing.
bool differs(const std::optional<ObjectInfo>& stored, const ObjectInfo& info) {
  return stored.has_value() && *stored != info;
}

}  // namespace

NodeValues::NodeValues(DramTier& memory, Tier* disk, const Clock& clock, Options options)
    : memory_(memory), disk_(disk), clock_(clock), options_(options) {
  ICE_CHECK(options_.disk_after_hits <= kManyHits);
}

Task<> NodeValues::stop() {
  constexpr std::chrono::seconds kPatience{1};  // with what is to be removed
  start_removing();
  stop_at_ = clock_.now() + kPatience;
  to_copy_.clear();
  if (copies_.has_value()) co_await copies_->join();
  if (removal_.has_value()) co_await removal_->join();
  uploads_.clear();
  co_return Status();
}

void NodeValues::settle_in(const asio::any_io_executor& executor) {
  if (copies_.has_value()) return;
  copies_.emplace(executor);
  removal_.emplace(executor);
}

// ---------------------------------------------------------------------------------- namespaces

Result<NodeValues::Namespace*> NodeValues::space_of(std::string_view name) {
  const auto found = spaces_.find(name);
  if (found != spaces_.end()) return found->second.get();
  if (spaces_.size() >= kMaxNamespaces) {
    return Status(Code::kResourceExhausted,
                  "the node has " + std::to_string(kMaxNamespaces) + " namespaces, no more");
  }
  auto space = std::make_unique<Namespace>(name);
  return spaces_.emplace(std::string(name), std::move(space)).first->second.get();
}

asio::awaitable<const NodeValues::Namespace*> NodeValues::enter_to_read(ValueScope scope,
                                                                        ValueHead& head,
                                                                        Namespace& nobody) {
  settle_in(co_await asio::this_coro::executor);
  // Who knows of a flush tells us of it.
  if (scope.flush_number > 0 || spaces_.contains(scope.name_space)) {
    co_return co_await enter(scope, head);
  }
  co_return &nobody;
}

asio::awaitable<NodeValues::Namespace*> NodeValues::enter(ValueScope scope, ValueHead& head) {
  settle_in(co_await asio::this_coro::executor);
  const Result<Namespace*> space = space_of(scope.name_space);
  head.status = space.status();
  if (!head.status.ok()) co_return nullptr;
  head.status = check_flush_number(scope.flush_number, (*space)->flush_number);
  if (!head.status.ok()) co_return nullptr;
  if (scope.flush_number > (*space)->flush_number) {
    head.status = co_await raise(**space, scope.flush_number);
  } else if (scope.flush_number < (*space)->flush_number) {
    head = behind(scope.flush_number, **space);
  }
  head.flush_number = (*space)->flush_number;
  co_return head.status.ok() ? *space : nullptr;
}

ValueHead NodeValues::behind(std::uint64_t asked, const Namespace& space) {
  return {
      .status = Status(Code::kAborted, "namespace flushed " + std::to_string(space.flush_number) +
                                           " times, the request knows of " + std::to_string(asked)),
      .flush_number = space.flush_number};
}

Status NodeValues::check_flush_number(std::uint64_t asked, std::uint64_t known) {
  if (asked <= known || asked - known <= kMaxMissedFlushes) return Status();
  return Status(Code::kInvalidArgument, "flush number " + std::to_string(asked) +
                                            ", the namespace was flushed " + std::to_string(known) +
                                            " times");
}

Task<> NodeValues::raise(Namespace& space, std::uint64_t flush_number) {
  const std::uint64_t before = std::exchange(space.flush_number, flush_number);
  for (auto value = values_.begin(); value != values_.end();) {
    const auto next = std::next(value);
    const Name* name = value->second.name.get();
    if (name != nullptr && name->space == &space) drop(value, MissReason::kFlushed);
    value = next;
  }
  NamespaceRecord record{.flush_number = flush_number, .name_space = space.name};
  if (disk_ != nullptr) ICE_CO_TRY(co_await store_namespace(std::move(record), before));
  start_removing();
  co_return Status();
}

std::uint64_t NodeValues::fingerprint(const Namespace& space, std::string_view key) const {
  return xxh3(as_bytes(key), space.seed);
}

Status NodeValues::miss(const Namespace& space, std::string_view key) const {
  return Status::miss(missed_.recall(fingerprint(space, key)), std::string());
}

Task<std::int64_t> NodeValues::flush(ValueScope scope, ValueHead& head) {
  ICE_CO_TRY(co_await load_names());
  const Result<Namespace*> space = space_of(scope.name_space);
  ICE_CO_TRY(space.status());
  const std::int64_t before = (*space)->value_count;
  if (scope.flush_number <= (*space)->flush_number) {
    head.flush_number = (*space)->flush_number;
    head.status = Status(Code::kAborted, "namespace flushed by another client");
    co_return 0;
  }
  (void)co_await enter(scope, head);
  co_return head.status.ok() ? before - (*space)->value_count : 0;
}

// --------------------------------------------------------------------------------------- putting

bool NodeValues::over_quota(std::int64_t value_bytes, const PutOptions& options) const {
  return options.pin == PinKind::kHard &&
         hard_pinned_bytes_ + value_bytes > options_.hard_pin_bytes;
}

// Whether put() would refuse all of it, as things are.
bool NodeValues::hopeless(const PutValues& request) const {
  if (request.options.level == WriteLevel::kDurable && disk_ == nullptr) return true;
  const auto space = spaces_.find(request.scope.name_space);
  return space != spaces_.end() && request.scope.flush_number < space->second->flush_number;
}

// Not when put() would refuse it, as things are, or has it already.
bool NodeValues::worth_room(const ValueHash& hash, const PutValue& item,
                            const PutValues& request) const {
  const auto there = values_.find(hash);
  if (there != values_.end() && !is_over(there->second)) return false;
  if (remains_.contains(hash)) return false;
  const auto upload = uploads_.find(hash);
  if (upload != uploads_.end()) return upload->second.number == request.upload;
  return !over_quota(item.value_bytes, request.options);
}

std::vector<IncomingChunk> NodeValues::chunks_of(const PutValues& request) {
  std::vector<IncomingChunk> chunks;
  chunks.reserve(request.values.size());
  for (const PutValue& item : request.values) {
    const ValueHash hash =
        value_hash(request.scope.name_space, request.scope.flush_number, item.key);
    const std::int64_t count = value_chunk_count(item.value_bytes);
    for (std::size_t i = 0; i < item.checksums.size(); ++i) {
      const std::int64_t number = item.first_chunk + static_cast<std::int64_t>(i);
      IncomingChunk& chunk = chunks.emplace_back();
      chunk.key = value_chunk_key(hash, count, number);
      chunk.bytes = chunk_range(item.value_bytes, number, 0, item.value_bytes).chunk_bytes;
    }
  }
  return chunks;
}

std::vector<IncomingChunk> NodeValues::reserve(const PutValues& request) {
  std::vector<IncomingChunk> chunks = chunks_of(request);
  const bool durable = request.options.level == WriteLevel::kDurable;
  if (hopeless(request) || (durable && memory_.shared())) return chunks;
  std::span<IncomingChunk> left = chunks;
  for (const PutValue& item : request.values) {
    const std::span<IncomingChunk> mine = left.first(item.checksums.size());
    left = left.subspan(mine.size());
    ValueHash hash;
    hash.bytes = mine.front().key.segment.bytes;
    if (!worth_room(hash, item, request)) continue;
    for (IncomingChunk& chunk : mine) {
      Result<DramTier::Reservation> slots = memory_.reserve(chunk.key, chunk.bytes);
      if (slots.has_value()) chunk.slots = std::move(*slots);
    }
  }
  return chunks;
}

Result<std::vector<IncomingChunk>> NodeValues::adopt(const PutValues& request,
                                                     DramTier::Reservation slots) {
  std::vector<IncomingChunk> chunks = chunks_of(request);
  for (IncomingChunk& chunk : chunks) {
    chunk.slots = slots.split(chunk.key, chunk.bytes);
    if (chunk.slots.has_value()) continue;
    return Status(Code::kInvalidArgument, "values are longer than their room");
  }
  return chunks;
}

Task<PutValuesReply> NodeValues::put(const PutValues& request, std::span<IncomingChunk> chunks) {
  PutValuesReply reply;
  Namespace* const space = co_await enter(request.scope, reply.head);
  if (space == nullptr) co_return reply;
  expire_due();
  reply.outcomes.reserve(request.values.size());
  Batch batch;
  for (const PutValue& item : request.values) {
    const std::span<IncomingChunk> mine = chunks.first(item.checksums.size());
    chunks = chunks.subspan(mine.size());
    reply.outcomes.push_back(co_await put_one(*space, item, request, mine, batch));
  }
  batch.leases.clear();
  batched_bytes_ -= batch.bytes;
  start_copies();
  start_removing();
  if (request.options.level == WriteLevel::kDurable && disk_ != nullptr) {
    const Status flushed = co_await disk_->flush();
    for (Result<PutOutcome>& outcome : reply.outcomes) {
      if (outcome.has_value() && !flushed.ok()) outcome = flushed;
    }
  }
  co_return reply;
}

Task<PutOutcome> NodeValues::put_one(Namespace& space, const PutValue& item,
                                     const PutValues& request, std::span<IncomingChunk> chunks,
                                     Batch& batch) {
  const bool durable = request.options.level == WriteLevel::kDurable;
  if (durable && disk_ == nullptr) {
    co_return Status(Code::kFailedPrecondition,
                     "a durable put needs a disk; start the node with --store=DIR");
  }
  ValueHash hash;
  hash.bytes = chunks.front().key.segment.bytes;
  if (values_.contains(hash) || remains_.contains(hash)) {
    ICE_CO_TRY(const bool there, co_await is_there(space, item.key, hash, durable));
    if (there) {
      already_there.add();
      co_return PutOutcome::kAlreadyThere;
    }
  }
  co_return co_await put_new(space, hash, item, request, chunks, batch);
}

// Whether the value is, as durably as is wanted. If not, what is left under its key is gone, or
// somebody else removes it right now or the disk refused to, and nobody has had a turn since.
Task<bool> NodeValues::is_there(const Namespace& space, std::string_view key, const ValueHash& hash,
                                bool durable) {
  while (true) {
    if (nameless(hash)) ICE_CO_TRY(co_await load_name(hash));
    const Result<Value*> there = live_now(space, key, hash);
    if (there.has_value()) {
      if (!durable || (*there)->on_disk) co_return true;
      const Status kept = co_await copy_to_disk(hash);
      if (kept.ok()) co_return true;
      if (values_.contains(hash)) co_return kept;
      continue;  // it was damaged, or has left memory meanwhile: what came takes its place
    }
    const auto [begin, end] = remains_.equal_range(hash);
    const auto waits = [](const auto& entry) { return !entry.second.going; };
    if (std::none_of(begin, end, waits)) co_return false;
    const Status removed = co_await remove_remains(hash);
    if (!removed.ok()) co_return false;
  }
}

Task<PutOutcome> NodeValues::put_new(Namespace& space, const ValueHash& hash, const PutValue& item,
                                     const PutValues& request, std::span<IncomingChunk> chunks,
                                     Batch& batch) {
  ICE_CO_TRY(upload_of(hash, item, request).status());
  const ToDisk arriving(*this, hash);
  Status stored = co_await store_chunks(hash, item, request, chunks);
  if (stored.ok()) {
    if (uploads_.at(hash).missing > 0) co_return PutOutcome::kStored;
    if (space.flush_number != request.scope.flush_number) {
      stored = Status(Code::kAborted, "namespace flushed meanwhile");
    }
  }
  if (!stored.ok()) {
    drop_upload(hash);
  } else {
    complete(space, hash, item.key, request.options.level, batch);
    if (request.options.level == WriteLevel::kDurable) stored = co_await store_name(hash);
  }
  if (!values_.contains(hash)) doom(hash, value_chunk_count(item.value_bytes));
  ICE_CO_TRY(stored);
  co_return PutOutcome::kStored;
}

Result<NodeValues::Upload*> NodeValues::upload_of(const ValueHash& hash, const PutValue& item,
                                                  const PutValues& request) {
  const std::uint64_t number = request.upload;
  const Status busy(Code::kUnavailable, "another client is writing this value");
  if (remains_.contains(hash)) {
    return Status(Code::kUnavailable, "what was stored under this key is still being removed");
  }
  const Clock::TimePoint now = clock_.now();
  auto found = uploads_.find(hash);
  if (found != uploads_.end() && found->second.number != number) {
    if (now - found->second.used < options_.upload_idle) return busy;
    drop_upload(hash);
    return busy;  // until its chunks are gone
  }
  if (found == uploads_.end() && to_disk_.contains(hash)) return busy;  // or it was ours, and went
  if (found == uploads_.end() && values_.contains(hash)) return busy;   // it came while we waited
  if (found == uploads_.end()) {
    if (over_quota(item.value_bytes, request.options)) {
      return Status(Code::kResourceExhausted,
                    "hard pins hold " + std::to_string(hard_pinned_bytes_) + " of " +
                        std::to_string(options_.hard_pin_bytes) + " bytes",
                    MissReason::kQuota);
    }
    const auto chunks = static_cast<std::size_t>(value_chunk_count(item.value_bytes));
    found = uploads_.emplace(hash, Upload{.number = number, .bytes = item.value_bytes}).first;
    found->second.retention = retention_of(request.options, clock_.unix_ms());
    if (hard_pinned(found->second.retention)) hard_pinned_bytes_ += item.value_bytes;
    found->second.checksums.resize(chunks);
    found->second.stored.resize(chunks);
    found->second.missing = static_cast<std::int64_t>(chunks);
  }
  Upload& upload = found->second;
  upload.used = now;
  if (upload.bytes == item.value_bytes) return &upload;
  return Status(Code::kInvalidArgument, "value of " + std::to_string(item.value_bytes) +
                                            " bytes, its first part said " +
                                            std::to_string(upload.bytes));
}

void NodeValues::drop_upload(const ValueHash& hash) {
  const auto upload = uploads_.find(hash);
  if (upload == uploads_.end()) return;
  doom(hash, value_chunk_count(upload->second.bytes));
  if (hard_pinned(upload->second.retention)) hard_pinned_bytes_ -= upload->second.bytes;
  uploads_.erase(upload);
}

Task<> NodeValues::store_chunks(const ValueHash& hash, const PutValue& item,
                                const PutValues& request, std::span<IncomingChunk> chunks) {
  const bool durable = request.options.level == WriteLevel::kDurable;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    IncomingChunk& chunk = chunks[i];
    const bool adopted = chunk.parts.empty() && chunk.bytes > 0;  // it has nothing but its slots
    ICE_CHECK(!adopted || (chunk.slots.has_value() && !durable));
    const ObjectInfo info{.bytes = chunk.bytes,
                          .checksum = item.checksums[i],
                          .retention = uploads_.at(hash).retention};
    if (chunk.checksum != info.checksum) {
      co_return Status(Code::kDataLoss, "checksum mismatch, object " + to_string(chunk.key),
                       MissReason::kIntegrity);
    }
    if (differs(memory_.find(chunk.key), info)) ICE_CO_TRY(co_await memory_.remove(chunk.key));
    if (disk_ != nullptr && differs(disk_->find(chunk.key), info)) {
      ICE_CO_TRY(co_await disk_->remove(chunk.key));
    }
    if (durable) ICE_CO_TRY(co_await disk_->put(chunk.key, chunk.parts, info));
    if (chunk.slots.has_value()) {
      ICE_CO_TRY(memory_.store(std::move(*chunk.slots), info).status());
    } else {
      ICE_CO_TRY(co_await store_late(chunk, info, request.options.level));
    }
    const auto upload = uploads_.find(hash);
    if (upload == uploads_.end() || upload->second.number != request.upload ||
        upload->second.bytes != item.value_bytes) {
      co_return Status(Code::kResourceExhausted, "evicted while it was being written");
    }
    const auto number = static_cast<std::size_t>(item.first_chunk) + i;
    if (!upload->second.stored[number]) --upload->second.missing;
    upload->second.stored[number] = true;
    upload->second.checksums[number] = info.checksum;
    const std::optional<ObjectBytes> lease = memory_.lease(chunk.key);
    if (lease.has_value()) upload->second.leases.push_back(lease->owner());
  }
  co_return Status();
}

// A chunk that was given no room before it came: its parts are nobody else's.
Task<> NodeValues::store_late(IncomingChunk& chunk, ObjectInfo info, WriteLevel level) {
  Status kept = (co_await memory_.put(chunk.key, chunk.parts, info)).status();
  while (kept.code() == Code::kResourceExhausted) {
    ICE_CO_TRY(const bool freed, co_await free_memory());
    if (!freed) break;
    kept = (co_await memory_.put(chunk.key, chunk.parts, info)).status();
  }
  // With a disk below, memory is a cache that may be too small.
  if (kept.ok() || disk_ == nullptr || level == WriteLevel::kDurable) {
    co_return disk_ == nullptr ? kept : Status();
  }
  co_return (co_await disk_->put(chunk.key, chunk.parts, info)).status();
}

void NodeValues::complete(Namespace& space, const ValueHash& hash, std::string_view key,
                          WriteLevel level, Batch& batch) {
  ICE_CHECK(!values_.contains(hash));
  Upload upload = std::move(uploads_.at(hash));
  uploads_.erase(hash);
  if (hard_pinned(upload.retention)) hard_pinned_bytes_ -= upload.bytes;  // the value's from here
  if (batched_bytes_ + upload.bytes <= memory_.usage().capacity_bytes / 4) {
    batched_bytes_ += upload.bytes;
    batch.bytes += upload.bytes;
    std::ranges::move(upload.leases, std::back_inserter(batch.leases));
  }
  upload.leases.clear();
  Value value{.bytes = static_cast<std::int32_t>(upload.bytes),
              .retention = upload.retention,
              .version = value_version(upload.checksums)};
  value.name = std::make_unique<Name>(Name{.space = &space, .key = std::string(key)});
  note_retention(hash, value);
  ++space.value_count;
  space.value_bytes += value.bytes;
  puts.add();
  put_bytes.add(value.bytes);
  const std::uint64_t name = fingerprint(space, key);
  const bool came_back = missed_.recall(name) == MissReason::kEvicted;
  missed_.forget(name);
  Value& stored = values_.emplace(hash, std::move(value)).first->second;
  if (came_back && level != WriteLevel::kDurable) note_use(hash, stored);
}

void NodeValues::note_retention(const ValueHash& hash, const Value& value) {
  const Retention& kept = value.retention;
  if (kept.expires_at_ms != 0) expiries_.emplace(kept.expires_at_ms, hash);
  if (hard_pinned(kept)) {
    hard_pinned_bytes_ += value.bytes;
  } else if (kept.pinned_until_ms != 0) {
    soft_pins_.emplace(kept.pinned_until_ms, hash);
  }
}

void NodeValues::forget_retention(const ValueHash& hash, const Value& value) {
  const Retention& kept = value.retention;
  if (hard_pinned(kept)) hard_pinned_bytes_ -= value.bytes;
  soft_pins_.erase({kept.pinned_until_ms, hash});
  expiries_.erase({kept.expires_at_ms, hash});
}

bool NodeValues::is_over(const Value& value) const {
  const std::int64_t end = value.retention.expires_at_ms;
  return end != 0 && clock_.unix_ms() >= end;
}

Task<bool> NodeValues::free_memory() {
  bool freed = false;
  const auto free_remains = [&] {
    for (const auto& [hash, remains] : remains_) {
      freed |= erase_from_memory(hash, remains.chunk_count);
    }
  };
  free_remains();
  if (!freed && drop_idle_upload()) free_remains();
  if (freed) co_return true;
  co_return co_await release_soft_pin();
}

// The one that ends first.
Task<bool> NodeValues::release_soft_pin() {
  if (soft_pins_.empty()) co_return false;
  const ValueHash hash = soft_pins_.begin()->second;
  soft_pins_.erase(soft_pins_.begin());
  const auto value = values_.find(hash);
  ICE_CHECK(value != values_.end());
  value->second.retention.pinned_until_ms = 0;
  const Retention retention = value->second.retention;
  const std::int64_t count = value_chunk_count(value->second.bytes);
  // Where one of them is not, or the disk cannot keep up, its pin ends in time.
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    const ObjectKey key = value_chunk_key(hash, count, chunk);
    (void)co_await memory_.retain(key, retention);
    if (disk_ != nullptr) (void)co_await disk_->retain(key, retention);
  }
  co_return true;
}

// Of a client that has gone.
bool NodeValues::drop_idle_upload() {
  const Clock::TimePoint now = clock_.now();
  for (const auto& [hash, upload] : uploads_) {
    if (now - upload.used < options_.upload_idle) continue;
    drop_upload(ValueHash(hash));
    return true;
  }
  return false;
}

std::vector<const Counter*> NodeValues::counters() const {
  return {&puts,    &put_bytes,  &already_there,  &hits,           &hit_bytes,
          &misses,  &disk_reads, &copied_to_disk, &copies_refused, &copies_late,
          &evicted, &expired,    &damaged};
}

void NodeValues::add_stats(NodeStats& stats) const {
  for (const Counter* counter : counters()) {
    stats.counters.push_back({.name = counter->name(), .value = counter->value()});
  }
  for (const auto& [name, space] : spaces_) {
    if (space->flush_number == 0 && space->value_count == 0) continue;  // all gone
    stats.namespaces.push_back({.name_space = name,
                                .flush_number = space->flush_number,
                                .value_count = space->value_count,
                                .value_bytes = space->value_bytes});
  }
}

}  // namespace icefield
