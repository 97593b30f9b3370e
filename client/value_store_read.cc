// The reading half of ValueStore.
#include <algorithm>
#include <cstring>

#include "cache_node/chunk_sums.h"
#include "client/value_check.h"
#include "client/value_store.h"
#include "common/task_scope.h"

namespace icefield {
namespace {

// Between client and node a read may fail in many ways; to the caller it is a miss, unless the
// caller itself gave up.
Status as_read_failure(const Status& status) {
  switch (status.code()) {
    case Code::kUnavailable:
    case Code::kInternal: return Status::miss(MissReason::kNodeDown, status.message());
    case Code::kDataLoss: return Status::miss(MissReason::kIntegrity, status.message());
    case Code::kAborted: return Status::miss(MissReason::kFlushed, status.message());
    default: return status;
  }
}

Status too_small(std::int64_t bytes, std::int64_t room) {
  return Status(Code::kInvalidArgument,
                "value of " + std::to_string(bytes) + " bytes, target of " + std::to_string(room));
}

// Which pieces of a value a valid item needs.
struct Run {
  std::int64_t offset = 0;
  std::int64_t room = 0;
};
Run run_of(const ValueToGet& item) {
  if (!item.range_begin.has_value()) return {.offset = 0, .room = item.room};
  const std::int64_t offset = *item.range_begin / kValuePieceBytes * kValuePieceBytes;
  return {.offset = offset,
          .room = round_up(*item.range_begin + item.room, kValuePieceBytes) - offset};
}

Status validate(const ValueToGet& item) {
  ICE_TRY(validate_value_key(item.key));
  if (item.room < 0) return Status(Code::kInvalidArgument, "target of negative size");
  if (!item.range_begin.has_value()) return Status();
  if (item.room > kMaxValueBytes) {
    return Status(Code::kInvalidArgument, "range of " + std::to_string(item.room) + " bytes");
  }
  const std::int64_t begin = *item.range_begin;
  if (begin >= 0 && begin <= kMaxValueBytes) return Status();
  return Status(Code::kInvalidArgument, "range that begins at " + std::to_string(begin));
}

// The bytes that the item wants of the run that came.
Result<ConstByteSpan> cut(const ValueToGet& item, const CheckedValue& value) {
  if (!value.status.ok()) return value.status;
  if (!item.range_begin.has_value()) {
    if (value.value_bytes > item.room) return too_small(value.value_bytes, item.room);
    return value.bytes;
  }
  if (*item.range_begin >= value.value_bytes && *item.range_begin > 0) {
    return Status(Code::kInvalidArgument, "range from " + std::to_string(*item.range_begin) +
                                              " on of a value of " +
                                              std::to_string(value.value_bytes) + " bytes");
  }
  const auto skip = static_cast<std::size_t>(*item.range_begin - run_of(item).offset);
  const ConstByteSpan rest = value.bytes.subspan(std::min(skip, value.bytes.size()));
  return rest.first(std::min(rest.size(), static_cast<std::size_t>(item.room)));
}

// The checksums of a value's chunks, as one request after the other brings them.
class ChunkRow {
 public:
  explicit ChunkRow(std::int64_t first) : first_(first) {}

  // Chunks from `chunk` on; that may be the last one of before, again.
  void append(std::int64_t chunk, std::span<const std::uint64_t> checksums) {
    const bool again = chunk < first_ + std::ssize(checksums_) && !checksums.empty();
    mixed_ |= again && checksums.front() != checksums_.back();
    const auto added = checksums.subspan(again ? 1 : 0);
    checksums_.insert(checksums_.end(), added.begin(), added.end());
  }
  bool mixed(const CheckedValue& value) const {
    const bool all = std::ssize(checksums_) == value_chunk_count(value.value_bytes);
    return mixed_ || (all && value_version(checksums_) != value.version);
  }

 private:
  const std::int64_t first_;
  std::vector<std::uint64_t> checksums_;
  bool mixed_ = false;
};

// A call that its caller may walk away from: then it ends by its deadline, holding its memory.
struct Abandonable {
  explicit Abandonable(const asio::any_io_executor& executor)
      : wake(executor, asio::steady_timer::time_point::max()) {}
  std::optional<Result<GetValuesReply>> result;
  asio::steady_timer wake;
};

}  // namespace

struct ValueStore::Fetch {
  struct Item {
    ValueToGet wanted;
    AskedValue asked;
    CheckedValue value;
  };
  ValueCall call;
  std::shared_ptr<const NodesView> nodes;
  std::vector<Item> items;
  std::vector<std::vector<std::size_t>> by_node;
  std::uint64_t flush_number = 0;
  std::optional<Buffer> into;  // for a single item; else every request makes its own
  std::int64_t into_capacity = 0;
  std::vector<Buffer> memory;
  bool stale = false;

