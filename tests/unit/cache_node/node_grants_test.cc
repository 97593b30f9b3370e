// A node as callers with tokens meet it: what they may read, write and be told.
#include <gtest/gtest.h>

#include "cache_node/node_messages.h"
#include "cache_node/node_server.h"
#include "cache_node/value_records.h"
#include "tests/support/node_fixture.h"

namespace icefield {
namespace {

class NodeGrantsTest : public NodeTest {
 protected:
  static Caller grant(std::vector<std::string> spaces) {
    return Caller(TokenGrant{.token = "a-token-that-is-long", .namespaces = std::move(spaces)});
  }
  Result<ServiceReply> ask(const Caller& caller, NodeMethod method,
                           const google::protobuf::Message& message, Buffer payload = Buffer(0)) {
    return wait(*node_, server_.handle(caller, static_cast<MethodId>(method),
                                       message.SerializeAsString(), std::move(payload)));
  }
  // The outcome of one object.
  Status put(const Caller& caller, const std::string& name_space, const ObjectKey& key,
             ConstByteSpan bytes) {
    proto::PutRequest message;
    message.set_name_space(name_space);
    to_proto(key, info_of(key, bytes), message.add_objects());
    Buffer payload(std::ssize(bytes));
    payload.resize(payload.capacity());
    std::ranges::copy(bytes, payload.bytes().begin());
    const auto reply = ask(caller, NodeMethod::kPut, message, std::move(payload));
    if (!reply.has_value()) return reply.error();
    return from_proto(parse_message<proto::PutReply>(reply->header).value().outcomes(0));
  }
  Status put_parts(const Caller& caller, const std::string& name_space, const BuiltSegment& built) {
    for (std::size_t i = 0; i < built.manifest.parts.size(); ++i) {
      ICE_TRY(put(caller, name_space, key_of(built, built.manifest.parts[i].id), built.part(i)));
    }
    return Status();
  }
  Status commit(const Caller& caller, const std::string& name_space, const BuiltSegment& built) {
    return put(caller, name_space, key_of(built, {}), built.manifest_bytes);
  }
  Status get(const Caller& caller, const ObjectKey& key) {
    proto::GetRequest message;
    message.add_keys(key_bytes(key));
    const ServiceReply reply = ask(caller, NodeMethod::kGet, message).value();
    const auto answer = parse_message<proto::GetReply>(reply.header).value();
    const Status status = from_proto(answer.outcomes(0));
    EXPECT_EQ(status.ok(), payload_bytes(reply.payload) > 0);
    return status;
  }
  Status read_page(const Caller& caller, const BuiltSegment& built) {
    proto::ReadPagesRequest message;
    to_proto(pages_of(built, {7}), &message);
    const ServiceReply reply = ask(caller, NodeMethod::kReadPages, message).value();
    const auto answer = parse_message<proto::ReadPagesReply>(reply.header).value();
    const Status status = from_proto(answer.heads(0).outcome());
    const ConstByteSpan page = reply.payload.front();
    EXPECT_EQ(status.ok(), std::ranges::any_of(page, [](std::byte b) { return b != std::byte{}; }));
    return status;
  }
  Status remove(const Caller& caller, const ObjectKey& key) {
    proto::RemoveRequest message;
    message.add_keys(key_bytes(key));
    const ServiceReply reply = ask(caller, NodeMethod::kRemove, message).value();
    return from_proto(parse_message<proto::RemoveReply>(reply.header).value().outcomes(0));
  }
  bool stored(const ObjectKey& key) { return node_->memory().find(key).has_value(); }
  static bool never_stored(const Status& status) {
    return status.code() == Code::kNotFound && status.reason() == MissReason::kNeverStored;
  }

