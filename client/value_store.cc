#include "client/value_store.h"

#include <algorithm>

#include "cache_node/chunk_sums.h"
#include "cache_node/part_cursor.h"
#include "common/task_scope.h"

namespace icefield {
namespace {

constexpr std::int64_t kListPage = 10'000;
constexpr int kMaxFlushRounds = 64;  // each lost to somebody else's flush

std::int64_t bytes_of(std::span<const ConstByteSpan> parts) {
  std::size_t bytes = 0;
  for (const ConstByteSpan part : parts) bytes += part.size();
  return static_cast<std::int64_t>(bytes);
}

// Every request but a get's.
template <class T>
asio::awaitable<Result<T>> ask_unless_cancelled(ClusterNode& node, const ValueCall& call,
                                                asio::awaitable<Result<T>> request) {
  if (call.cancel != nullptr && call.cancel->cancelled()) {
    co_return Status(Code::kCancelled, "call cancelled");
  }
  co_return co_await node.ask(std::move(request));
}

Status validate(const ValueToPut& value) {
  ICE_TRY(validate_value_key(value.key));
  return validate_value_bytes(bytes_of(value.parts));
}

}  // namespace

ValueStore::ValueStore(const Clock& clock, Rng& rng, Nodes& nodes, Options options)
    : options_(options), clock_(clock), nodes_(nodes), next_upload_(rng.next()) {
  ICE_CHECK(options_.request_bytes % kValueChunkBytes == 0 && options_.request_bytes > 0 &&
            options_.request_bytes <= kMaxRequestBytes);
}

ValueScope ValueStore::scope_of(const ValueCall& call) const {
  return {.name_space = call.name_space, .flush_number = flush_numbers_.of(call.name_space)};
}

bool ValueStore::was_stale(const ValueHead& head, const ValueCall& call) {
  flush_numbers_.learn(call.name_space, head.flush_number);
  return head.status.code() == Code::kAborted;
}

// --------------------------------------------------------------------------------------- putting

struct ValueStore::Puts {
  ValueCall call;
  std::shared_ptr<const NodesView> nodes;
  PutOptions options;
  std::vector<ValueToPut> values;
  std::uint64_t flush_number = 0;
  std::uint64_t upload = 0;
  std::vector<ValueHash> hashes;
  std::vector<std::vector<std::size_t>> by_node;  // values
  std::vector<Result<PutOutcome>> outcomes;
  bool stale = false;
};

// How far the values of one node have come.
struct ValueStore::PutProgress {
  std::size_t next = 0;    // in by_node
  std::int64_t chunk = 0;  // of that value
  PartCursor parts{{}};    // the rest of it