  void add(const ValueToGet& item) {
    Item& added = items.emplace_back();
    added.wanted = item;
    added.value.status = validate(item);
    if (!added.value.status.ok()) return;
    added.asked.offset = run_of(item).offset;
    added.asked.room = run_of(item).room;
  }
  void fail(std::span<const std::size_t> which, const Status& status) {
    for (const std::size_t item : which) items[item].value.status = status;
  }
};

asio::awaitable<void> ValueStore::fetch(Fetch& fetch) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    fetch.stale = false;
    fetch.flush_number = flush_numbers_.of(fetch.call.name_space);
    fetch.by_node.assign(fetch.nodes->size(), {});
    std::size_t busy = 0;
    for (std::size_t i = 0; i < fetch.items.size(); ++i) {
      Fetch::Item& item = fetch.items[i];
      if (item.value.status.code() == Code::kInvalidArgument) continue;
      item.asked.hash = value_hash(fetch.call.name_space, fetch.flush_number, item.wanted.key);
      const std::size_t node = fetch.nodes->owner_index(item.asked.hash);
      if (fetch.by_node[node].empty()) ++busy;
      fetch.by_node[node].push_back(i);
    }
    if (busy == 1) {
      const auto only =
          std::ranges::find_if(fetch.by_node, [](const auto& n) { return !n.empty(); });
      co_await fetch_from(fetch, static_cast<std::size_t>(only - fetch.by_node.begin()));
    } else {
      TaskScope scope(co_await asio::this_coro::executor);
      for (std::size_t node = 0; node < fetch.by_node.size(); ++node) {
        if (!fetch.by_node[node].empty()) scope.spawn(fetch_from(fetch, node));
      }
      co_await scope.join();
    }
    if (!fetch.stale) break;
  }
}

// Cuts what one node has into requests.
asio::awaitable<void> ValueStore::fetch_from(Fetch& fetch, std::size_t node) {
  std::vector<std::size_t> part;
  std::int64_t bytes = 0;
  RequestKeys keys;
  for (const std::size_t index : fetch.by_node[node]) {
    Fetch::Item& item = fetch.items[index];
    const auto patience = fetch.call.recompute_estimate;
    if (patience.count() > 0 && !fetch.nodes->node(node).worth_it(item.asked.room, patience)) {
      item.value.status = Status::miss(MissReason::kNotWorthIt,
                                       "reading it is likely to take longer than recomputing it");
      continue;
    }
    const bool fits = bytes + item.asked.room <= options_.request_bytes;
    if (!part.empty() && !(fits && keys.take(item.wanted.key))) {
      co_await fetch_part(fetch, node, std::move(part), false);
      part.clear();
      bytes = 0;
      keys = RequestKeys();
    }
    if (part.empty()) (void)keys.take(item.wanted.key);
    part.push_back(index);
    bytes += item.asked.room;
  }
  if (!part.empty()) co_await fetch_part(fetch, node, std::move(part), false);
}

