// How values go: removed, expired, evicted, damaged.
#include <glog/logging.h>

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
  }
  co_await remove_doomed();
  co_return head;
}

void NodeValues::drop(Values::iterator value, MissReason reason) {
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
  doom(hash, value_chunk_count(entry.bytes));
  values_.erase(value);
}

void NodeValues::drop_upload(const ValueHash& hash) {
  const auto upload = uploads_.find(hash);
  if (upload == uploads_.end()) return;
  doom(hash, value_chunk_count(upload->second.bytes));
  uploads_.erase(upload);
}

void NodeValues::doom(const ValueHash& hash, std::int64_t chunk_count) {
  removing_.insert(hash);
  doomed_.push_back({.hash = hash, .chunk_count = chunk_count});
}

// Whoever is new here gets a try, and those that failed before as long as the disk goes along.
asio::awaitable<void> NodeValues::remove_doomed() {
  Status failure;
  while (!doomed_.empty()) {
    const Status removed = co_await remove_first(doomed_);
    if (!removed.ok()) failure = removed;
  }
  while (!stuck_.empty() && failure.ok()) failure = co_await remove_first(stuck_);
  if (!failure.ok()) {
    LOG_EVERY_T(WARNING, 1) << stuck_.size()
                            << " values not removed from disk yet: " << failure.to_string();
  }
}

// A value that is not all gone stays in removing_: what is left of it must not become part of
// another that is put under its key.
Task<> NodeValues::remove_first(std::deque<Doomed>& from) {
  const Doomed doomed = from.front();
  from.pop_front();
  const Status removed = co_await remove_chunks(doomed);
  if (removed.ok()) {
    removing_.erase(removing_.find(doomed.hash));
  } else {
    stuck_.push_back(doomed);
  }
  co_return removed;
}

Task<> NodeValues::remove_chunks(Doomed doomed) {
  for (std::int64_t chunk = 0; chunk < doomed.chunk_count; ++chunk) {
    ICE_CO_TRY(co_await memory_.remove(value_chunk_key(doomed.hash, doomed.chunk_count, chunk)));
  }
  if (disk_ == nullptr) co_return Status();
  for (std::int64_t chunk = 0; chunk < doomed.chunk_count; ++chunk) {
    const ObjectKey key = value_chunk_key(doomed.hash, doomed.chunk_count, chunk);
    ICE_CO_TRY(co_await disk_->remove(key));
    ICE_CO_TRY(co_await memory_.remove(key));  // a read that was under way has put it back
  }
  co_return co_await disk_->remove(value_name_key(doomed.hash));
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
  if (value != values_.end()) {
    if (value->second.copying) copies_late.add();
    drop(value, is_over(value->second) ? MissReason::kExpired : MissReason::kEvicted);
  } else {
    drop_upload(hash);
  }
}

}  // namespace icefield
