#include "cache_node/node_server.h"

#include "cache_node/node_messages.h"

namespace icefield {
namespace {

// A put's values and the checksums of their chunks.
constexpr std::int64_t kMaxPayloadBytes =
    kMaxRequestBytes + 8 * (kMaxRequestItems + kMaxRequestBytes / kValueChunkBytes);

template <class Message>
ServiceReply reply_with(const Message& message) {
  ServiceReply reply;
  reply.header = message.SerializeAsString();
  return reply;
}

Status too_many(std::int64_t items) {
  return Status(Code::kInvalidArgument, std::to_string(items) + " items in one request, at most " +
                                            std::to_string(kMaxRequestItems));
}

// Of a part of a build. Values are found by hashes of names that can be guessed: they have requests
// of their own, which check whose they are.
Result<ObjectKey> part_key(const std::string& bytes) {
  ICE_TRY(const ObjectKey key, ObjectKey::parse(as_bytes(bytes)));
  if (key.part.kind <= PartKind::kFingerprint) return key;
  return Status(Code::kInvalidArgument,
                "object of kind " + std::string(to_string(key.part.kind)) + ", no part of a build");
}

}  // namespace

// Values only: parts of builds are few and large.
std::unique_ptr<Landing> NodeServer::land(const Caller& caller, MethodId method,
                                          std::string_view header, std::int64_t payload_bytes) {
  if (payload_bytes > kMaxPayloadBytes) return nullptr;
  values_.expire();
  return values_.land(caller, static_cast<NodeMethod>(method), header, payload_bytes);
}

Task<ServiceReply> NodeServer::handle(const Caller& caller, MethodId method, std::string header,
                                      Payload payload) {
  if (payload.size() > kMaxPayloadBytes) {
    co_return Status(Code::kInvalidArgument,
                     "payload of " + std::to_string(payload.size()) + " bytes");
  }
  values_.expire();
  switch (static_cast<NodeMethod>(method)) {
    case NodeMethod::kPut:
      co_return co_await put(caller, header, std::as_const(payload.buffer).bytes());
    case NodeMethod::kGet: co_return co_await get(caller, header);
    case NodeMethod::kRemove: co_return co_await remove(caller, header);
    case NodeMethod::kMatch: co_return co_await match(caller, header);
    case NodeMethod::kReadPages: co_return co_await read_pages(caller, header);
    case NodeMethod::kListBuilds: co_return co_await list(caller, header);
    case NodeMethod::kStats: co_return stats(caller);
    case NodeMethod::kPing: co_return ServiceReply();
    default: break;
  }
  co_return co_await values_.handle(caller, static_cast<NodeMethod>(method), header,
                                    std::move(payload));
}

Task<ServiceReply> NodeServer::put(const Caller& caller, const std::string& header,
                                   ConstByteSpan payload) {
  ICE_CO_TRY(const auto request, parse_message<proto::PutRequest>(header));
  ICE_CO_TRY(check_grant(caller, request.name_space()));
  if (request.objects_size() > kMaxRequestItems) co_return too_many(request.objects_size());
  std::vector<PutObject> objects;
  for (const proto::ObjectHeader& item : request.objects()) {
    PutObject object;
    ICE_CO_TRY(object.key, part_key(item.key()));
    if (item.length() > payload.size()) {
      co_return Status(Code::kInvalidArgument, "objects are longer than the payload");
    }
    object.info = {.bytes = static_cast<std::int64_t>(item.length()), .checksum = item.checksum()};
    object.bytes = payload.first(item.length());
    payload = payload.subspan(item.length());
    objects.push_back(object);
  }
  ICE_CO_TRY(const std::vector<Status> statuses,
             co_await node_.put(caller, objects, namespace_id(request.name_space())));
  proto::PutReply reply;
  for (const Status& status : statuses) to_proto(status, reply.add_outcomes());
  co_return reply_with(reply);
}

Task<ServiceReply> NodeServer::get(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto request, parse_message<proto::GetRequest>(header));
  if (request.keys_size() > kMaxRequestItems) co_return too_many(request.keys_size());
  proto::GetReply message;
  ServiceReply reply;
  auto leases = std::make_shared<std::vector<ObjectBytes>>();
  std::int64_t total = 0;
  for (const std::string& bytes : request.keys()) {
    ICE_CO_TRY(const ObjectKey key, part_key(bytes));
    Result<ObjectBytes> object = co_await node_.get(caller, key, Verify::kByTier);
    proto::ObjectHeader* item = message.add_objects();
    item->set_key(bytes);
    Status status = object.status();
    if (status.ok() && total + object->size() > kMaxRequestBytes) {
      status = Status(Code::kResourceExhausted, "reply is full, ask for it again");
    }
    to_proto(status, message.add_outcomes());
    if (!status.ok()) continue;
    total += object->size();
    item->set_length(static_cast<std::uint64_t>(object->size()));
    for (const ConstByteSpan piece : object->pieces()) reply.payload.push_back(piece);
    leases->push_back(std::move(*object));
  }
  reply.header = message.SerializeAsString();
  reply.keep_alive = std::move(leases);
  co_return reply;
}