asio::awaitable<void> ValueStore::fetch_part(Fetch& fetch, std::size_t node,
                                             std::vector<std::size_t> items, bool scrub) {
  ClusterNode& from = fetch.nodes->node(node);
  const Status admitted = from.admit();
  if (!admitted.ok()) {
    fetch.fail(items, as_read_failure(admitted));
    co_return;
  }
  GetValues request;
  request.scope = {.name_space = fetch.call.name_space, .flush_number = fetch.flush_number};
  request.scrub = scrub;
  std::vector<AskedValue> asked;
  std::int64_t capacity = 0;
  for (const std::size_t index : items) {
    const Fetch::Item& item = fetch.items[index];
    asked.push_back(item.asked);
    request.values.push_back(
        {.key = item.wanted.key, .offset = item.asked.offset, .room = item.asked.room});
    capacity += item.asked.room;
  }
  Buffer into;
  if (fetch.into.has_value()) std::swap(into, *fetch.into);
  // A read that failed has kept it.
  if (into.capacity() < capacity) into = Buffer(std::max(capacity, fetch.into_capacity));
  const Clock::TimePoint start = clock_.now();
  const auto checker = std::make_shared<ValueChecker>(std::move(asked));
  std::shared_ptr<ValueArrival> arrival = checker;  // named: GCC 12 frees such temporaries twice
  Result<GetValuesReply> reply =
      co_await ask(from, std::move(request), std::move(into), std::move(arrival), fetch.call);
  const auto took = clock_.now() - start;
  from.report(reply.status());
  if (!reply.has_value()) {
    fetch.fail(items, as_read_failure(reply.error()));
    co_return;
  }
  if (was_stale(reply->head, fetch.call)) fetch.stale = true;
  Status status = reply->head.status;
  std::vector<CheckedValue> values;
  if (status.ok() && !reply->unread.ok()) {  // nobody has seen the bytes: all by message
    if (!scrub) co_return co_await fetch_part(fetch, node, std::move(items), true);
    status = reply->unread;
  }
  if (status.ok()) {
    Result<std::vector<CheckedValue>> checked = checker->finish(*reply);
    status = checked.status();
    if (checked.has_value()) values = std::move(*checked);
  }
  std::vector<std::size_t> damaged;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i].status.code() == Code::kDataLoss) damaged.push_back(items[i]);
    fetch.items[items[i]].value = values[i];
    fetch.items[items[i]].value.status = as_read_failure(values[i].status);
  }
  if (!status.ok()) fetch.fail(items, as_read_failure(status));
  if (status.ok()) from.note_read(reply->payload.size(), took);
  if (fetch.into.has_value()) {
    *fetch.into = std::move(reply->payload);
  } else {
    fetch.memory.push_back(std::move(reply->payload));
  }
  // Once more, from bytes that the node has verified itself.
  if (!damaged.empty() && !scrub) co_await fetch_part(fetch, node, std::move(damaged), true);
}

