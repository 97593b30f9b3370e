// The reading side of NodeValues: gets, finds and lists.
#include <algorithm>

#include "cache_node/node_values.h"
#include "cache_node/read_through.h"

namespace icefield {
namespace {

constexpr std::int64_t kMaxReadBytes = 64 << 20;  // one reply

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

void ValueReads::append(ValueReads&& more) {
  append_all(statuses, more.statuses);
  append_all(value_bytes, more.value_bytes);
  append_all(versions, more.versions);
  append_all(checksums, more.checksums);
  append_all(piece_checks, more.piece_checks);
  append_all(payload, more.payload);
  append_all(leases, more.leases);
  payload_bytes += more.payload_bytes;
}

Task<NodeValues::Value*> NodeValues::live(const Namespace& space, std::string_view key,
                                          const ValueHash& hash) {
  auto found = values_.find(hash);
  if (found == values_.end()) co_return miss(space, key);
  if (found->second.name == nullptr) {
    ICE_CO_TRY(co_await load_name(hash));
    found = values_.find(hash);
    if (found == values_.end()) co_return miss(space, key);
  }
  if (!is_over(found->second)) co_return &found->second;
  drop(found, MissReason::kExpired);
  ICE_CO_TRY(co_await remove_doomed());
  co_return miss(space, key);
}

bool NodeValues::in_memory(const ValueHash& hash) const {
  const auto found = values_.find(hash);
  if (found == values_.end()) return true;  // nothing to read
  const std::int64_t count = value_chunk_count(found->second.bytes);
  for (std::int64_t chunk = 0; chunk < count; ++chunk) {
    if (!memory_.find(value_chunk_key(hash, count, chunk)).has_value()) return false;
  }
  return true;
}

// Values in memory are read one after the other; as soon as one is on disk only, all are read side
// by side and put into order at the end.
Task<ValueHead> NodeValues::get(const GetValues& request, ValueReads& reads) {
  ValueHead head;
  const Namespace* const space = co_await enter(request.scope, head);
  if (space == nullptr) co_return head;
  if (!copies_.has_value()) copies_.emplace(co_await asio::this_coro::executor);
  std::vector<Wanted> wanted;
  wanted.reserve(request.values.size());
  bool cold = false;
  for (const GetValue& item : request.values) {
    wanted.push_back({.item = item,
                      .hash = value_hash(space->name, head.flush_number, item.key),
                      .scrub = request.scrub});
    cold |= disk_ != nullptr && !in_memory(wanted.back().hash);
  }
  if (!cold) {
    for (const Wanted& one : wanted) co_await read_one(*space, one, reads);
  } else {
    std::vector<ValueReads> each(wanted.size());
    TaskScope scope(co_await asio::this_coro::executor);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      scope.spawn(read_one(*space, wanted[i], each[i]));
    }
    co_await scope.join();
    for (ValueReads& one : each) reads.append(std::move(one));
  }
  ICE_CO_TRY(co_await remove_doomed());
  co_return head;
}

asio::awaitable<void> NodeValues::read_one(const Namespace& space, const Wanted& wanted,
                                           ValueReads& reads) {
  Status status = co_await read_value(space, wanted, reads);
  if (!status.ok()) {
    if (status.code() == Code::kNotFound) misses.add();
    reads.value_bytes.push_back(0);
    reads.versions.push_back(0);
  }
  reads.statuses.push_back(std::move(status));
}

Task<> NodeValues::read_value(const Namespace& space, const Wanted& wanted, ValueReads& reads) {
  ICE_CO_TRY(const Value* const value, co_await live(space, wanted.item.key, wanted.hash));
  const std::int64_t bytes = value->bytes;
  const std::uint64_t version = value->version;
  const auto [key, offset, room] = wanted.item;
  const std::int64_t end = std::min(bytes, offset + room);
  if (offset % kValuePieceBytes != 0 || (offset >= bytes && offset > 0)) {
    co_return Status(
        Code::kInvalidArgument,
        "offset " + std::to_string(offset) + " in a value of " + std::to_string(bytes) + " bytes");
  }
  if (end < bytes && end % kValuePieceBytes != 0) {
    co_return Status(Code::kInvalidArgument, "value of " + std::to_string(bytes) +
                                                 " bytes, room for " + std::to_string(room));
  }
  if (reads.payload_bytes + end - offset > kMaxReadBytes) {
    co_return Status(Code::kResourceExhausted, "the reply is full, ask for it again");
  }
  const Status read = co_await read_chunks(wanted, bytes, end, version, reads);
  const auto found = values_.find(wanted.hash);
  if (!read.ok()) {
    const bool lost = read.code() == Code::kDataLoss;
    if (!lost && read.code() != Code::kNotFound) co_return read;
    if (found != values_.end()) {
      drop(found, lost ? MissReason::kIntegrity : MissReason::kEvicted);
    }
    co_return miss(space, wanted.item.key);
  }
  reads.value_bytes.push_back(bytes);
  reads.versions.push_back(version);
  hits.add();
  hit_bytes.add(end - offset);
  if (found != values_.end()) note_use(wanted.hash, found->second);
  co_return Status();
}

Task<> NodeValues::read_chunks(const Wanted& wanted, std::int64_t value_bytes, std::int64_t end,
                               std::uint64_t version, ValueReads& reads) {
  const std::int64_t offset = wanted.item.offset;
  const std::int64_t count = value_chunk_count(value_bytes);
  const std::int64_t first = offset / kValueChunkBytes;
  const std::int64_t stop = std::max(first + 1, ceil_div(end, kValueChunkBytes));
  const Verify verify = wanted.scrub ? Verify::kByTier : Verify::kByCaller;
  std::vector<ObjectBytes> chunks;  // all or nothing
  chunks.reserve(static_cast<std::size_t>(stop - first));
  for (std::int64_t chunk = first; chunk < stop; ++chunk) {
    const ObjectKey key = value_chunk_key(wanted.hash, count, chunk);
    ICE_CO_TRY(ObjectBytes bytes, co_await read_through(memory_, disk_, key, verify, disk_reads));
    chunks.push_back(std::move(bytes));
  }
  for (std::int64_t chunk = first; chunk < stop; ++chunk) {
    const ObjectKey key = value_chunk_key(wanted.hash, count, chunk);
    ObjectBytes& bytes = chunks[static_cast<std::size_t>(chunk - first)];
    const ChunkRange range = chunk_range(value_bytes, chunk, offset, end);
    const auto info = count == 1 ? std::nullopt : find_chunk(key);
    reads.checksums.push_back(info.has_value() ? info->checksum : version);
    if (!range.whole()) value_piece_checks(key, bytes.pieces(), reads.piece_checks);
    append_range(bytes.pieces(), range, reads);
    reads.leases.push_back(bytes.owner());
  }
  co_return Status();
}

std::optional<ObjectInfo> NodeValues::find_chunk(const ObjectKey& key) const {
  std::optional<ObjectInfo> info = memory_.find(key);
  if (!info.has_value() && disk_ != nullptr) info = disk_->find(key);
  return info;
}

Task<FoundValues> NodeValues::find(ValueScope scope, std::span<const std::string_view> keys) {
  FoundValues reply;
  const Namespace* const space = co_await enter(scope, reply.head);
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
  const Namespace* const space = co_await enter(scope, reply.head);
  if (space == nullptr) co_return reply;
  ICE_CO_TRY(co_await load_names());
  for (const auto& [hash, value] : values_) {
    if (value.name == nullptr || value.name->space != space) continue;
    if (is_over(value)) continue;
    const std::string_view key = value.name->key;
    if (key.starts_with(prefix) && key > after) {
      reply.values.push_back({.key = std::string(key), .bytes = value.bytes});
    }
  }
  const auto count = std::min(reply.values.size(), static_cast<std::size_t>(limit));
  std::ranges::partial_sort(reply.values, reply.values.begin() + static_cast<std::ptrdiff_t>(count),
                            {}, &ListedValue::key);
  reply.more = reply.values.size() > count;
  reply.values.resize(count);
  co_return reply;
}

}  // namespace icefield
