#include "cache_node/node.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "cache_node/read_through.h"
#include "common/fingerprint.h"

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

// A manifest names itself by its bytes.
Result<Manifest> parse_manifest(const ObjectKey& key, ConstByteSpan bytes) {
  ICE_TRY(Manifest manifest, Manifest::parse(bytes));
  if (build_id(bytes) == key.build && manifest.segment.id() == key.segment) return manifest;
  return Status(Code::kInvalidArgument, "manifest stored under another build's key");
}

// Whose text is stored under a key of that kind.
FingerprintHash fingerprint_of(const ObjectKey& key) {
  FingerprintHash hash;
  hash.bytes = key.segment.bytes;
  return hash;
}

// As a tier says of what it never had.
Status not_there(const ObjectKey& key) {
  return Status::miss(MissReason::kNeverStored, "object " + to_string(key));
}

Status being_removed(const BuildKey& key) {
  return Status(Code::kResourceExhausted,
                "build " + to_string(key.build) + " is being removed, retry");
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

// Every part that it lists must be here as it says.
Status CacheNode::check_commit(const ObjectKey& key, const Manifest& manifest) const {
  for (const PartEntry& part : manifest.parts) {
    const ObjectKey part_key{.segment = key.segment, .build = key.build, .part = part.id};
    const ObjectInfo expected{.bytes = static_cast<std::int64_t>(part.bytes),
                              .checksum = part.checksum};
    if (find(part_key) != expected) {
      return Status(Code::kFailedPrecondition, "part missing: " + to_string(part_key));
    }
  }
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
    Result<ObjectBytes> stored = co_await disk_->get(key, Verify::kByTier);
    Status status = stored.status();
    if (status.ok()) {
      const Bytes bytes = stored->copy();
      const Result<Manifest> manifest = parse_manifest(key, bytes);
      status = manifest.has_value() ? check_commit(key, *manifest) : manifest.error();
      if (status.ok()) {
        know(describe(*manifest, key.build, bytes.size()));
        continue;
      }
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

// The text of a fingerprint is everybody's who has a build of it.
bool CacheNode::may_read(const Caller& caller, const ObjectKey& key) const {
  if (caller.may_use_all()) return true;
  if (key.part.kind == PartKind::kFingerprint) {
    const FingerprintHash hash = fingerprint_of(key);
    return std::ranges::any_of(models_, [&](const auto& space) {
      return caller.may_use(space.first) && space.second.contains(hash);
    });
  }
  const auto build = builds_.find(build_of(key));
  return build != builds_.end() && caller.may_use(build->second.name_space);
}

// Or remove. What nobody has begun is nobody's: there is nothing to remove of it.
bool CacheNode::may_change(const Caller& caller, const ObjectKey& key) const {
  if (caller.may_use_all()) return true;
  const auto build = builds_.find(build_of(key));
  if (build != builds_.end()) return caller.may_use(build->second.name_space);
  const UnfinishedBuilds::Owner* owner = unfinished_.find(build_of(key));
  return owner != nullptr && caller.may_use(owner->name_space);
}

Task<> CacheNode::put_one(const Caller& caller, PutObject object, NamespaceId name_space) {
  ICE_CO_TRY(verify_object(object.key, object.info, std::span(&object.bytes, 1)));
  if (object.key.part.kind == PartKind::kManifest) {
    co_return co_await put_manifest(caller, object, name_space);
  }
  if (object.key.part.kind == PartKind::kFingerprint) {
    const FingerprintHash hash = fingerprint_hash(as_text(object.bytes));
    if (hash == fingerprint_of(object.key)) co_return co_await store(object);
    co_return Status(Code::kInvalidArgument, "text stored under another fingerprint");
  }
  co_return co_await put_part(caller, object, name_space);
}

// Proves whose the build is. Parts of somebody else's would count as far as their checksums go, and
// those are not made to resist who chooses the bytes. Storing takes a flush, and the publisher may
// lose patience and remove all of it meanwhile: such a build must not be known.
Task<> CacheNode::put_manifest(const Caller& caller, PutObject object, NamespaceId name_space) {
  const BuildKey key = build_of(object.key);
  if (unfinished_.leaving(key)) co_return being_removed(key);
  ICE_CO_TRY(const Manifest manifest, parse_manifest(object.key, object.bytes));
  if (manifest.name_space != name_space) {
    co_return Status(Code::kFailedPrecondition, "manifest of another namespace than the request");
  }
  if (const UnfinishedBuilds::Owner* owner = unfinished_.find(key);
      owner != nullptr && owner->name_space != name_space &&
      !(owner->everything && caller.may_use_all())) {
    unfinished_.give_up(key);
    co_return Status(
        Code::kFailedPrecondition,
        "part missing: those of build " + to_string(key.build) + " came from another namespace");
  }
  ICE_CO_TRY(check_commit(object.key, manifest));
  const auto commit = commits_.emplace(key, false);
  const Status stored = co_await store(object);
  const bool removed = commit->second || unfinished_.leaving(key) ||
                       (disk_ != nullptr && !disk_->find(object.key).has_value());
  commits_.erase(commit);
  ICE_CO_TRY(stored);
  if (builds_.contains(key)) co_return Status();  // by another commit, which nobody has undone
  const Status whole = removed ? being_removed(key) : check_commit(object.key, manifest);
  if (!whole.ok()) {
    undo_commits(key);
    if (disk_ != nullptr) ICE_CO_TRY(co_await disk_->remove(object.key));
    ICE_CO_TRY(co_await memory_.remove(object.key));
    co_return whole;
  }
  know(describe(manifest, key.build, object.bytes.size()));
  unfinished_.end(key);
  co_return Status();
}

Task<> CacheNode::put_part(const Caller& caller, PutObject object, NamespaceId name_space) {
  const BuildKey key = build_of(object.key);
  const auto build = builds_.find(key);
  const UnfinishedBuilds::Owner* begun = unfinished_.find(key);
  const NamespaceId owner = build != builds_.end() ? build->second.name_space
                            : begun != nullptr     ? begun->name_space
                                                   : name_space;
  // As a second put of the same: it would tell that there is a build, and changes nothing.
  if (owner != name_space && !caller.may_use_all()) co_return Status();
  if (unfinished_.leaving(key)) co_return being_removed(key);
  const UnfinishedBuilds::Owner writer{.name_space = owner, .everything = caller.may_use_all()};
  if (build == builds_.end()) unfinished_.begin(key, writer, clock_.now());
  ICE_CO_TRY(co_await store(object));
  if (builds_.contains(key)) co_return Status();
  unfinished_.begin(key, writer, clock_.now());  // again, where it was given up meanwhile
  unfinished_.add(key, object.key.part);
  co_return Status();
}

Task<> CacheNode::store(const PutObject& object) {
  const std::vector<ConstByteSpan> pieces = {object.bytes};
  if (disk_ != nullptr) {
    ICE_CO_TRY(co_await disk_->put(object.key, pieces, object.info));
    if (object.key.part.kind == PartKind::kManifest) ICE_CO_TRY(co_await disk_->flush());
  }
  const Result<PutOutcome> kept = co_await memory_.put(object.key, pieces, object.info);
  // With a disk below, memory is a cache that may be too small.
  co_return disk_ == nullptr ? kept.status() : Status();
}

Task<std::vector<Status>> CacheNode::put(const Caller& caller, std::span<const PutObject> objects,
                                         NamespaceId name_space) {
  std::vector<Status> statuses;
  for (const PutObject& object : objects) {
    statuses.push_back(co_await put_one(caller, object, name_space));
  }
  unfinished_.expire(clock_.now());
  co_await drop_incomplete_builds();
  values_.start_removing();
  co_return statuses;
}

void CacheNode::note_evicted(const ObjectKey& key) {
  if (key.part.kind == PartKind::kValue) return values_.note_evicted(key);
  if (disk_ == nullptr) incomplete_.push_back({key.segment, key.build});
}

void CacheNode::note_disk_evicted(const ObjectKey& key) {
  const PartKind kind = key.part.kind;
  const bool of_value = kind == PartKind::kValue || kind == PartKind::kValueName;
  if (of_value) return values_.note_disk_evicted(key);
  if (kind <= PartKind::kExtent) incomplete_.push_back({key.segment, key.build});
}

// Of builds. What a full disk does not let go is tried again with the next put.
asio::awaitable<void> CacheNode::remove_given_up() {
  while (const std::optional<ObjectKey> key = unfinished_.take_given_up()) {
    Status status = co_await memory_.remove(*key);
    if (status.ok() && disk_ != nullptr) status = co_await disk_->remove(*key);
    if (!status.ok()) co_return unfinished_.not_removed(*key);
    unfinished_.removed(*key);
  }
}

// Nothing is kept that cannot be used, of builds that are being written neither: their commits will
// be refused. Until everything of it is gone a build is leaving, so that nobody puts it anew into
// what is being removed.
asio::awaitable<void> CacheNode::drop_incomplete_builds() {
  for (const BuildKey& key : std::exchange(incomplete_, {})) {
    if (builds_.contains(key)) {
      LOG(WARNING) << "build " << to_string(key.build) << " evicted: no room";
      unfinish(key);
    }
    unfinished_.give_up(key);
  }
  co_await remove_given_up();
}

Task<ObjectBytes> CacheNode::get(const Caller& caller, ObjectKey key, Verify verify) {
  if (!may_read(caller, key)) co_return not_there(key);
  co_return co_await read_through(memory_, disk_, key, verify, disk_reads);
}

Task<> CacheNode::remove(const Caller& caller, ObjectKey key) {
  if (!may_change(caller, key)) co_return Status();
  undo_commits(build_of(key));
  if (key.part.kind == PartKind::kManifest) unfinish(build_of(key));
  ICE_CO_TRY(co_await memory_.remove(key));
  if (disk_ != nullptr) ICE_CO_TRY(co_await disk_->remove(key));
  unfinished_.remove(build_of(key), key.part, clock_.now());
  co_return Status();
}

void CacheNode::undo_commits(const BuildKey& key) {
  const auto [begin, end] = commits_.equal_range(key);
  for (auto commit = begin; commit != end; ++commit) commit->second = true;
}

// What it is made of is still here, and still its namespace's.
void CacheNode::unfinish(const BuildKey& key) {
  const auto found = builds_.find(key);
  if (found == builds_.end()) return;
  const StoredBuild build = found->second;
  forget(key);
  unfinished_.begin(key, {.name_space = build.name_space}, clock_.now());
  unfinished_.add(key, {.kind = PartKind::kManifest});
  for (const PartId& part : parts_of(build.slice, build.segment.token_count)) {
    unfinished_.add(key, part);
  }
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
