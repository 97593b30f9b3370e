// The reading side of NodeValues: gets, finds and lists.
#include <algorithm>

#include "cache_node/chunk_sums.h"
#include "cache_node/node_values.h"
#include "cache_node/read_through.h"

namespace icefield {
namespace {

constexpr std::int64_t kMaxReadBytes = 64 << 20;  // one reply
constexpr std::size_t kMaxSideBySide = 256;       // values, from disk
constexpr std::int64_t kTurnBytes = 4 << 20;      // of work, then others have a turn
constexpr std::size_t kTurnValues = 4096;         // looked at, as well

template <class T>
void append_all(std::vector<T>& to, std::vector<T>& from) {
  std::ranges::move(from, std::back_inserter(to));
}

void append_range(std::span<const ConstByteSpan> pieces, const ChunkRange& range,
                  ValueReads& reads) {
  std::int64_t at = 0;
  for (const ConstByteSpan piece : pieces) {
    const auto size = static_cast<std::int64_t>(piece.size());
    const std::int64_t begin = std::clamp<std::int64_t>(range.begin - at, 0, size);
    const std::int64_t end = std::clamp<std::int64_t>(range.end - at, 0, size);
    at += size;
    if (begin >= end) continue;
    reads.payload.push_back(
        piece.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    reads.payload_bytes += end - begin;
  }
}

}  // namespace

void ValueReads::reserve(std::size_t values) {
  statuses.reserve(values);
  value_bytes.reserve(values);
  versions.reserve(values);
  checksums.reserve(values);
  payload.reserve(values);
  leases.reserve(values);
}

void ValueReads::append(ValueReads&& more) {
  append_all(statuses, more.statuses);
  append_all(value_bytes, more.value_bytes);
  append_all(versions, more.versions);
  append_all(checksums, more.checksums);
  append_all(piece_checks, more.piece_checks);
  append_all(payload, more.payload);
  append_all(leases, more.leases);
  payload_bytes += more.payload_bytes;
  leased_bytes += more.leased_bytes;
}

bool NodeValues::nameless(const ValueHash& hash) const {
  const auto found = values_.find(hash);
  return found != values_.end() && found->second.name == nullptr;
}

Task<NodeValues::Value*> NodeValues::live(const Namespace& space, std::string_view key,
                                          const ValueHash& hash) {
  if (nameless(hash)) ICE_CO_TRY(co_await load_name(hash));
  Result<Value*> value = live_now(space, key, hash);
  if (!value.has_value()) start_removing();
  co_return value;
}

Result<NodeValues::Value*> NodeValues::live_now(const Namespace& space, std::string_view key,
                                                const ValueHash& hash) {
  const auto found = values_.find(hash);
  if (found == values_.end()) return miss(space, key);
  if (!is_over(found->second)) return &found->second;
  drop(found, MissReason::kExpired);
  return miss(space, key);
}

// Whether nothing of a read has to be waited for.
bool NodeValues::in_memory(const Wanted& wanted) const {
  if (disk_ == nullptr) return true;
  const auto found = values_.find(wanted.hash);
  if (found == values_.end()) return true;  // nothing to read
  if (found->second.name == nullptr || wanted.scrub) return false;
  const Result<Run> run = run_of(found->second, wanted, 0);
  if (!run.has_value()) return true;  // and never will be
  const std::int64_t count = value_chunk_count(found->second.bytes);
  for (std::int64_t chunk = run->first; chunk < run->stop; ++chunk) {
    if (!memory_.find(value_chunk_key(wanted.hash, count, chunk)).has_value()) return false;
  }
  return true;
}

// Values in memory are read one after the other; from the first one on that is on disk only, they
// are read side by side and put into order at the end.
Task<ValueHead> NodeValues::get(const GetValues& request, ValueReads& reads) {
  ValueHead head;
  Namespace nobody(request.scope.name_space);
  const Namespace* const space = co_await enter_to_read(request.scope, head, nobody);
  if (space == nullptr) co_return head;
  std::vector<Wanted> wanted;
  wanted.reserve(request.values.size());
  for (const GetValue& item : request.values) {
    wanted.push_back({.item = item,
                      .hash = value_hash(space->name, head.flush_number, item.key),
                      .scrub = request.scrub});
  }
  reads.reserve(wanted.size());
  std::size_t done = 0;
  for (std::int64_t work = 0; done < wanted.size() && in_memory(wanted[done]); ++done) {
    if (work >= kTurnBytes) {  // others have a turn, and what is in memory may leave it
      work = 0;
      co_await asio::post(asio::use_awaitable);
      if (!in_memory(wanted[done])) break;
    }
    work += read_now(*space, wanted[done], reads);
  }
  std::int64_t reply_bytes = reads.payload_bytes;
  while (done < wanted.size()) {
    std::vector<ValueReads> each(std::min(wanted.size() - done, kMaxSideBySide));
    TaskScope scope(co_await asio::this_coro::executor);
    for (ValueReads& one : each) {
      scope.spawn(read_later(*space, wanted[done++], reply_bytes, one));
    }
    co_await scope.join();
    for (ValueReads& one : each) reads.append(std::move(one));
  }
  start_copies();  // what came from disk may have filled memory
  start_removing();
  co_return head;
}

std::int64_t NodeValues::read_now(const Namespace& space, const Wanted& wanted, ValueReads& reads) {
  constexpr std::int64_t kLeast = 512;  // of any read
  const Result<Value*> value = live_now(space, wanted.item.key, wanted.hash);
  const Result<Run> run =
      value.has_value() ? run_of(**value, wanted, reads.payload_bytes) : Result<Run>(value.error());
  if (!run.has_value()) {
    fail_read(run.error(), reads);
    return kLeast;
  }
  std::vector<ObjectBytes> chunks;
  Status read = read_from_memory(wanted, *run, chunks);
  finish_read(space, wanted, *run, std::move(read), chunks, reads);
  // A chunk that is read in part is hashed.
  const bool whole = wanted.item.offset == run->first * kValueChunkBytes &&
                     run->end == std::min(run->value_bytes, run->stop * kValueChunkBytes);
  return kLeast + (whole ? 0 : (run->stop - run->first) * kValueChunkBytes);
}

asio::awaitable<void> NodeValues::read_later(const Namespace& space, const Wanted& wanted,
                                             std::int64_t& reply_bytes, ValueReads& reads) {
  const Result<Value*> value = co_await live(space, wanted.item.key, wanted.hash);
  const Result<Run> run =
      value.has_value() ? run_of(**value, wanted, reply_bytes) : Result<Run>(value.error());
  if (!run.has_value()) {
    fail_read(run.error(), reads);
    co_return;
  }
  const std::int64_t bytes = run->end - wanted.item.offset;
  reply_bytes += bytes;
  std::vector<ObjectBytes> chunks;
  Status read = co_await read_from_tiers(wanted, *run, chunks);
  if (!read.ok()) reply_bytes -= bytes;
  finish_read(space, wanted, *run, std::move(read), chunks, reads);
}

Result<NodeValues::Run> NodeValues::run_of(const Value& value, const Wanted& wanted,
                                           std::int64_t reply_bytes) {
  const auto [key, offset, room] = wanted.item;
  const std::int64_t bytes = value.bytes;
  const std::int64_t end = std::min(bytes, offset + room);
  if (offset % kValuePieceBytes != 0 || (offset >= bytes && offset > 0)) {
    return Status(Code::kInvalidArgument, "offset " + std::to_string(offset) + " in a value of " +
                                              std::to_string(bytes) + " bytes");
  }
  if (end < bytes && end % kValuePieceBytes != 0) {
    return Status(Code::kInvalidArgument,
                  "value of " + std::to_string(bytes) + " bytes, room for " + std::to_string(room));
  }
  if (reply_bytes + end - offset > kMaxReadBytes) {
    return Status(Code::kResourceExhausted, "the reply is full, ask for it again");
  }
  const std::int64_t first = offset / kValueChunkBytes;
  return Run{.value_bytes = bytes,
             .version = value.version,
             .end = end,
             .first = first,
             .stop = std::max(first + 1, ceil_div(end, kValueChunkBytes))};
}

Status NodeValues::read_from_memory(const Wanted& wanted, const Run& run,
                                    std::vector<ObjectBytes>& chunks) {
  const std::int64_t count = value_chunk_count(run.value_bytes);
  const Verify verify = wanted.scrub ? Verify::kByTier : Verify::kByCaller;
  for (std::int64_t chunk = run.first; chunk < run.stop; ++chunk) {
    ICE_TRY(ObjectBytes bytes, memory_.read(value_chunk_key(wanted.hash, count, chunk), verify));
    chunks.push_back(std::move(bytes));
  }
  return Status();
}

Task<> NodeValues::read_from_tiers(Wanted wanted, Run run, std::vector<ObjectBytes>& chunks) {
  const std::int64_t count = value_chunk_count(run.value_bytes);
  const Verify verify = wanted.scrub ? Verify::kByTier : Verify::kByCaller;
  for (std::int64_t chunk = run.first; chunk < run.stop; ++chunk) {
    const ObjectKey key = value_chunk_key(wanted.hash, count, chunk);
    ICE_CO_TRY(ObjectBytes bytes, co_await read_through(memory_, disk_, key, verify, disk_reads));
    chunks.push_back(std::move(bytes));
  }
  co_return Status();
}

// All of a run or nothing.
void NodeValues::finish_read(const Namespace& space, const Wanted& wanted, const Run& run,
                             Status read, std::span<const ObjectBytes> chunks, ValueReads& reads) {
  const auto found = values_.find(wanted.hash);
  if (read.ok() && wanted.scrub && mixed(wanted.hash, run)) {
    read = Status(Code::kDataLoss, "chunks of several values under one key");
  }
  if (!read.ok()) {
    const bool lost = read.code() == Code::kDataLoss;
    if (!lost && read.code() != Code::kNotFound) return fail_read(std::move(read), reads);
    // Not what has taken the place of the one that was read.
    if (found != values_.end() && found->second.version == run.version) {
      drop(found, lost ? MissReason::kIntegrity : MissReason::kEvicted);
    }
    return fail_read(miss(space, wanted.item.key), reads);
  }
  append_chunks(wanted, run, chunks, reads);
  reads.statuses.emplace_back();
  reads.value_bytes.push_back(run.value_bytes);
  reads.versions.push_back(run.version);
  hits.add();
  hit_bytes.add(run.end - wanted.item.offset);
  if (found != values_.end()) note_use(wanted.hash, found->second);
}

void NodeValues::append_chunks(const Wanted& wanted, const Run& run,
                               std::span<const ObjectBytes> chunks, ValueReads& reads) const {
  const std::int64_t count = value_chunk_count(run.value_bytes);
  for (std::int64_t chunk = run.first; chunk < run.stop; ++chunk) {
    const ObjectKey key = value_chunk_key(wanted.hash, count, chunk);
    const ObjectBytes& bytes = chunks[static_cast<std::size_t>(chunk - run.first)];
    const ChunkRange range = chunk_range(run.value_bytes, chunk, wanted.item.offset, run.end);
    const auto info = count == 1 ? std::nullopt : find_chunk(key);
    reads.checksums.push_back(info.has_value() ? info->checksum : run.version);
    if (!range.whole()) value_piece_checks(key, bytes.pieces(), reads.piece_checks);
    append_range(bytes.pieces(), range, reads);
    if (range.begin == range.end) continue;
    reads.leases.push_back(bytes.owner());
    reads.leased_bytes += round_up(range.chunk_bytes, memory_.slot_bytes());
  }
}

// Whether the chunks that are stored are right, each by itself, and together not the value.
bool NodeValues::mixed(const ValueHash& hash, const Run& run) const {
  const std::int64_t count = value_chunk_count(run.value_bytes);
  std::vector<std::uint64_t> checksums;
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    const auto info = find_chunk(value_chunk_key(hash, count, chunk));
    if (!info.has_value()) return false;  // incomplete: its next whole read says so
    checksums.push_back(info->checksum);
  }
  return value_version(checksums) != run.version;
}

void NodeValues::fail_read(Status status, ValueReads& reads) {
  if (status.code() == Code::kNotFound) misses.add();
  reads.value_bytes.push_back(0);
  reads.versions.push_back(0);
  reads.statuses.push_back(std::move(status));
}

std::optional<ObjectInfo> NodeValues::find_chunk(const ObjectKey& key) const {
  std::optional<ObjectInfo> info = memory_.find(key);
  if (!info.has_value() && disk_ != nullptr) info = disk_->find(key);
  return info;
}

Task<FoundValues> NodeValues::find(ValueScope scope, std::span<const std::string_view> keys) {
  FoundValues reply;
  Namespace nobody(scope.name_space);
  const Namespace* const space = co_await enter_to_read(scope, reply.head, nobody);
  if (space == nullptr) co_return reply;
  for (const std::string_view key : keys) {
    const Result<Value*> value =
        co_await live(*space, key, value_hash(space->name, scope.flush_number, key));
    if (value.has_value()) {
      reply.sizes.emplace_back((*value)->bytes);
    } else {
      reply.sizes.emplace_back(value.error());
    }
  }
  co_return reply;
}

Task<ListedValues> NodeValues::list(ValueScope scope, std::string_view prefix,
                                    std::string_view after, std::int64_t limit) {
  ListedValues reply;
  ICE_CO_TRY(co_await load_names());  // they may tell of the namespace
  Namespace nobody(scope.name_space);
  const Namespace* const space = co_await enter_to_read(scope, reply.head, nobody);
  if (space == nullptr) co_return reply;
  // A heap of the first keys so far. Others have turns in between: what comes or goes meanwhile is
  // listed or not.
  std::vector<ListedValue>& heap = reply.values;
  const auto look_at = [&](const Value& value) {
    if (value.name == nullptr || value.name->space != space || is_over(value)) return;
    const std::string_view key = value.name->key;
    if (!key.starts_with(prefix) || key <= after) return;
    reply.more |= std::ssize(heap) == limit;
    if (std::ssize(heap) == limit) {
      if (limit == 0 || key > heap.front().key) return;
      std::ranges::pop_heap(heap, {}, &ListedValue::key);
      heap.pop_back();
    }
    heap.push_back({.key = std::string(key), .bytes = value.bytes});
    std::ranges::push_heap(heap, {}, &ListedValue::key);
  };
  std::size_t buckets = values_.bucket_count();
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    for (auto at = values_.begin(bucket); at != values_.end(bucket); ++at) look_at(at->second);
    if ((bucket + 1) % kTurnValues != 0) continue;
    co_await asio::post(asio::use_awaitable);
    if (values_.bucket_count() == buckets) continue;
    buckets = values_.bucket_count();  // all of them have moved
    heap.clear();
    reply.more = false;
    bucket = SIZE_MAX;
  }
  if (space->flush_number != reply.head.flush_number) {
    co_return ListedValues{.head = behind(scope.flush_number, *space)};
  }
  std::ranges::sort_heap(heap, {}, &ListedValue::key);
  co_return reply;
}

}  // namespace icefield