Task<ServiceReply> NodeServer::remove(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto request, parse_message<proto::RemoveRequest>(header));
  if (request.keys_size() > kMaxRequestItems) co_return too_many(request.keys_size());
  proto::RemoveReply reply;
  for (const std::string& bytes : request.keys()) {
    ICE_CO_TRY(const ObjectKey key, part_key(bytes));
    to_proto(co_await node_.remove(caller, key), reply.add_outcomes());
  }
  co_return reply_with(reply);
}

Task<ServiceReply> NodeServer::match(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto request, parse_message<proto::MatchRequest>(header));
  ICE_CO_TRY(check_grant(caller, request.name_space()));
  if (request.prefix_hashes_size() > kMaxRequestItems) {
    co_return too_many(request.prefix_hashes_size());
  }
  MatchQuery query{.name_space = request.name_space()};
  for (const std::string& bytes : request.prefix_hashes()) {
    ICE_CO_TRY(query.ends.emplace_back(), hash_from<PrefixHash>(bytes));
  }
  ICE_CO_TRY(query.fingerprint, hash_from<FingerprintHash>(request.fingerprint()));
  const MatchReply found = node_.match(query);
  proto::MatchReply reply;
  for (const StoredBuild& build : found.builds) to_proto(build, reply.add_builds());
  if (found.other_fingerprint.has_value()) {
    reply.set_other_fingerprint(hash_bytes(*found.other_fingerprint));
  }
  co_return reply_with(reply);
}

Task<ServiceReply> NodeServer::read_pages(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto message, parse_message<proto::ReadPagesRequest>(header));
  ICE_CO_TRY(const PageRequest request, from_proto(message));
  auto pages = std::make_shared<Buffer>(request.page_count() * request.page_bytes());
  pages->resize(pages->capacity());
  ICE_CO_TRY(const std::vector<HeadOutcome> outcomes,
             co_await node_.read_pages(caller, request, pages->bytes().data()));
  proto::ReadPagesReply answer;
  for (const HeadOutcome& outcome : outcomes) to_proto(outcome, answer.add_heads());
  ServiceReply reply = reply_with(answer);
  reply.payload.push_back(std::as_const(*pages).bytes());
  reply.keep_alive = std::move(pages);
  co_return reply;
}

Task<ServiceReply> NodeServer::list(const Caller& caller, const std::string& header) {
  ICE_CO_TRY(const auto request, parse_message<proto::ListBuildsRequest>(header));
  const bool every = request.name_space().empty();
  ICE_CO_TRY(check_grant(caller, every ? "*" : request.name_space()));
  const NamespaceId name_space = namespace_id(request.name_space());
  const ListBuildsReply listed = node_.list();
  proto::ListBuildsReply reply;
  for (const StoredBuild& build : listed.builds) {
    if (every || build.name_space == name_space) to_proto(build, reply.add_builds());
  }
  for (const TierUsage& usage : listed.tiers) to_proto(usage, reply.add_tiers());
  co_return reply_with(reply);
}

// Tiers and counters are of everybody's objects together: they are for who may use them all.
ServiceReply NodeServer::stats(const Caller& caller) const {
  const NodeStats stats = node_.stats();
  proto::NodeStatsReply reply;
  if (caller.may_use("*")) {
    for (const TierUsage& usage : stats.tiers) to_proto(usage, reply.add_tiers());
    const auto add = [&reply](const std::string& name, std::int64_t value) {
      proto::NamedCount* out = reply.add_counters();
      out->set_name(name);
      out->set_value(static_cast<std::uint64_t>(value));
    };
    for (const NamedCount& counter : stats.counters) add(counter.name, counter.value);
    for (const Counter* counter : values_.counters()) add(counter->name(), counter->value());
  }
  for (const NamespaceStats& space : stats.namespaces) {
    if (!caller.may_use(space.name_space)) continue;
    proto::NamespaceStats* out = reply.add_namespaces();
    out->set_name_space(space.name_space);
    out->set_flush_number(space.flush_number);
    out->set_value_count(static_cast<std::uint64_t>(space.value_count));
    out->set_value_bytes(static_cast<std::uint64_t>(space.value_bytes));
  }
  return reply_with(reply);
}

}  // namespace icefield
