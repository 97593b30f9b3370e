#include "client/context_store.h"

#include <algorithm>

#include "common/fingerprint.h"

namespace icefield {
namespace {

// Payload of one request: large enough to stream, small enough to leave a node responsive.
constexpr std::int64_t kBatchBytes = 16 << 20;
constexpr std::int64_t kMaxFingerprintBytes = 1 << 20;

ObjectKey key_of(const SegmentId& segment, const BuildId& build, const PartId& part) {
  return {.segment = segment, .build = build, .part = part};
}

PutObject object_of(const ObjectKey& key, ConstByteSpan bytes) {
  return {.key = key,
          .info = {.bytes = static_cast<std::int64_t>(bytes.size()),
                   .checksum = xxh3(bytes, checksum_seed(key))},
          .bytes = bytes};
}

ObjectKey fingerprint_key(const FingerprintHash& hash) {
  ObjectKey key;
  key.segment.bytes = hash.bytes;
  key.part.kind = PartKind::kFingerprint;
  return key;
}

Status lost(const ObjectKey& key) {
  return Status::miss(MissReason::kIntegrity, "checksum mismatch, object " + to_string(key));
}

// Damage is a miss for whoever reads: the data is gone, the caller recomputes.
Status as_miss(Status status) {
  if (status.code() != Code::kDataLoss) return status;
  return Status::miss(MissReason::kIntegrity, status.message());
}

}  // namespace

Task<PrefixMatch> ContextStore::match(std::vector<PrefixHash> prefix, std::string fingerprint_text,
                                      Slice whole, Deadline deadline) {
  std::vector<PrefixHash> ends(prefix.begin() + 1, prefix.end());
  ICE_CO_TRY(const MatchReply reply,
             co_await node_.match(std::move(ends), fingerprint_hash(fingerprint_text), deadline));
  PrefixMatch match;
  match.chain = best_chain(prefix, reply.builds, whole);
  if (!match.chain.empty()) co_return match;
  match.miss = Status::miss(MissReason::kNeverStored, "no stored segment of this prefix");
  if (reply.other_fingerprint.has_value()) {
    Result<std::string> theirs = co_await load_fingerprint(*reply.other_fingerprint, deadline);
    const std::string difference =
        theirs.has_value() ? first_difference(*theirs, fingerprint_text) : "";
    match.miss = Status::miss(MissReason::kFingerprint,
                              "the store was made with another model or layout" +
                                  (difference.empty() ? std::string() : ": its " + difference));
  }
  co_return match;
}

Task<std::string> ContextStore::load_fingerprint(FingerprintHash hash, Deadline deadline) {
  std::vector<ObjectKey> keys = {fingerprint_key(hash)};
  ICE_CO_TRY(const GetReply reply,
             co_await node_.get(std::move(keys), kMaxFingerprintBytes, deadline));
  ICE_CO_TRY(reply.items[0].status);
  const std::string text(as_text(reply.items[0].bytes));
  if (fingerprint_hash(text) != hash) co_return lost(fingerprint_key(hash));
  co_return text;
}

Task<std::vector<StoredBuild>> ContextStore::find(SegmentName segment, FingerprintHash fingerprint,
                                                  Slice slice, Deadline deadline) {
  std::vector<PrefixHash> ends = {segment.end};
  ICE_CO_TRY(const MatchReply reply, co_await node_.match(std::move(ends), fingerprint, deadline));
  std::vector<StoredBuild> found;
  for (const StoredBuild& build : reply.builds) {
    if (build.segment == segment && build.slice == slice) found.push_back(build);
  }
  std::sort(found.begin(), found.end(),
            [](const StoredBuild& a, const StoredBuild& b) { return a.build < b.build; });
  if (found.size() > 1) found.resize(1);
  co_return found;
}

Task<Manifest> ContextStore::load_manifest(const StoredBuild& build, Deadline deadline) {
  const ObjectKey key = key_of(build.segment.id(), build.build, {.kind = PartKind::kManifest});
  std::vector<ObjectKey> keys = {key};
  ICE_CO_TRY(const GetReply reply,
             co_await node_.get(std::move(keys), build.manifest_bytes, deadline));
  ICE_CO_TRY(as_miss(reply.items[0].status));
  if (build_id(reply.items[0].bytes) != build.build) co_return lost(key);
  ICE_CO_TRY(Manifest manifest, Manifest::parse(reply.items[0].bytes));
  if (manifest.segment != build.segment || manifest.slice != build.slice) co_return lost(key);
  co_return manifest;
}

// The bytes of `parts`, in their order, each checked.
Task<std::vector<AlignedBytes>> ContextStore::load_parts(const StoredBuild& build,
                                                         std::vector<PartEntry> parts,
                                                         Deadline deadline) {
  const SegmentId segment = build.segment.id();
  std::vector<AlignedBytes> loaded;
  for (std::size_t begin = 0; begin < parts.size();) {
    std::vector<ObjectKey> keys;
    std::int64_t bytes = 0;
    std::size_t end = begin;
    for (; end < parts.size(); ++end) {
      const auto part_bytes = static_cast<std::int64_t>(parts[end].bytes);
      if (end > begin && bytes + part_bytes > kBatchBytes) break;
      bytes += part_bytes;
      keys.push_back(key_of(segment, build.build, parts[end].id));
    }
    ICE_CO_TRY(const GetReply reply, co_await node_.get(std::move(keys), bytes, deadline));
    for (std::size_t i = begin; i < end; ++i) {
      const GetItem& item = reply.items[i - begin];
      const ObjectKey key = key_of(segment, build.build, parts[i].id);
      ICE_CO_TRY(as_miss(item.status));
      if (item.bytes.size() != parts[i].bytes ||
          xxh3(item.bytes, checksum_seed(key)) != parts[i].checksum) {
        co_return lost(key);
      }
      loaded.emplace_back(item.bytes.begin(), item.bytes.end());
    }
    begin = end;
  }
  co_return loaded;
}

Task<LoadedSegment> ContextStore::load(StoredBuild build, Deadline deadline) {
  ICE_CO_TRY(const Manifest manifest, co_await load_manifest(build, deadline));
  std::vector<PartEntry> wanted;
  for (const PartEntry& part : manifest.parts) {
    const PartKind kind = part.id.kind;
    if (kind == PartKind::kLists || kind == PartKind::kClusters || kind == PartKind::kCodes) {
      wanted.push_back(part);
    }
  }
  ICE_CO_TRY(std::vector<AlignedBytes> parts,
             co_await load_parts(build, std::move(wanted), deadline));
  // Sorted by kind, then layer.
  const auto layers = static_cast<std::size_t>(manifest.slice.layer_count);
  ICE_CHECK(parts.size() == 3 * layers);
  std::vector<SegmentIndex::LayerParts> by_layer(layers);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    by_layer[layer] = {.lists = std::move(parts[layer]),
                       .clusters = std::move(parts[layers + layer]),
                       .codes = std::move(parts[2 * layers + layer])};
  }
  LoadedSegment loaded;
  ICE_CO_TRY(loaded.index, SegmentIndex::parse(manifest, std::move(by_layer)));
  loaded.build = build;
  co_return loaded;
}

