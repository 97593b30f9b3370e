// cache_node/node_messages.h — domain types to and from the messages of proto/icefield.proto. For
// the node's server and stub only.
#pragma once

#include "cache_node/messages.h"
#include "proto/icefield.pb.h"

namespace icefield {

void to_proto(const Status& status, proto::Outcome* out);
Status from_proto(const proto::Outcome& outcome);

void to_proto(const ObjectKey& key, const ObjectInfo& info, proto::ObjectHeader* out);

void to_proto(const StoredBuild& build, proto::StoredBuild* out);
Result<StoredBuild> from_proto(const proto::StoredBuild& build);

void to_proto(const PageRequest& request, proto::ReadPagesRequest* out);
// Validated: kInvalidArgument when a node cannot answer it.
Result<PageRequest> from_proto(const proto::ReadPagesRequest& request);

void to_proto(const HeadOutcome& outcome, proto::HeadOutcome* out);
Result<HeadOutcome> from_proto(const proto::HeadOutcome& outcome);

void to_proto(const TierUsage& usage, proto::TierUsage* out);
TierUsage from_proto(const proto::TierUsage& usage);

// Ok when the token of a connection grants the namespace that a request names, which is checked
// before anything of it is done. What is asked for by build is the node's to check, per build.
Status check_grant(const Caller& caller, const std::string& name_space);

template <class Hash>
Result<Hash> hash_from(std::string_view bytes) {
  Hash hash;
  if (bytes.size() != hash.bytes.size()) {
    return Status(Code::kInvalidArgument, "hash of " + std::to_string(bytes.size()) + " bytes");
  }
  std::memcpy(hash.bytes.data(), bytes.data(), bytes.size());
  return hash;
}
inline std::string hash_bytes(const Hash128& hash) { return std::string(as_text(hash.span())); }
inline std::string key_bytes(const ObjectKey& key) { return std::string(as_text(key.bytes())); }

// Parses a message that came over the wire.
template <class Message>
Result<Message> parse_message(std::string_view bytes) {
  Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return Status(Code::kInvalidArgument,
                  "message of " + std::to_string(bytes.size()) + " bytes cannot be decoded");
  }
  return message;
}

}  // namespace icefield