  NodeServer server_{node_->node()};
  const Caller everybody_;
  const Caller ours_ = grant({"ours"});
  const Caller theirs_ = grant({"theirs", "nobody"});
};

TEST_F(NodeGrantsTest, TokenOpensItsNamespacesOnly) {
  for (const std::string name_space : {"ours", "", "theirs"}) {
    const Code expected = name_space == "theirs" ? Code::kOk : Code::kFailedPrecondition;
    proto::MatchRequest match;
    match.set_fingerprint(std::string(16, 'f'));
    match.set_name_space(name_space);
    EXPECT_EQ(ask(theirs_, NodeMethod::kMatch, match).status().code(), expected) << name_space;
    proto::PutRequest put;
    put.set_name_space(name_space);
    EXPECT_EQ(ask(theirs_, NodeMethod::kPut, put).status().code(), expected) << name_space;
    proto::ListBuildsRequest list;
    list.set_name_space(name_space);
    EXPECT_EQ(ask(theirs_, NodeMethod::kListBuilds, list).status().code(), expected) << name_space;
  }
  // What is asked for by build: ours are to them as those that nobody has.
  const BuiltSegment built = build(1, 0, 256, "ours");
  const BuiltSegment absent = build(2, 0, 256, "ours");
  ASSERT_TRUE(publish(*node_, built).ok());
  const ObjectKey manifest = key_of(built, {});
  const ObjectKey extent = key_of(built, {.kind = PartKind::kExtent, .layer = 1, .kv_head = 1});
  for (const BuiltSegment* asked : {&built, &absent}) {
    EXPECT_TRUE(never_stored(get(theirs_, key_of(*asked, {}))));
    EXPECT_TRUE(never_stored(get(theirs_, key_of(*asked, extent.part))));
    EXPECT_TRUE(never_stored(read_page(theirs_, *asked)));
    EXPECT_TRUE(remove(theirs_, key_of(*asked, {})).ok());
    EXPECT_TRUE(remove(theirs_, key_of(*asked, extent.part)).ok());
    EXPECT_EQ(commit(theirs_, "theirs", *asked).code(), Code::kFailedPrecondition);
    EXPECT_EQ(commit(theirs_, "theirs", *asked).message(),
              "manifest of another namespace than the request");
  }
  for (const Caller& caller : {everybody_, ours_, grant({"*"}), grant({"theirs", "ours"})}) {
    EXPECT_TRUE(get(caller, manifest).ok());
    EXPECT_TRUE(get(caller, extent).ok());
    EXPECT_TRUE(read_page(caller, built).ok());
  }
  EXPECT_EQ(build_count(*node_), 1);
}

TEST_F(NodeGrantsTest, ATokenStoresReadsAndRemovesItsOwnBuilds) {
  const BuiltSegment built = build(1, 0, 256, "ours");
  const std::int64_t before = node_->memory().usage().object_count;
  ASSERT_TRUE(put_parts(ours_, "ours", built).ok());
  ASSERT_TRUE(commit(ours_, "ours", built).ok());
  EXPECT_TRUE(get(ours_, key_of(built, {})).ok());
  EXPECT_TRUE(read_page(ours_, built).ok());
  EXPECT_TRUE(remove(ours_, key_of(built, {})).ok());
  EXPECT_EQ(build_count(*node_), 0);
  // As ever, the manifest first; its parts are still theirs to remove.
  const ObjectKey first = key_of(built, built.manifest.parts.front().id);
  EXPECT_TRUE(remove(theirs_, first).ok());
  EXPECT_TRUE(stored(first));
  for (const PartEntry& part : built.manifest.parts) {
    EXPECT_TRUE(remove(ours_, key_of(built, part.id)).ok());
  }
  EXPECT_EQ(node_->memory().usage().object_count, before);
}

TEST_F(NodeGrantsTest, NobodyAddsToAnothersBuild) {
  const BuiltSegment built = build(1, 0, 256, "ours");
  const auto part = [&](std::size_t i) { return key_of(built, built.manifest.parts[i].id); };
  const Bytes other(1000, std::byte{1});
  // While it is being written.
  ASSERT_TRUE(put(ours_, "ours", part(0), built.part(0)).ok());
  EXPECT_TRUE(put(theirs_, "theirs", part(1), other).ok()) << "as a second put would be";
  EXPECT_FALSE(stored(part(1)));
  EXPECT_TRUE(never_stored(get(theirs_, part(0))));
  EXPECT_TRUE(remove(theirs_, part(0)).ok());
  EXPECT_TRUE(stored(part(0)));
  ASSERT_TRUE(put_parts(ours_, "ours", built).ok());
  ASSERT_TRUE(commit(ours_, "ours", built).ok());
  // And afterwards, where something of it is missing.
  ASSERT_TRUE(remove(ours_, part(1)).ok());
  EXPECT_TRUE(put(theirs_, "theirs", part(1), other).ok());
  EXPECT_FALSE(stored(part(1)));
  EXPECT_TRUE(put(ours_, "ours", part(1), built.part(1)).ok());
  EXPECT_TRUE(stored(part(1)));
}

// Who knows what a build will be called may come first with its parts, even with the right ones.
TEST_F(NodeGrantsTest, PartsOfAnotherNamespaceAreNotCommitted) {
  const BuiltSegment built = build(1, 0, 256, "ours");
  ASSERT_TRUE(put_parts(theirs_, "theirs", built).ok());
  const ObjectKey first = key_of(built, built.manifest.parts.front().id);
  EXPECT_TRUE(never_stored(get(theirs_, first))) << "nothing of a build is read before its commit";
  EXPECT_TRUE(put_parts(ours_, "ours", built).ok());
  const Status refused = commit(ours_, "ours", built);
  EXPECT_EQ(refused.code(), Code::kFailedPrecondition);
  EXPECT_NE(refused.message().find("part missing"), std::string::npos) << refused.to_string();
  EXPECT_FALSE(stored(first)) << "the manifest proves whose they are";
  ASSERT_TRUE(put_parts(ours_, "ours", built).ok());
  EXPECT_TRUE(commit(ours_, "ours", built).ok());
  // Without tokens in force namespaces are a matter of order.
  const BuiltSegment open = build(2, 0, 256, "ours");
  ASSERT_TRUE(put_parts(everybody_, "", open).ok());
  EXPECT_TRUE(commit(everybody_, "ours", open).ok());
}

TEST_F(NodeGrantsTest, TextsOfFingerprintsAreReadByThoseWhoHaveBuildsOfThem) {
  ObjectKey text;
  text.segment.bytes = fingerprint_hash("model\n").bytes;
  text.part.kind = PartKind::kFingerprint;
  ASSERT_TRUE(publish(*node_, build(1, 0, 256, "ours")).ok());
  EXPECT_TRUE(get(ours_, text).ok());
  EXPECT_TRUE(never_stored(get(theirs_, text)));
  EXPECT_TRUE(remove(theirs_, text).ok());
  EXPECT_TRUE(stored(text));
  const std::string_view wrong = "another model\n";
  EXPECT_EQ(put(theirs_, "theirs", text, as_bytes(wrong)).code(), Code::kInvalidArgument);
  ASSERT_TRUE(publish(*node_, build(2, 0, 256, "theirs")).ok());
  EXPECT_TRUE(get(theirs_, text).ok());
}

// Whoever can read something of the slab by itself can read all of it.
TEST_F(NodeGrantsTest, OnlyWhoMayUseEverythingIsToldWhereValuesAre) {
  const ByteSpan memory = node_->memory().memory();
  NodeServer server(node_->node(), system_clock(), {.bytes = memory, .key = "key of the slab"});
  const ConnectionFacts near{.number = 1, .one_sided = true};
  const ConnectionFacts far{.number = 2, .one_sided = false};
  constexpr std::size_t kBytes = 20'000;
  const Bytes value(kBytes, std::byte{5});
  const ValueHash hash = value_hash("ours", 0, "k");
  const ConstByteSpan part = value;
  const std::uint64_t checksum = object_checksum(value_chunk_key(hash, 1, 0), std::span(&part, 1));
  proto::PutValuesRequest put;
  put.mutable_scope()->set_name_space("ours");
  put.mutable_keys()->set_text("k");
  put.mutable_keys()->add_lengths(1);
  put.add_value_bytes(kBytes);
  put.add_first_chunks(0);
  put.add_chunk_counts(1);
  Buffer payload(kBytes + sizeof checksum);
  payload.resize(payload.capacity());
  std::ranges::copy(value, payload.bytes().begin());
  store(payload.bytes().data() + kBytes, checksum);
  ASSERT_TRUE(wait(*node_, server.handle(Caller(), static_cast<MethodId>(NodeMethod::kPutValues),
                                         put.SerializeAsString(), std::move(payload)))
                  .has_value());

  proto::GetValuesRequest get;
  get.mutable_scope()->set_name_space("ours");
  *get.mutable_keys() = put.keys();
  get.add_offsets(0);
  get.add_rooms(kBytes);
  const auto ask = [&](const Caller& caller) {
    const ServiceReply reply =
        wait(*node_, server.handle(caller, static_cast<MethodId>(NodeMethod::kGetValues),
                                   get.SerializeAsString(), Buffer(0)))
            .value();
    const auto answer = parse_message<proto::GetValuesReply>(reply.header).value();
    EXPECT_EQ(payload_bytes(reply.payload),
              answer.has_placed() ? 0 : static_cast<std::int64_t>(kBytes));
    return answer;
  };
  EXPECT_FALSE(ask(Caller().over(near)).has_placed()) << "an older client does not ask for it";
  get.set_locate(true);
  EXPECT_FALSE(ask(grant({"ours"}).over(near)).has_placed());
  EXPECT_FALSE(ask(grant({"ours", "theirs"}).over(near)).has_placed());
  EXPECT_FALSE(ask(Caller().over(far)).has_placed());
  EXPECT_FALSE(ask(grant({"*"}).over(far)).has_placed());
  for (const Caller& caller : {Caller().over(near), grant({"*"}).over(near)}) {
    const proto::PlacedPayload placed = ask(caller).placed();
    EXPECT_EQ(placed.region_key(), "key of the slab");
    ASSERT_EQ(placed.offsets_size(), 1);
    EXPECT_TRUE(std::ranges::equal(memory.subspan(placed.offsets(0), placed.lengths(0)), value));
  }
  get.set_region(xxh3(as_bytes("key of the slab"), 0));
  EXPECT_TRUE(ask(Caller().over(near)).placed().region_key().empty()) << "known already";
  EXPECT_EQ(server.values().leases().count(), 3);
  get.set_unreachable(true);
  EXPECT_FALSE(ask(Caller().over(near)).has_placed());
  server.closed(Caller().over(near));
  EXPECT_EQ(server.values().leases().count(), 0);
}

// The hashes of values can be computed by whoever guesses a name: no token reads, forges or removes
// them as if they were parts of a build.
TEST_F(NodeGrantsTest, ObjectsOfValuesAreNoPartsOfBuilds) {
  NodeServer server(node_->node());
  const Caller theirs(TokenGrant{.token = "a-token-that-is-theirs", .namespaces = {"theirs"}});
  const ValueHash hash = value_hash("ours", 0, "key");
  NamespaceRecord record{.flush_number = 1, .name_space = "ours"};
  for (const ObjectKey& key : {value_chunk_key(hash, 1, 0), value_name_key(hash), record.key()}) {
    const auto ask = [&](NodeMethod method, const std::string& header) {
      return wait(*node_, server.handle(theirs, static_cast<MethodId>(method), header, Buffer(0)))
          .status()
          .code();
    };
    proto::GetRequest get;
    get.add_keys(key_bytes(key));
    EXPECT_EQ(ask(NodeMethod::kGet, get.SerializeAsString()), Code::kInvalidArgument);
    proto::RemoveRequest remove;
    remove.add_keys(key_bytes(key));
    EXPECT_EQ(ask(NodeMethod::kRemove, remove.SerializeAsString()), Code::kInvalidArgument);
    proto::PutRequest put;
    put.set_name_space("theirs");
    to_proto(key, info_of(key, {}), put.add_objects());
    EXPECT_EQ(ask(NodeMethod::kPut, put.SerializeAsString()), Code::kInvalidArgument);
  }
}

TEST_F(NodeGrantsTest, StatsTellATokenOfItsOwnNamespaces) {
  NodeServer server(node_->node());
  const auto spaces = [&](std::vector<std::string> grants) {
    const Caller caller(TokenGrant{.token = "a-token-that-is-long", .namespaces = grants});
    const auto method = static_cast<MethodId>(NodeMethod::kStats);
    const ServiceReply reply =
        wait(*node_, server.handle(caller, method, std::string(), Buffer(0))).value();
    const auto stats = parse_message<proto::NodeStatsReply>(reply.header).value();
    EXPECT_EQ(stats.tiers_size() > 0, grants.front() == "*");
    EXPECT_EQ(stats.counters_size() > 0, grants.front() == "*");
    std::vector<std::string> names;
    for (const auto& space : stats.namespaces()) names.push_back(space.name_space());
    return names;
  };
  for (const std::string_view name_space : {"ours", "theirs"}) {
    PutValues put;
    put.scope.name_space = name_space;
    const std::uint64_t checksum =
        object_checksum(value_chunk_key(value_hash(name_space, 0, "k"), 1, 0), {});
    put.values.push_back({.key = "k", .checksums = std::span(&checksum, 1)});
    std::vector<IncomingChunk> chunks = node_->node().values().reserve(put);
    chunks.front().checksum = checksum;
    auto putting = node_->node().values().put(put, chunks);
    ASSERT_TRUE(wait(*node_, std::move(putting)).value().outcomes.front().has_value());
  }
  EXPECT_EQ(spaces({"*"}), (std::vector<std::string>{"ours", "theirs"}));
  EXPECT_EQ(spaces({"theirs", "nobody"}), (std::vector<std::string>{"theirs"}));
}

}  // namespace
}  // namespace icefield
