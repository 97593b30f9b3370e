#include "client/context_store.h"

#include <algorithm>

#include "common/fingerprint.h"
#include "common/task_scope.h"

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

HeadOutcome all_failed(const HeadPages& head, const Status& status) {
  HeadOutcome outcome{.status = status, .failed_pages = {}};
  for (std::size_t i = 0; i < head.first_rows.size(); ++i) {
    outcome.failed_pages.push_back(static_cast<std::uint16_t>(i));
  }
  return outcome;
}

// Asks every node for the prefixes it owns, side by side. Nodes that do not answer found nothing,
// as long as one does.
Task<MatchReply> match_all(const NodesView& nodes, const MatchQuery& query, Deadline deadline) {
  struct Asked {
    MatchQuery query;
    Result<MatchReply> reply{MatchReply()};
  };
  std::vector<Asked> asked(nodes.size());
  for (Asked& one : asked) {
    one.query.name_space = query.name_space;
    one.query.fingerprint = query.fingerprint;
  }
  for (const PrefixHash& end : query.ends) {
    asked[nodes.owner_index(end)].query.ends.push_back(end);
  }
  const auto ask = [](ClusterNode& node, Asked& one, Deadline until) -> asio::awaitable<void> {
    auto matching = node.contexts().match(std::move(one.query), until);
    one.reply = co_await node.ask(std::move(matching));
  };
  TaskScope scope(co_await asio::this_coro::executor);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (asked[i].query.ends.empty()) continue;
    scope.spawn(ask(nodes.node(i), asked[i], deadline));
  }
  co_await scope.join();
  MatchReply merged;
  Status failure;
  bool answered = false;
  for (Asked& one : asked) {
    if (!one.reply.has_value()) {
      failure = one.reply.error();
      continue;
    }
    answered = true;
    std::ranges::move(one.reply->builds, std::back_inserter(merged.builds));
    if (one.reply->other_fingerprint.has_value()) {
      merged.other_fingerprint = one.reply->other_fingerprint;
    }
  }
  if (!answered) co_return failure;
  co_return merged;
}

Task<std::string> load_fingerprint(ClusterNode& node, FingerprintHash hash, Deadline deadline) {
  std::vector<ObjectKey> keys = {fingerprint_key(hash)};
  auto getting = node.contexts().get(std::move(keys), kMaxFingerprintBytes, deadline);
  ICE_CO_TRY(const GetReply reply, co_await node.ask(std::move(getting)));
  ICE_CO_TRY(reply.items[0].status);
  const std::string text(as_text(reply.items[0].bytes));
  if (fingerprint_hash(text) != hash) co_return lost(fingerprint_key(hash));
  co_return text;
}

Task<Manifest> load_manifest(ClusterNode& node, const StoredBuild& build, Deadline deadline) {
  const ObjectKey key = key_of(build.segment.id(), build.build, {.kind = PartKind::kManifest});
  std::vector<ObjectKey> keys = {key};
  auto getting = node.contexts().get(std::move(keys), build.manifest_bytes, deadline);
  ICE_CO_TRY(const GetReply reply, co_await node.ask(std::move(getting)));
  ICE_CO_TRY(as_miss(reply.items[0].status));
  if (build_id(reply.items[0].bytes) != build.build) co_return lost(key);
  ICE_CO_TRY(Manifest manifest, Manifest::parse(reply.items[0].bytes));
  if (manifest.segment != build.segment || manifest.slice != build.slice) co_return lost(key);
  co_return manifest;
}

