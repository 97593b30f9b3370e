#include "cache_node/node.h"

#include <glog/logging.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "cache_node/read_through.h"

namespace icefield {
namespace {

StoredBuild describe(const Manifest& manifest, const BuildId& build, std::size_t manifest_bytes) {
  return {.segment = manifest.segment,
          .build = build,
          .slice = manifest.slice,
          .name_space = manifest.name_space,
          .fingerprint = manifest.fingerprint,
          .stored_bytes = manifest.part_bytes(),
          .manifest_bytes = static_cast<std::int64_t>(manifest_bytes)};
}

// Its manifest and its parts.
std::vector<ObjectKey> objects_of(const StoredBuild& build) {
  const SegmentId segment = build.segment.id();
  std::vector<ObjectKey> keys = {
      {.segment = segment, .build = build.build, .part = {.kind = PartKind::kManifest}}};
  for (const PartId& part : parts_of(build.slice, build.segment.token_count)) {
    keys.push_back({.segment = segment, .build = build.build, .part = part});
  }
  return keys;
}

}  // namespace

std::optional<ObjectInfo> CacheNode::find(const ObjectKey& key) const {
  std::optional<ObjectInfo> info = memory_.find(key);
  if (!info.has_value() && disk_ != nullptr) info = disk_->find(key);
  return info;
}

void CacheNode::know(const StoredBuild& build) {
  const BuildKey key{build.segment.id(), build.build};
  if (!builds_.emplace(key, build).second) return;
  ++models_[build.name_space][build.fingerprint];
  if (build.segment.origin.exact()) by_end_.emplace(build.segment.end, key);
}

void CacheNode::forget(const BuildKey& build) {
  const auto found = builds_.find(build);
  if (found == builds_.end()) return;
  const auto [begin, end] = by_end_.equal_range(found->second.segment.end);
  for (auto entry = begin; entry != end; ++entry) {
    if (entry->second == build) {
      by_end_.erase(entry);
      break;
    }
  }
  std::map<FingerprintHash, std::int64_t>& models = models_.at(found->second.name_space);
  if (--models.at(found->second.fingerprint) == 0) models.erase(found->second.fingerprint);
  if (models.empty()) models_.erase(found->second.name_space);
  builds_.erase(found);
}

// A manifest names itself by its bytes, and every part it lists must be here as it says.
Status CacheNode::check_commit(const ObjectKey& key, ConstByteSpan bytes,
                               StoredBuild& build) const {
  ICE_TRY(const Manifest manifest, Manifest::parse(bytes));
  if (build_id(bytes) != key.build || manifest.segment.id() != key.segment) {
    return Status(Code::kInvalidArgument, "manifest stored under another build's key");
  }
  for (const PartEntry& part : manifest.parts) {
    const ObjectKey part_key{.segment = key.segment, .build = key.build, .part = part.id};
    const ObjectInfo expected{.bytes = static_cast<std::int64_t>(part.bytes),
                              .checksum = part.checksum};
    if (find(part_key) != expected) {
      return Status(Code::kFailedPrecondition, "part missing: " + to_string(part_key));
    }
  }
  build = describe(manifest, key.build, bytes.size());
  return Status();
}

Task<> CacheNode::recover() {
  if (disk_ == nullptr) co_return Status();
  std::vector<ObjectKey> manifests;
  std::vector<ObjectKey> others;
  disk_->for_each([&](const ObjectKey& key, const ObjectInfo&) {
    if (key.part.kind == PartKind::kManifest)
      manifests.push_back(key);
    else if (key.part.kind < PartKind::kFingerprint)
      others.push_back(key);
  });
  for (const ObjectKey& key : manifests) {
    Result<ObjectBytes> bytes = co_await disk_->get(key, Verify::kByTier);
    StoredBuild build;
    Status status = bytes.status();
    if (status.ok()) status = check_commit(key, bytes->copy(), build);
    if (status.ok()) {
      know(build);
      continue;
    }
    LOG(WARNING) << "build " << to_string(key.build) << " dropped: " << status.to_string();
    ICE_CO_TRY(co_await disk_->remove(key));
  }
  std::int64_t removed = 0;
  for (const ObjectKey& key : others) {
    if (builds_.contains({key.segment, key.build})) continue;
    ICE_CO_TRY(co_await disk_->remove(key));
    ++removed;
  }
  if (removed > 0) LOG(INFO) << removed << " parts of builds that were never finished removed";
  co_return co_await values_.recover();
}

Task<> CacheNode::put_one(PutObject object, NamespaceId name_space) {
  const bool manifest = object.key.part.kind == PartKind::kManifest;
  ICE_CO_TRY(verify_object(object.key, object.info, std::span(&object.bytes, 1)));
  StoredBuild build;
  if (manifest) {
    ICE_CO_TRY(check_commit(object.key, object.bytes, build));
    if (build.name_space != name_space) {
      co_return Status(Code::kFailedPrecondition, "manifest of another namespace than the request");
    }
  }
  const std::vector<ConstByteSpan> pieces = {object.bytes};
  if (disk_ != nullptr) {
    ICE_CO_TRY(co_await disk_->put(object.key, pieces, object.info));
    if (manifest) ICE_CO_TRY(co_await disk_->flush());
  }
  const Result<PutOutcome> kept = co_await memory_.put(object.key, pieces, object.info);
  // With a disk below, memory is a cache that may be too small.
  if (disk_ == nullptr) ICE_CO_TRY(kept.status());
  if (manifest) know(build);
  co_return Status();
}

Task<std::vector<Status>> CacheNode::put(std::span<const PutObject> objects,
                                         NamespaceId name_space) {
  std::vector<Status> statuses;
  for (const PutObject& object : objects) {
    statuses.push_back(co_await put_one(object, name_space));
  }
  co_await drop_incomplete_builds();
  co_await values_.remove_doomed();
  co_return statuses;
}

void CacheNode::note_evicted(const ObjectKey& key) {
  if (key.part.kind == PartKind::kValue) return values_.note_evicted(key);
  if (disk_ == nullptr) incomplete_.push_back({key.segment, key.build});
}

void CacheNode::note_disk_evicted(const ObjectKey& key) {
  // A value whose chunk is gone is a miss when it is read; memory may still have it whole.
  if (key.part.kind <= PartKind::kExtent) incomplete_.push_back({key.segment, key.build});
}

// Manifest first: a node that is killed meanwhile removes the rest when it starts.
Task<> CacheNode::remove_from_disk(const StoredBuild& build) {
  for (const ObjectKey& key : objects_of(build)) ICE_CO_TRY(co_await disk_->remove(key));
  co_return Status();
}

// Nothing is kept that cannot be used. What the disk does not remove now, it evicts as it is not
// read, or the next start removes.
asio::awaitable<void> CacheNode::drop_incomplete_builds() {
  while (!incomplete_.empty()) {
    std::set<BuildKey> lost(incomplete_.begin(), incomplete_.end());
    incomplete_.clear();
    std::vector<ObjectKey> parts;
    for (auto key = lost.begin(); key != lost.end();) {
      const auto found = builds_.find(*key);
      if (found == builds_.end()) {
        ++key;
        continue;
      }
      LOG(WARNING) << "build " << to_string(key->build) << " evicted: no room";
      const StoredBuild build = found->second;
      forget(*key);
      key = lost.erase(key);
      std::ranges::copy(objects_of(build), std::back_inserter(parts));
      if (disk_ == nullptr) continue;
      const Status removed = co_await remove_from_disk(build);
      if (!removed.ok()) LOG(WARNING) << "parts of it stay on disk: " << removed.to_string();
    }
    // A build that is still being written has no manifest yet: its commit will be refused.
    const auto look = [&](const ObjectKey& key, const ObjectInfo&) {
      if (lost.contains({key.segment, key.build})) parts.push_back(key);
    };
    if (!lost.empty()) memory_.for_each(look);
    for (const ObjectKey& key : parts) (void)co_await memory_.remove(key);
  }
}

Task<ObjectBytes> CacheNode::get(ObjectKey key, Verify verify) {
  co_return co_await read_through(memory_, disk_, key, verify, disk_reads);
}

Task<> CacheNode::remove(ObjectKey key) {
  if (key.part.kind == PartKind::kManifest) forget({key.segment, key.build});
  ICE_CO_TRY(co_await memory_.remove(key));
  if (disk_ != nullptr) ICE_CO_TRY(co_await disk_->remove(key));
  co_return Status();
}

MatchReply CacheNode::match(const MatchQuery& query) const {
  const NamespaceId name_space = namespace_id(query.name_space);
  MatchReply reply;
  for (const PrefixHash& end : query.ends) {
    const auto [begin, stop] = by_end_.equal_range(end);
    for (auto entry = begin; entry != stop; ++entry) {
      const StoredBuild& build = builds_.at(entry->second);
      if (build.name_space == name_space) reply.builds.push_back(build);
    }
  }
  const auto models = models_.find(name_space);
  if (models != models_.end() && !models->second.contains(query.fingerprint)) {
    reply.other_fingerprint = models->second.begin()->first;
  }
  return reply;
}

ListBuildsReply CacheNode::list() const {
  ListBuildsReply reply;
  for (const auto& [key, build] : builds_) reply.builds.push_back(build);
  reply.tiers.push_back(memory_.usage());
  if (disk_ != nullptr) reply.tiers.push_back(disk_->usage());
  return reply;
}

NodeStats CacheNode::stats() const {
  NodeStats stats;
  stats.tiers.push_back(memory_.usage());
  if (disk_ != nullptr) stats.tiers.push_back(disk_->usage());
  for (const Counter* counter : std::initializer_list<const Counter*>{
           &disk_reads, &page_reads, &memory_.evicted, &memory_.damaged}) {
    stats.counters.push_back({.name = counter->name(), .value = counter->value()});
  }
  values_.add_stats(stats);
  return stats;
}

}  // namespace icefield