  void skip() {
    ++next;
    chunk = 0;
  }
};

Task<PutOutcome> ValueStore::put(std::string_view key, ConstByteSpan value, PutOptions options,
                                 ValueCall call) {
  std::vector<ValueToPut> values = {{.key = key, .parts = std::span(&value, 1)}};
  ICE_CO_TRY(const auto outcomes, co_await put_batch(std::move(values), options, call));
  co_return outcomes.front();
}

Task<std::vector<Result<PutOutcome>>> ValueStore::put_batch(std::vector<ValueToPut> values,
                                                            PutOptions options, ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  ICE_CO_TRY(options.validate());
  Puts puts;
  puts.call = call;
  puts.nodes = nodes_.view();
  puts.options = options;
  puts.values = std::move(values);
  puts.outcomes.resize(puts.values.size());
  for (int attempt = 0; attempt < 2; ++attempt) {
    puts.stale = false;
    puts.flush_number = flush_numbers_.of(call.name_space);
    puts.upload = next_upload_.fetch_add(1, std::memory_order_relaxed);
    puts.hashes.clear();
    puts.by_node.assign(puts.nodes->size(), {});
    for (std::size_t i = 0; i < puts.values.size(); ++i) {
      const ValueToPut& value = puts.values[i];
      puts.hashes.push_back(value_hash(call.name_space, puts.flush_number, value.key));
      const Status valid = validate(value);
      if (valid.ok()) {
        puts.by_node[puts.nodes->owner_index(puts.hashes[i])].push_back(i);
      } else {
        puts.outcomes[i] = valid;
      }
    }
    const auto busy = [](const auto& some) { return !some.empty(); };
    if (std::ranges::count_if(puts.by_node, busy) == 1) {
      const auto only = std::ranges::find_if(puts.by_node, busy);
      co_await put_to(puts, static_cast<std::size_t>(only - puts.by_node.begin()));
    } else {
      TaskScope scope(co_await asio::this_coro::executor);
      for (std::size_t node = 0; node < puts.by_node.size(); ++node) {
        if (!puts.by_node[node].empty()) scope.spawn(put_to(puts, node));
      }
      co_await scope.join();
    }
    if (!puts.stale) break;
  }
  co_return std::move(puts.outcomes);
}

asio::awaitable<void> ValueStore::put_to(Puts& puts, std::size_t node) {
  PutProgress progress;
  while (progress.next < puts.by_node[node].size() && !puts.stale) {
    co_await put_part(puts, node, progress);
  }
}

// What one request carries, and the memory that it points at. Each piece is hashed once, when it
// leaves.
struct ValueStore::PutPart final : Departure {
  struct Item {
    std::size_t value = 0;  // in Puts
    std::size_t checksum_count = 0;
    std::size_t part_count = 0;
  };
  PutValues request;
  std::vector<Item> items;
  RequestKeys keys;
  ChunkSums sums;
  std::vector<ConstByteSpan> parts;
  bool unfinished = false;  // the last value has more chunks
  std::int64_t values_bytes = 0;
  // What has not left, and what does.
  std::int64_t left_bytes = 0;
  PartCursor rest{{}};
  std::vector<ConstByteSpan> leaving_parts;

  // Told once more of what has left before, when a put goes another way in the end.
  void leaving(std::int64_t bytes) override {
    leaving_parts.clear();
    const std::int64_t end = std::min(bytes, values_bytes);
    if (end <= left_bytes) return;
    rest.take(end - left_bytes, leaving_parts);
    left_bytes = end;
    for (const ConstByteSpan part : leaving_parts) sums.pass(part);
  }

