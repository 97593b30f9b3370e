// How values go: removed, expired, evicted, damaged.
#include <glog/logging.h>

#include <algorithm>

#include "cache_node/node_values.h"

namespace icefield {

Task<ValueHead> NodeValues::remove(ValueScope scope, std::span<const std::string_view> keys) {
  ValueHead head;
  Namespace nobody(scope.name_space);
  const Namespace* const space = co_await enter_to_read(scope, head, nobody);
  if (space == nullptr) co_return head;
  for (const std::string_view key : keys) {
    const ValueHash hash = value_hash(space->name, scope.flush_number, key);
    const Result<Value*> value = co_await live(*space, key, hash);
    const auto found = values_.find(hash);
    if (value.has_value() && found != values_.end()) drop(found, MissReason::kNeverStored);
    missed_.forget(fingerprint(*space, key));
    (void)co_await remove_remains(hash);  // or later
  }
  start_removing();
  co_return head;
}

void NodeValues::drop(Values::iterator value, MissReason reason) {
  doom(value->first, value_chunk_count(value->second.bytes));
  unlist(value, reason);
}

void NodeValues::unlist(Values::iterator value, MissReason reason) {
  const auto& [hash, entry] = *value;
  switch (reason) {
    case MissReason::kEvicted: evicted.add(); break;
    case MissReason::kExpired: expired.add(); break;
    case MissReason::kIntegrity: damaged.add(); break;
    default: break;
  }
  if (entry.name != nullptr) {
    --entry.name->space->value_count;
    entry.name->space->value_bytes -= entry.bytes;
    missed_.note(fingerprint(*entry.name->space, entry.name->key), reason);
  } else {
    --nameless_count_;
  }
  forget_retention(hash, entry);
  values_.erase(value);
}

void NodeValues::doom(const ValueHash& hash, std::int64_t chunk_count) {
  remains_.emplace(hash, Remains{.chunk_count = chunk_count});
  doomed_.push_back(hash);
}

void NodeValues::start_removing() {
  const bool nothing = doomed_.empty() && stuck_.empty();
  const bool stopping = stop_at_.has_value();
  if (nothing || stopping || !removal_.has_value() || removal_->running() > 0) return;
  removal_->spawn(remove_doomed());
}

// Whoever is new here gets a try, and those that failed before as long as the disk goes along.
asio::awaitable<void> NodeValues::remove_doomed() {
  constexpr int kTurn = 256;  // then others have one
  Status failure;
  for (int done = 1; !doomed_.empty() && !out_of_time(); ++done) {
    const Status removed = co_await remove_first(doomed_);
    if (!removed.ok()) failure = removed;
    if (done % kTurn == 0) co_await asio::post(asio::use_awaitable);
  }
  while (!stuck_.empty() && failure.ok() && !out_of_time()) failure = co_await remove_first(stuck_);
  if (!failure.ok()) {
    LOG_EVERY_T(WARNING, 1) << stuck_.size()
                            << " values not removed from disk yet: " << failure.to_string();
  }
}

Task<> NodeValues::remove_first(std::deque<ValueHash>& from) {
  const ValueHash hash = from.front();
  from.pop_front();
  const Status removed = co_await remove_remains(hash);
  if (!removed.ok()) stuck_.push_back(hash);
  co_return removed;
}

// What is not all gone stays in remains_: it must not become part of another value that is put
// under its key.
Task<> NodeValues::remove_remains(ValueHash hash) {
  const auto find = [&](const auto& is_it) {
    const auto [begin, end] = remains_.equal_range(hash);
    const auto found = std::find_if(begin, end, is_it);
    return found == end ? remains_.end() : found;
  };
  const auto waits = [](const auto& entry) { return !entry.second.going; };
  for (auto found = find(waits); found != remains_.end(); found = find(waits)) {
    Remains& mine = found->second;  // stays where it is
    mine.going = true;
    const Status removed = co_await remove_chunks(hash, mine.chunk_count);
    mine.going = false;
    ICE_CO_TRY(removed);
    remains_.erase(find([&](const auto& entry) { return &entry.second == &mine; }));
  }
  co_return Status();
}

bool NodeValues::erase_from_memory(const ValueHash& hash, std::int64_t chunk_count) {
  bool erased = false;
  for (std::int64_t chunk = 0; chunk < chunk_count; ++chunk) {
    erased |= memory_.erase(value_chunk_key(hash, chunk_count, chunk));
  }
  return erased;
}

Task<> NodeValues::remove_chunks(ValueHash hash, std::int64_t chunk_count) {
  erase_from_memory(hash, chunk_count);
  if (disk_ == nullptr) co_return Status();
  for (std::int64_t chunk = 0; chunk < chunk_count; ++chunk) {
    const ObjectKey key = value_chunk_key(hash, chunk_count, chunk);
    ICE_CO_TRY(co_await disk_->remove(key));
    memory_.erase(key);  // a read that was under way has put it back
  }
  co_return co_await disk_->remove(value_name_key(hash));
}

void NodeValues::expire_due() {
  const std::int64_t now_ms = clock_.unix_ms();
  while (!soft_pins_.empty() && soft_pins_.begin()->first <= now_ms) {
    soft_pins_.erase(soft_pins_.begin());
  }
  while (!expiries_.empty() && expiries_.begin()->first <= now_ms) {
    const auto value = values_.find(expiries_.begin()->second);
    ICE_CHECK(value != values_.end());
    drop(value, MissReason::kExpired);
  }
}

void NodeValues::note_evicted(const ObjectKey& chunk) {
  if (disk_ != nullptr && disk_->find(chunk).has_value()) return;
  ValueHash hash;
  hash.bytes = chunk.segment.bytes;
  const auto value = values_.find(hash);
  if (value == values_.end()) return drop_upload(hash);
  if (value->second.copying) copies_late.add();
  const auto reason = is_over(value->second) ? MissReason::kExpired : MissReason::kEvicted;
  const bool all_gone = disk_ == nullptr && value_chunk_count(value->second.bytes) == 1;
  all_gone ? unlist(value, reason) : drop(value, reason);
}

// What is still in memory is as good as before, and goes to disk again with its next use. Without a
// name nobody can ask for it.
void NodeValues::note_disk_evicted(const ObjectKey& key) {
  ValueHash hash;
  hash.bytes = key.segment.bytes;
  const auto value = values_.find(hash);
  if (value == values_.end()) return;
  value->second.on_disk = false;
  const bool name = key.part.kind == PartKind::kValueName;
  if (name && value->second.name == nullptr) drop(value, MissReason::kEvicted);
}

}  // namespace icefield