// The bytes of `parts`, in their order, each checked.
Task<std::vector<AlignedBytes>> load_parts(ClusterNode& node, const StoredBuild& build,
                                           std::vector<PartEntry> parts, Deadline deadline) {
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
    auto getting = node.contexts().get(std::move(keys), bytes, deadline);
    ICE_CO_TRY(const GetReply reply, co_await node.ask(std::move(getting)));
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

Task<> put_all(ClusterNode& node, const std::vector<PutObject>& objects, std::string name_space,
               Deadline deadline) {
  for (std::size_t begin = 0; begin < objects.size();) {
    std::vector<PutObject> batch;
    std::int64_t bytes = 0;
    while (begin < objects.size() &&
           (batch.empty() || bytes + objects[begin].info.bytes <= kBatchBytes)) {
      bytes += objects[begin].info.bytes;
      batch.push_back(objects[begin++]);
    }
    auto putting = node.contexts().put(std::move(batch), name_space, deadline);
    ICE_CO_TRY(const std::vector<Status> statuses, co_await node.ask(std::move(putting)));
    for (const Status& status : statuses) ICE_CO_TRY(status);
  }
  co_return Status();
}

Task<> remove_from(ClusterNode& node, const Manifest& manifest, BuildId build, Deadline deadline) {
  const SegmentId segment = manifest.segment.id();
  std::vector<ObjectKey> keys = {key_of(segment, build, {.kind = PartKind::kManifest})};
  for (const PartEntry& part : manifest.parts) keys.push_back(key_of(segment, build, part.id));
  auto removing = node.contexts().remove(std::move(keys), deadline);
  ICE_CO_TRY(const std::vector<Status> statuses, co_await node.ask(std::move(removing)));
  for (const Status& status : statuses) ICE_CO_TRY(status);
  co_return Status();
}

}  // namespace

Task<PrefixMatch> ContextStore::match(std::vector<PrefixHash> prefix, ContextScope scope,
                                      Deadline deadline) {
  const MatchQuery query{.name_space = scope.name_space,
                         .ends = std::vector<PrefixHash>(prefix.begin() + 1, prefix.end()),
                         .fingerprint = fingerprint_hash(scope.fingerprint_text)};
  const auto nodes = nodes_.view();
  ICE_CO_TRY(const MatchReply reply, co_await match_all(*nodes, query, deadline));
  PrefixMatch match;
  match.chain = best_chain(prefix, reply.builds, scope.slice);
  if (!match.chain.empty()) co_return match;
  match.miss = Status::miss(MissReason::kNeverStored, "no stored segment of this prefix");
  if (reply.other_fingerprint.has_value()) {
    std::string difference;
    for (std::size_t i = 0; difference.empty() && i < nodes->size(); ++i) {
      Result<std::string> theirs =
          co_await load_fingerprint(nodes->node(i), *reply.other_fingerprint, deadline);
      if (theirs.has_value()) difference = first_difference(*theirs, scope.fingerprint_text);
    }
    match.miss = Status::miss(MissReason::kFingerprint,
                              "the store was made with another model or layout" +
                                  (difference.empty() ? std::string() : ": its " + difference));
  }
  co_return match;
}

Task<std::vector<StoredBuild>> ContextStore::find(SegmentName segment, ContextScope scope,
                                                  Deadline deadline) {
  MatchQuery query{.name_space = std::move(scope.name_space),
                   .ends = {segment.end},
                   .fingerprint = fingerprint_hash(scope.fingerprint_text)};
  const auto nodes = nodes_.view();
  ClusterNode& node = nodes->owner(segment.end);
  auto matching = node.contexts().match(std::move(query), deadline);
  ICE_CO_TRY(const MatchReply reply, co_await node.ask(std::move(matching)));
  std::vector<StoredBuild> found;
  for (const StoredBuild& build : reply.builds) {
    if (build.segment == segment && build.slice == scope.slice) found.push_back(build);
  }
  std::sort(found.begin(), found.end(),
            [](const StoredBuild& a, const StoredBuild& b) { return a.build < b.build; });
  if (found.size() > 1) found.resize(1);
  co_return found;
}

Task<LoadedSegment> ContextStore::load(StoredBuild build, Deadline deadline) {
  const auto nodes = nodes_.view();
  ClusterNode& node = nodes->owner(build.segment.end);
  ICE_CO_TRY(const Manifest manifest, co_await load_manifest(node, build, deadline));
  std::vector<PartEntry> wanted;
  for (const PartEntry& part : manifest.parts) {
    const PartKind kind = part.id.kind;
    if (kind == PartKind::kLists || kind == PartKind::kClusters || kind == PartKind::kCodes) {
      wanted.push_back(part);
    }
  }
  ICE_CO_TRY(std::vector<AlignedBytes> parts,
             co_await load_parts(node, build, std::move(wanted), deadline));
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
  const auto nodes = nodes_.view();
  ClusterNode& node = nodes->owner(build.segment.end);
  ICE_CO_TRY(const Manifest manifest, co_await load_manifest(node, build, deadline));
  std::vector<PartEntry> wanted;
  for (const PartEntry& part : manifest.parts) {
    if (part.id.kind == PartKind::kOrder) wanted.push_back(part);
  }
  co_return co_await load_parts(node, build, std::move(wanted), deadline);
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
  const auto nodes = nodes_.view();
  ClusterNode& node = nodes->owner(built.manifest.segment.end);
  Status status = co_await put_all(node, objects, built.name_space, deadline);
  if (status.ok()) status = co_await put_all(node, commit, built.name_space, deadline);
  if (!status.ok()) (void)co_await remove_from(node, built.manifest, built.build, deadline);
  co_return status;
}