  // Once nothing moves any more.
  void point() {
    request.departure = this;
    sums.begin();
    rest = PartCursor(parts);
    std::span<const std::uint64_t> checksums_left = sums.sums();
    std::span<const ConstByteSpan> parts_left = parts;
    for (std::size_t i = 0; i < items.size(); ++i) {
      request.values[i].checksums = checksums_left.first(items[i].checksum_count);
      request.values[i].parts = parts_left.first(items[i].part_count);
      checksums_left = checksums_left.subspan(items[i].checksum_count);
      parts_left = parts_left.subspan(items[i].part_count);
    }
  }
};

// As many chunks of as many values as one request holds.
void ValueStore::plan_part(const Puts& puts, std::size_t node, PutProgress& progress,
                           PutPart& part) const {
  const std::vector<std::size_t>& mine = puts.by_node[node];
  std::int64_t room = options_.request_bytes;
  while (progress.next < mine.size() && room > 0 && !part.unfinished) {
    const std::size_t index = mine[progress.next];
    const ValueToPut& value = puts.values[index];
    const std::int64_t bytes = bytes_of(value.parts);
    if (progress.chunk == 0) progress.parts = PartCursor(value.parts);
    if (bytes <= kValueChunkBytes && bytes > room) return;
    if (!part.keys.take(value.key)) return;
    const std::int64_t count = value_chunk_count(bytes);
    part.request.values.push_back(
        {.key = value.key, .value_bytes = bytes, .first_chunk = progress.chunk});
    PutPart::Item item{.value = index};
    for (; progress.chunk < count && (room > 0 || item.checksum_count == 0); ++progress.chunk) {
      const ObjectKey key = value_chunk_key(puts.hashes[index], count, progress.chunk);
      const std::int64_t size = chunk_range(bytes, progress.chunk, 0, bytes).chunk_bytes;
      const std::size_t before = part.parts.size();
      progress.parts.take(size, part.parts);
      part.sums.add(key, size);
      part.values_bytes += size;
      room -= size;
      item.part_count += part.parts.size() - before;
      ++item.checksum_count;
    }
    part.unfinished = progress.chunk < count;
    if (!part.unfinished) progress.skip();
    part.items.push_back(item);
  }
}

asio::awaitable<void> ValueStore::put_part(Puts& puts, std::size_t node, PutProgress& progress) {
  // Not in the frame: GCC 12 does not align that to 64 bytes.
  const auto owned = std::make_unique<PutPart>();
  PutPart& part = *owned;
  part.request.scope = {.name_space = puts.call.name_space, .flush_number = puts.flush_number};
  part.request.upload = puts.upload;
  part.request.options = puts.options;
  plan_part(puts, node, progress, part);
  part.point();

  ClusterNode& to = puts.nodes->node(node);
  auto putting = to.values().put(std::move(part.request), puts.call.deadline);
  Result<PutValuesReply> reply = co_await ask_unless_cancelled(to, puts.call, std::move(putting));
  if (reply.has_value() && was_stale(reply->head, puts.call)) puts.stale = true;
  if (reply.has_value() && !reply->head.status.ok()) reply = reply->head.status;
  for (std::size_t i = 0; i < part.items.size(); ++i) {
    Result<PutOutcome>& outcome = puts.outcomes[part.items[i].value];
    if (reply.has_value()) {
      outcome = reply->outcomes[i];
    } else {
      outcome = reply.error();
    }
  }
  // The rest of a value is not worth sending when it is there already or cannot be stored.
  if (!part.unfinished) co_return;
  const Result<PutOutcome>& last = puts.outcomes[part.items.back().value];
  if (!last.has_value() || *last != PutOutcome::kStored) progress.skip();
}

// ------------------------------------------------------------------------------- small requests

// Keys of one node that one request asks for.
struct ValueStore::KeyPart {
  std::size_t node = 0;
  ValueScope scope;                // with which their nodes were chosen
  std::vector<std::size_t> items;  // their numbers in the call
  std::vector<std::string_view> keys;
  RequestKeys room;
};

std::vector<ValueStore::KeyPart> ValueStore::parts_of(const NodesView& nodes,
                                                      std::span<const std::string_view> keys,
                                                      const ValueCall& call) const {
  std::vector<KeyPart> full;
  std::vector<KeyPart> open(nodes.size());
  const ValueScope scope = scope_of(call);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const ValueHash hash = value_hash(scope.name_space, scope.flush_number, keys[i]);
    const std::size_t node = nodes.owner_index(hash);
    KeyPart& part = open[node];
    if (!part.room.take(keys[i])) {
      full.push_back(std::exchange(part, KeyPart()));
      (void)part.room.take(keys[i]);
    }
    part.node = node;
    part.scope = scope;
    part.items.push_back(i);
    part.keys.push_back(keys[i]);
  }
  std::ranges::copy_if(open, std::back_inserter(full),
                       [](const KeyPart& part) { return !part.items.empty(); });
  return full;
}

// Side by side, and all of them once more when the flush number was behind.
template <class Ask>
asio::awaitable<void> ValueStore::ask_owners(std::span<const std::string_view> keys,
                                             const ValueCall& call, Ask ask) {
  const auto nodes = nodes_.view();
  for (int attempt = 0; attempt < 2; ++attempt) {
    bool stale = false;
    TaskScope scope(co_await asio::this_coro::executor);
    for (KeyPart& part : parts_of(*nodes, keys, call)) {
      ClusterNode& node = nodes->node(part.node);
      scope.spawn(ask(node, std::move(part), stale));
    }
    co_await scope.join();
    if (!stale) break;
  }
}

Task<std::vector<Result<std::int64_t>>> ValueStore::exists(std::vector<std::string_view> keys,
                                                           ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  for (const std::string_view key : keys) ICE_CO_TRY(validate_value_key(key));
  std::vector<Result<std::int64_t>> sizes(keys.size());
  const auto ask = [&](ClusterNode& node, KeyPart part, bool& stale) {
    return find_part(node, std::move(part), call, sizes, stale);
  };
  co_await ask_owners(keys, call, ask);
  co_return sizes;
}

