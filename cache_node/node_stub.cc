#include "cache_node/node_stub.h"

#include "cache_node/node_messages.h"
#include "cache_node/stub_call.h"

namespace icefield {

Status NodeStub::impossible(const std::string& what) const {
  return Status(Code::kInternal, "node " + node_ + " answered " + what);
}

Task<std::vector<Status>> NodeStub::put(std::vector<PutObject> objects, std::string name_space,
                                        Deadline deadline) {
  proto::PutRequest request;
  request.set_name_space(name_space);
  std::vector<ConstByteSpan> payload;
  for (const PutObject& object : objects) {
    to_proto(object.key, object.info, request.add_objects());
    payload.push_back(object.bytes);
  }
  ICE_CO_TRY(const Reply reply, co_await call_node(transport_, node_, NodeMethod::kPut, request,
                                                   std::move(payload), Buffer(0), deadline));
  ICE_CO_TRY(const auto message, parse_message<proto::PutReply>(reply.header));
  if (message.outcomes_size() != static_cast<int>(objects.size())) {
    co_return impossible("another number of outcomes");
  }
  std::vector<Status> statuses;
  for (const proto::Outcome& outcome : message.outcomes()) statuses.push_back(from_proto(outcome));
  co_return statuses;
}

Task<GetReply> NodeStub::get(std::vector<ObjectKey> keys, std::int64_t capacity,
                             Deadline deadline) {
  proto::GetRequest request;
  for (const ObjectKey& key : keys) request.add_keys(key_bytes(key));
  ICE_CO_TRY(Reply reply, co_await call_node(transport_, node_, NodeMethod::kGet, request, {},
                                             Buffer(capacity), deadline));
  ICE_CO_TRY(const auto message, parse_message<proto::GetReply>(reply.header));
  if (message.outcomes_size() != static_cast<int>(keys.size()) ||
      message.objects_size() != static_cast<int>(keys.size())) {
    co_return impossible("another number of objects");
  }
  GetReply result;
  ConstByteSpan rest = std::as_const(reply.payload).bytes();
  for (int i = 0; i < message.objects_size(); ++i) {
    GetItem item;
    item.status = from_proto(message.outcomes(i));
    if (item.status.ok()) {
      const std::uint64_t length = message.objects(i).length();
      if (length > rest.size()) co_return impossible("objects longer than its payload");
      item.info.bytes = static_cast<std::int64_t>(length);
      item.bytes = rest.first(length);
      rest = rest.subspan(length);
    }
    result.items.push_back(std::move(item));
  }
  result.payload = std::move(reply.payload);
  co_return result;
}

Task<std::vector<Status>> NodeStub::remove(std::vector<ObjectKey> keys, Deadline deadline) {
  proto::RemoveRequest request;
  for (const ObjectKey& key : keys) request.add_keys(key_bytes(key));
  ICE_CO_TRY(const Reply reply, co_await call_node(transport_, node_, NodeMethod::kRemove, request,
                                                   {}, Buffer(0), deadline));
  ICE_CO_TRY(const auto message, parse_message<proto::RemoveReply>(reply.header));
  if (message.outcomes_size() != static_cast<int>(keys.size())) {
    co_return impossible("another number of outcomes");
  }
  std::vector<Status> statuses;
  for (const proto::Outcome& outcome : message.outcomes()) statuses.push_back(from_proto(outcome));
  co_return statuses;
}

Task<MatchReply> NodeStub::match(MatchQuery query, Deadline deadline) {
  proto::MatchRequest request;
  request.set_name_space(query.name_space);
  for (const PrefixHash& end : query.ends) request.add_prefix_hashes(hash_bytes(end));
  request.set_fingerprint(hash_bytes(query.fingerprint));
  ICE_CO_TRY(const Reply reply, co_await call_node(transport_, node_, NodeMethod::kMatch, request,
                                                   {}, Buffer(0), deadline));
  ICE_CO_TRY(const auto message, parse_message<proto::MatchReply>(reply.header));
  MatchReply result;
  for (const proto::StoredBuild& build : message.builds()) {
    ICE_CO_TRY(result.builds.emplace_back(), from_proto(build));
  }
  if (!message.other_fingerprint().empty()) {
    ICE_CO_TRY(result.other_fingerprint, hash_from<FingerprintHash>(message.other_fingerprint()));
  }
  co_return result;
}

Task<PageReply> NodeStub::read_pages(PageRequest request, Deadline deadline) {
  proto::ReadPagesRequest message;
  to_proto(request, &message);
  const std::int64_t bytes = request.page_count() * request.page_bytes();
  ICE_CO_TRY(Reply reply, co_await call_node(transport_, node_, NodeMethod::kReadPages, message, {},
                                             Buffer(bytes), deadline));
  ICE_CO_TRY(const auto answer, parse_message<proto::ReadPagesReply>(reply.header));
  std::size_t head_count = 0;
  for (const std::vector<HeadPages>& heads : request.contexts) head_count += heads.size();
  if (reply.payload.size() != bytes || answer.heads_size() != static_cast<int>(head_count)) {
    co_return impossible("another number of pages");
  }
  PageReply result;
  for (const proto::HeadOutcome& outcome : answer.heads()) {
    ICE_CO_TRY(result.heads.emplace_back(), from_proto(outcome));
  }
  result.pages = std::move(reply.payload);
  co_return result;
}

Task<ListBuildsReply> NodeStub::list_builds(std::string name_space, Deadline deadline) {
  proto::ListBuildsRequest request;
  request.set_name_space(name_space);
  ICE_CO_TRY(const Reply reply, co_await call_node(transport_, node_, NodeMethod::kListBuilds,
                                                   request, {}, Buffer(0), deadline));
  ICE_CO_TRY(const auto message, parse_message<proto::ListBuildsReply>(reply.header));
  ListBuildsReply result;
  for (const proto::StoredBuild& build : message.builds()) {
    ICE_CO_TRY(result.builds.emplace_back(), from_proto(build));
  }
  for (const proto::TierUsage& usage : message.tiers()) result.tiers.push_back(from_proto(usage));
  co_return result;
}

}  // namespace icefield