Task<std::vector<AlignedBytes>> ContextStore::load_order(StoredBuild build, Deadline deadline) {
  ICE_CO_TRY(const Manifest manifest, co_await load_manifest(build, deadline));
  std::vector<PartEntry> wanted;
  for (const PartEntry& part : manifest.parts) {
    if (part.id.kind == PartKind::kOrder) wanted.push_back(part);
  }
  co_return co_await load_parts(build, std::move(wanted), deadline);
}

Task<> ContextStore::put_all(const std::vector<PutObject>& objects, Deadline deadline) {
  for (std::size_t begin = 0; begin < objects.size();) {
    std::vector<PutObject> batch;
    std::int64_t bytes = 0;
    while (begin < objects.size() &&
           (batch.empty() || bytes + objects[begin].info.bytes <= kBatchBytes)) {
      bytes += objects[begin].info.bytes;
      batch.push_back(objects[begin++]);
    }
    ICE_CO_TRY(const std::vector<Status> statuses, co_await node_.put(std::move(batch), deadline));
    for (const Status& status : statuses) ICE_CO_TRY(status);
  }
  co_return Status();
}

Task<> ContextStore::publish(const BuiltSegment& built, std::string fingerprint_text,
                             Deadline deadline) {
  const SegmentId segment = built.manifest.segment.id();
  std::vector<PutObject> objects;
  const ObjectKey text_key = fingerprint_key(fingerprint_hash(fingerprint_text));
  objects.push_back(object_of(text_key, as_bytes(fingerprint_text)));
  for (std::size_t i = 0; i < built.manifest.parts.size(); ++i) {
    const PartEntry& part = built.manifest.parts[i];
    objects.push_back(
        {.key = key_of(segment, built.build, part.id),
         .info = {.bytes = static_cast<std::int64_t>(part.bytes), .checksum = part.checksum},
         .bytes = built.part(i)});
  }
  const ObjectKey manifest_key = key_of(segment, built.build, {.kind = PartKind::kManifest});
  const std::vector<PutObject> commit = {object_of(manifest_key, built.manifest_bytes)};
  Status status = co_await put_all(objects, deadline);
  if (status.ok()) status = co_await put_all(commit, deadline);
  if (!status.ok()) (void)co_await remove(built.manifest, built.build, deadline);
  co_return status;
}

Task<> ContextStore::remove(const Manifest& manifest, BuildId build, Deadline deadline) {
  const SegmentId segment = manifest.segment.id();
  std::vector<ObjectKey> keys = {key_of(segment, build, {.kind = PartKind::kManifest})};
  for (const PartEntry& part : manifest.parts) keys.push_back(key_of(segment, build, part.id));
  ICE_CO_TRY(const std::vector<Status> statuses, co_await node_.remove(std::move(keys), deadline));
  for (const Status& status : statuses) ICE_CO_TRY(status);
  co_return Status();
}

}  // namespace icefield