asio::awaitable<void> ValueStore::find_part(ClusterNode& node, KeyPart part, const ValueCall& call,
                                            std::vector<Result<std::int64_t>>& sizes, bool& stale) {
  auto finding = node.values().find(part.scope, std::move(part.keys), call.deadline);
  const Result<FoundValues> found = co_await ask_unless_cancelled(node, call, std::move(finding));
  if (found.has_value()) stale |= was_stale(found->head, call);
  Status failure = found.has_value() ? found->head.status : found.error();
  if (failure.code() == Code::kUnavailable || failure.code() == Code::kInternal) {
    failure = Status::miss(MissReason::kNodeDown, failure.message());
  }
  for (std::size_t i = 0; i < part.items.size(); ++i) {
    Result<std::int64_t>& size = sizes[part.items[i]];
    if (failure.ok()) {
      size = found->sizes[i];
    } else {
      size = failure;
    }
  }
}

Task<std::vector<Status>> ValueStore::remove(std::vector<std::string_view> keys, ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  for (const std::string_view key : keys) ICE_CO_TRY(validate_value_key(key));
  std::vector<Status> statuses(keys.size());
  const auto ask = [&](ClusterNode& node, KeyPart part, bool& stale) {
    return remove_part(node, std::move(part), call, statuses, stale);
  };
  co_await ask_owners(keys, call, ask);
  co_return statuses;
}

asio::awaitable<void> ValueStore::remove_part(ClusterNode& node, KeyPart part,
                                              const ValueCall& call, std::vector<Status>& statuses,
                                              bool& stale) {
  auto removing = node.values().remove(part.scope, std::move(part.keys), call.deadline);
  const Result<ValueHead> head = co_await ask_unless_cancelled(node, call, std::move(removing));
  if (head.has_value()) stale |= was_stale(*head, call);
  const Status status = head.has_value() ? head->status : head.error();
  for (const std::size_t item : part.items) statuses[item] = status;
}

Task<std::vector<ListedValue>> ValueStore::list(std::string prefix, std::int64_t limit,
                                                ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  std::vector<ListedValue> all;
  const auto nodes = nodes_.view();
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    ClusterNode& node = nodes->node(i);
    std::string after;
    int redone = 0;
    for (std::int64_t left = limit; left > 0;) {
      auto listing = node.values().list(scope_of(call), prefix, after, std::min(left, kListPage),
                                        call.deadline);
      ICE_CO_TRY(ListedValues page, co_await ask_unless_cancelled(node, call, std::move(listing)));
      if (was_stale(page.head, call) && redone++ == 0) continue;
      ICE_CO_TRY(page.head.status);
      left -= std::ssize(page.values);
      if (!page.values.empty()) after = page.values.back().key;
      std::ranges::move(page.values, std::back_inserter(all));
      if (!page.more) break;
    }
  }
  std::ranges::sort(all, {}, &ListedValue::key);
  if (std::ssize(all) > limit) all.resize(static_cast<std::size_t>(limit));
  co_return all;
}

Task<std::uint64_t> ValueStore::flush(ValueCall call) {
  ICE_CO_TRY(validate_namespace(call.name_space));
  const auto raise = [](ValueStore& self, ClusterNode& node, ValueScope scope, ValueCall how,
                        Status& failure, bool& answered, bool& stale) -> asio::awaitable<void> {
    auto flushing = node.values().flush(scope, how.deadline);
    const Result<ValueHead> head = co_await ask_unless_cancelled(node, how, std::move(flushing));
    if (head.has_value()) stale |= self.was_stale(*head, how);
    const Status status = head.has_value() ? head->status : head.error();
    answered |= status.ok();
    if (!status.ok()) failure = status;
  };
  const auto nodes = nodes_.view();
  for (int round = 0; round < kMaxFlushRounds; ++round) {
    ValueScope scope = scope_of(call);
    ++scope.flush_number;
    Status failure;
    bool answered = false;
    bool stale = false;
    TaskScope tasks(co_await asio::this_coro::executor);
    for (std::size_t i = 0; i < nodes->size(); ++i) {
      tasks.spawn(raise(*this, nodes->node(i), scope, call, failure, answered, stale));
    }
    co_await tasks.join();
    if (stale) continue;  // some node knew more: each round knows more, too
    if (!answered) co_return failure;
    flush_numbers_.learn(call.name_space, scope.flush_number);
    co_return scope.flush_number;
  }
  co_return Status(Code::kUnavailable, "the namespace is being flushed by others all the time");
}

}  // namespace icefield