Task<GetValuesReply> ValueStore::ask(ClusterNode& node, GetValues request, Buffer into,
                                     std::shared_ptr<ValueArrival> arrival, ValueCall call) {
  auto running = node.values().get(std::move(request), std::move(into), call.deadline, arrival);
  if (call.cancel == nullptr) co_return co_await std::move(running);
  if (call.cancel->cancelled()) co_return Status(Code::kCancelled, "read cancelled");
  const auto executor = co_await asio::this_coro::executor;
  const auto state = std::make_shared<Abandonable>(executor);
  auto done = [state](const std::exception_ptr& error, Result<GetValuesReply> reply) {
    ICE_CHECK(error == nullptr);
    state->result = std::move(reply);
    state->wake.cancel();
  };
  asio::co_spawn(executor, std::move(running), std::move(done));
  auto notify = [state, executor] { asio::post(executor, [state] { state->wake.cancel(); }); };
  const std::uint64_t number = call.cancel->on_cancel(std::move(notify));
  while (!state->result.has_value() && !call.cancel->cancelled()) {
    boost::system::error_code ignored;
    co_await state->wake.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  call.cancel->forget(number);
  if (!state->result.has_value()) {
    arrival->abandon();
    co_return Status(Code::kCancelled, "read cancelled");
  }
  co_return std::move(*state->result);
}

Task<Buffer> ValueStore::get(std::string_view key, Buffer into, ValueCall call) {
  const ValueToGet item{.key = key, .room = into.capacity()};
  co_return co_await read_run(nodes_.view(), item, std::move(into), call);
}

Task<Buffer> ValueStore::get_range(std::string_view key, std::int64_t begin, std::int64_t length,
                                   ValueCall call) {
  const ValueToGet item{.key = key, .room = length, .range_begin = begin};
  ICE_CO_TRY(validate(item));
  Buffer into(run_of(item).room);
  co_return co_await read_run(nodes_.view(), item, std::move(into), call);
}

// One value or range that begins at the start of `into`, whose capacity holds the whole run. The
// first request goes straight there; further ones, of large values, side by side into memory of
// their own.
Task<Buffer> ValueStore::read_run(std::shared_ptr<const NodesView> nodes, ValueToGet item,
                                  Buffer into, ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  const bool split = run_of(item).room > options_.request_bytes;
  ValueToGet first = item;
  if (split) {
    const std::int64_t begin = item.range_begin.value_or(0);
    first.range_begin = begin;
    first.room =
        options_.request_bytes / kValuePieceBytes * kValuePieceBytes - begin % kValuePieceBytes;
  }
  Fetch fetch;
  fetch.call = call;
  fetch.nodes = nodes;
  fetch.into_capacity = into.capacity();
  fetch.into = std::move(into);
  fetch.add(first);
  co_await this->fetch(fetch);
  const CheckedValue& value = fetch.items[0].value;
  ICE_CO_TRY(const ConstByteSpan bytes, cut(first, value));
  if (!item.range_begin.has_value() && value.value_bytes > item.room) {
    co_return too_small(value.value_bytes, item.room);
  }
  Buffer result = std::move(*fetch.into);
  if (bytes.data() != result.bytes().data() && !bytes.empty()) {
    std::memmove(result.bytes().data(), bytes.data(), bytes.size());
  }
  const auto have = static_cast<std::int64_t>(bytes.size());
  const std::int64_t end = std::min(value.value_bytes, item.range_begin.value_or(0) + item.room);
  const std::int64_t wanted = end - item.range_begin.value_or(0);
  result.resize(split ? wanted : have);
  if (have < wanted) ICE_CO_TRY(co_await read_rest(nodes, item, have, value, result, call));
  co_return result;
}

Task<> ValueStore::read_rest(std::shared_ptr<const NodesView> nodes, ValueToGet item,
                             std::int64_t have, CheckedValue first, Buffer& into, ValueCall call) {
  const std::int64_t begin = item.range_begin.value_or(0);
  Fetch fetch;
  fetch.call = call;
  fetch.nodes = nodes;
  for (std::int64_t at = have; at < into.size();) {
    // Each ends at the end of a piece, so the next begins with one.
    const std::int64_t room = std::min(into.size() - at, options_.request_bytes);
    ValueToGet part = item;
    part.range_begin = begin + at;
    part.room = room;
    fetch.add(part);
    at += room;
  }
  co_await this->fetch(fetch);
  std::byte* to = into.bytes().data() + have;
  ChunkRow chunks(begin / kValueChunkBytes);
  chunks.append(begin / kValueChunkBytes, first.checksums);
  for (const Fetch::Item& part : fetch.items) {
    ICE_CO_TRY(const ConstByteSpan bytes, cut(part.wanted, part.value));
    chunks.append(part.asked.offset / kValueChunkBytes, part.value.checksums);
    const bool same = part.value.version == first.version &&
                      static_cast<std::int64_t>(bytes.size()) == part.wanted.room;
    if (!same) {
      co_return Status::miss(MissReason::kEvicted, "the value was replaced while it was read");
    }
    std::memcpy(to, bytes.data(), bytes.size());
    to += bytes.size();
  }
  if (chunks.mixed(first)) co_return Status::miss(MissReason::kIntegrity, "chunks of two values");
  co_return Status();
}

Task<ValueBatch> ValueStore::get_batch(std::vector<ValueToGet> items, ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  Fetch fetch;
  fetch.call = call;
  fetch.nodes = nodes_.view();
  fetch.items.reserve(items.size());
  std::vector<std::size_t> large;  // more than one request each
  for (std::size_t i = 0; i < items.size(); ++i) {
    fetch.add(items[i]);
    if (fetch.items[i].asked.room <= options_.request_bytes) continue;
    large.push_back(i);
    fetch.items[i].value.status = Status(Code::kInvalidArgument, "read by itself");
  }
  co_await this->fetch(fetch);
  ValueBatch batch;
  batch.values.reserve(items.size());
  for (const Fetch::Item& item : fetch.items) batch.values.push_back(cut(item.wanted, item.value));
  batch.memory = std::move(fetch.memory);
  for (const std::size_t i : large) {
    Buffer into(std::min(run_of(items[i]).room, kMaxValueBytes));
    Result<Buffer> whole = co_await read_run(fetch.nodes, items[i], std::move(into), call);
    if (whole.has_value()) {
      batch.memory.push_back(std::move(*whole));
      batch.values[i] = std::as_const(batch.memory.back()).bytes();
    } else {
      batch.values[i] = whole.error();
    }
  }
  co_return batch;
}

Task<std::vector<Result<std::int64_t>>> ValueStore::get_into(std::vector<ValueInto> items,
                                                             ValueCall call) {
  std::vector<ValueToGet> wanted;
  for (const ValueInto& item : items) {
    wanted.push_back({.key = item.key,
                      .room = static_cast<std::int64_t>(item.into.size()),
                      .range_begin = item.range_begin});
  }
  ICE_CO_TRY(const ValueBatch batch, co_await get_batch(std::move(wanted), call));
  std::vector<Result<std::int64_t>> sizes;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Result<ConstByteSpan>& value = batch.values[i];
    if (!value.has_value()) {
      sizes.emplace_back(value.error());
      continue;
    }
    if (!value->empty()) std::memcpy(items[i].into.data(), value->data(), value->size());
    sizes.emplace_back(static_cast<std::int64_t>(value->size()));
  }
  co_return sizes;
}

}  // namespace icefield