Task<> ContextStore::remove(const Manifest& manifest, BuildId build, Deadline deadline) {
  const auto nodes = nodes_.view();
  co_return co_await remove_from(nodes->owner(manifest.segment.end), manifest, build, deadline);
}

Task<PageReply> ContextStore::read_pages(PageRequest request, Deadline deadline) {
  const auto nodes = nodes_.view();
  std::vector<std::size_t> owners;  // of each HeadPages
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) owners.push_back(nodes->owner_index(head.end));
  }
  const bool one =
      std::adjacent_find(owners.begin(), owners.end(), std::not_equal_to<>()) == owners.end();
  if (one) {
    ClusterNode& node = nodes->node(owners.empty() ? 0 : owners.front());
    auto reading = node.contexts().read_pages(std::move(request), deadline);
    co_return co_await node.ask(std::move(reading));
  }
  co_return co_await read_pages_of_many(*nodes, request, owners, deadline);
}

// One request per owner, side by side; the replies are put together in the order of `request`.
Task<PageReply> ContextStore::read_pages_of_many(const NodesView& nodes, const PageRequest& request,
                                                 const std::vector<std::size_t>& owners,
                                                 Deadline deadline) {
  std::vector<PageRequest> requests(nodes.size());
  std::vector<Result<PageReply>> replies(nodes.size());
  std::size_t head_number = 0;
  for (PageRequest& part : requests) {
    part = {.page_rows = request.page_rows,
            .row_bytes = request.row_bytes,
            .scrub = request.scrub,
            .contexts = {{}}};
  }
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) {
      requests[owners[head_number++]].contexts.front().push_back(head);
    }
  }
  const auto ask = [](ClusterNode& node, PageRequest part, Deadline until,
                      Result<PageReply>& reply) -> asio::awaitable<void> {
    auto reading = node.contexts().read_pages(std::move(part), until);
    reply = co_await node.ask(std::move(reading));
  };
  TaskScope scope(co_await asio::this_coro::executor);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (requests[i].contexts.front().empty()) continue;
    scope.spawn(ask(nodes.node(i), std::move(requests[i]), deadline, replies[i]));
  }
  co_await scope.join();

  PageReply merged;
  merged.pages = Buffer(request.page_count() * request.page_bytes());
  merged.pages.resize(merged.pages.capacity());
  std::byte* out = merged.pages.bytes().data();
  std::vector<std::size_t> next_head(nodes.size(), 0);
  std::vector<std::size_t> next_byte(nodes.size(), 0);
  head_number = 0;
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) {
      const std::size_t owner = owners[head_number++];
      const std::size_t bytes =
          head.first_rows.size() * static_cast<std::size_t>(request.page_bytes());
      if (replies[owner].has_value()) {
        const PageReply& reply = *replies[owner];
        merged.heads.push_back(reply.heads[next_head[owner]++]);
        std::memcpy(out, reply.pages.bytes().data() + next_byte[owner], bytes);
        next_byte[owner] += bytes;
      } else {
        merged.heads.push_back(all_failed(head, replies[owner].error()));
        std::memset(out, 0, bytes);
      }
      out += bytes;
    }
  }
  co_return merged;
}

Task<ListBuildsReply> ContextStore::list_builds(std::string name_space, Deadline deadline) {
  ListBuildsReply all;
  const auto nodes = nodes_.view();
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    ClusterNode& node = nodes->node(i);
    auto listing = node.contexts().list_builds(name_space, deadline);
    ICE_CO_TRY(ListBuildsReply reply, co_await node.ask(std::move(listing)));
    std::ranges::move(reply.builds, std::back_inserter(all.builds));
    for (TierUsage& usage : reply.tiers) {
      if (nodes->size() > 1) usage.name = node.address() + " " + usage.name;
      all.tiers.push_back(std::move(usage));
    }
  }
  co_return all;
}

}  // namespace icefield
