// A node behind its server and stub: commits, matches, page reads, recovery, bad requests.
#include "cache_node/node.h"

#include <gtest/gtest.h>

#include <map>

#include "cache_node/node_messages.h"
#include "cache_node/node_server.h"
#include "cache_node/value_records.h"
#include "common/fingerprint.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

class NodeTest : public testing::Test {
 protected:
  BuiltSegment build(std::uint64_t seed, std::int64_t first_token = 0, std::int32_t tokens = 256,
                     std::string name_space = "") {
    const FakeSequence sequence(seed, kShape, tokens);
    ThreadPool pool(1);
    SegmentName name{.first_token = first_token, .token_count = tokens};
    name.end.bytes[0] = static_cast<std::byte>(seed);
    return build_segment({.name_space = std::move(name_space),
                          .name = name,
                          .fingerprint = fingerprint_hash("model\n"),
                          .model = kShape,
                          .slice = Slice::whole(kShape),
                          .read_rows =
                              [&](std::int32_t layer, std::int32_t head, Bf16* out) {
                                std::ranges::copy(
                                    sequence.rows[static_cast<std::size_t>(layer * 2 + head)], out);
                              }},
                         cpu_kernels(), pool)
        .value();
  }
  template <class R>
  R wait(EmbeddedNode& node, asio::awaitable<R> task) {
    return sync_wait(node.executor(), std::move(task));
  }
  Status publish(EmbeddedNode& node, const BuiltSegment& built) {
    return wait(node, node.store().publish(built, "model\n", Deadline::never()));
  }
  static ObjectKey key_of(const BuiltSegment& built, const PartId& part) {
    return {.segment = built.manifest.segment.id(), .build = built.build, .part = part};
  }
  std::int64_t build_count(EmbeddedNode& node) {
    return static_cast<std::int64_t>(
        wait(node, node.store().list_builds("", Deadline::never())).value().builds.size());
  }
  static PageRequest pages_of(const BuiltSegment& built, std::vector<std::uint16_t> rows,
                              std::int32_t page_rows = 1) {
    PageRequest request{.page_rows = page_rows, .row_bytes = 256};
    request.contexts.push_back({{.segment = built.manifest.segment.id(),
                                 .build = built.build,
                                 .layer = 1,
                                 .kv_head = 1,
                                 .first_rows = std::move(rows)}});
    return request;
  }

  TempDir dir_;
  std::unique_ptr<EmbeddedNode> node_ = EmbeddedNode::open({.dram_bytes = 16 << 20}).value();
};

TEST_F(NodeTest, ManifestBeforeItsPartsIsRefused) {
  const BuiltSegment built = build(1);
  const ObjectKey key = key_of(built, {.kind = PartKind::kManifest});
  std::vector<PutObject> objects = {
      {.key = key, .info = info_of(key, built.manifest_bytes), .bytes = built.manifest_bytes}};
  const auto statuses = wait(*node_, node_->stub().put(objects, "", Deadline::never())).value();
  EXPECT_EQ(statuses[0].code(), Code::kFailedPrecondition) << statuses[0].to_string();
  EXPECT_EQ(build_count(*node_), 0);
}

TEST_F(NodeTest, PublishedBuildIsFoundByItsEnd) {
  const BuiltSegment built = build(1);
  ASSERT_TRUE(publish(*node_, built).ok());
  std::vector<PrefixHash> ends = {built.manifest.segment.end};
  const MatchReply reply =
      wait(*node_, node_->stub().match({.ends = ends, .fingerprint = built.manifest.fingerprint},
                                       Deadline::never()))
          .value();
  ASSERT_EQ(reply.builds.size(), 1u);
  EXPECT_EQ(reply.builds[0].segment, built.manifest.segment);
  EXPECT_EQ(reply.builds[0].build, built.build);
  EXPECT_EQ(reply.builds[0].stored_bytes, built.manifest.part_bytes());
  EXPECT_FALSE(reply.other_fingerprint.has_value());
  ends = {built.manifest.segment.before};
  const MatchReply nothing =
      wait(*node_, node_->stub().match({.ends = ends, .fingerprint = fingerprint_hash("other")},
                                       Deadline::never()))
          .value();
  EXPECT_TRUE(nothing.builds.empty());
  EXPECT_EQ(nothing.other_fingerprint, built.manifest.fingerprint);
  ASSERT_TRUE(
      wait(*node_, node_->store().remove(built.manifest, built.build, Deadline::never())).ok());
  ends = {built.manifest.segment.before};
  EXPECT_FALSE(
      wait(*node_, node_->stub().match({.ends = ends, .fingerprint = fingerprint_hash("other")},
                                       Deadline::never()))
          .value()
          .other_fingerprint.has_value());
}

TEST_F(NodeTest, ApproximateBuildsAreNotFoundByPrefix) {
  BuiltSegment built = build(1);
  built.manifest.segment.origin.approx_tag = 99;
  // Checksums are seeded by the segment's id, which the tag changes.
  for (std::size_t i = 0; i < built.manifest.parts.size(); ++i) {
    built.manifest.parts[i].checksum =
        xxh3(built.part(i), checksum_seed(key_of(built, built.manifest.parts[i].id)));
  }
  built.manifest_bytes = built.manifest.serialise();
  built.build = build_id(built.manifest_bytes);
  ASSERT_TRUE(publish(*node_, built).ok());
  std::vector<PrefixHash> ends = {built.manifest.segment.end};
  EXPECT_TRUE(
      wait(*node_, node_->stub().match({.ends = ends, .fingerprint = built.manifest.fingerprint},
                                       Deadline::never()))
          .value()
          .builds.empty());
  EXPECT_EQ(build_count(*node_), 1);
}

TEST_F(NodeTest, BytesThatDoNotHaveTheirChecksumAreRefused) {
  const ObjectKey key = key_of(build(1), {.kind = PartKind::kExtent});
  SeededRng rng(1);
  Bytes bytes = random_bytes(rng, 1000);
  const ObjectInfo info = info_of(key, bytes);
  bytes[500] ^= std::byte{1};
  std::vector<PutObject> objects = {{.key = key, .info = info, .bytes = bytes}};
  const auto statuses = wait(*node_, node_->stub().put(objects, "", Deadline::never())).value();
  EXPECT_EQ(statuses[0].code(), Code::kDataLoss);
  std::vector<ObjectKey> keys = {key};
  EXPECT_EQ(
      wait(*node_, node_->stub().get(keys, 2000, Deadline::never())).value().items[0].status.code(),
      Code::kNotFound);
}

TEST_F(NodeTest, PagesOfEverySizeAreTheRows) {
  const BuiltSegment built = build(1);
  ASSERT_TRUE(publish(*node_, built).ok());
  const ConstByteSpan rows = built.rows[3];  // layer 1, KV head 1
  for (const std::int32_t page_rows : {1, 2, 4, 8, 16}) {
    const std::vector<std::uint16_t> first = {0, static_cast<std::uint16_t>(16), 48, 240};
    const PageReply reply =
        wait(*node_, node_->stub().read_pages(pages_of(built, first, page_rows), Deadline::never()))
            .value();
    ASSERT_TRUE(reply.heads[0].status.ok());
    const auto page_bytes = static_cast<std::size_t>(page_rows) * 256;
    for (std::size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(reply.pages.bytes().subspan(i * page_bytes, page_bytes),
                                     rows.subspan(first[i] * std::size_t{256}, page_bytes)));
    }
  }
}

TEST_F(NodeTest, PagesThatAreNotThereFailAlone) {
  const BuiltSegment built = build(1, 0, 1024);
  ASSERT_TRUE(publish(*node_, built).ok());
  std::vector<ObjectKey> lost = {
      key_of(built, {.kind = PartKind::kExtent, .layer = 1, .kv_head = 1, .extent = 2})};
  ASSERT_TRUE(wait(*node_, node_->stub().remove(lost, Deadline::never())).has_value());
  PageRequest request = pages_of(built, {3, 513, 600, 1000});
  request.contexts.push_back(request.contexts[0]);
  request.contexts[1][0].layer = 0;
  const PageReply reply =
      wait(*node_, node_->stub().read_pages(std::move(request), Deadline::never())).value();
  EXPECT_EQ(reply.heads[0].status.code(), Code::kNotFound);
  EXPECT_EQ(reply.heads[0].failed_pages, (std::vector<std::uint16_t>{1, 2}));
  EXPECT_TRUE(reply.heads[1].status.ok());
  const ConstByteSpan rows = built.rows[3];
  EXPECT_TRUE(
      std::ranges::equal(reply.pages.bytes().subspan(3 * 256, 256), rows.subspan(1000 * 256, 256)));
}

TEST_F(NodeTest, RestartKnowsWhatWasPublished) {
  const BuiltSegment built = build(1);
  {
    const auto first = EmbeddedNode::open({.dram_bytes = 16 << 20, .store = dir_.path()}).value();
    ASSERT_TRUE(publish(*first, built).ok());
  }
  const auto second = EmbeddedNode::open({.dram_bytes = 16 << 20, .store = dir_.path()}).value();
  EXPECT_EQ(build_count(*second), 1);
  const PageReply reply =
      wait(*second, second->stub().read_pages(pages_of(built, {7}), Deadline::never())).value();
  EXPECT_TRUE(reply.heads[0].status.ok());
  EXPECT_TRUE(
      std::ranges::equal(reply.pages.bytes(), ConstByteSpan(built.rows[3]).subspan(7 * 256, 256)));
}

// A writer that was killed between its parts and its manifest: the parts are removed at the next
// start, what others stored is not.
TEST_F(NodeTest, HalfABuildIsRemovedAtTheNextStart) {
  const BuiltSegment whole = build(1);
  const BuiltSegment half = build(2);
  std::int64_t objects = 0;
  {
    const auto first = EmbeddedNode::open({.dram_bytes = 16 << 20, .store = dir_.path()}).value();
    ASSERT_TRUE(publish(*first, whole).ok());
    objects = first->disk()->usage().object_count;
    std::vector<PutObject> parts;
    for (std::size_t i = 0; i < half.manifest.parts.size(); ++i) {
      const ObjectKey key = key_of(half, half.manifest.parts[i].id);
      parts.push_back({.key = key, .info = info_of(key, half.part(i)), .bytes = half.part(i)});
    }
    ASSERT_TRUE(wait(*first, first->stub().put(parts, "", Deadline::never())).has_value());
    const auto flush = [&]() -> Task<> { co_return co_await first->disk()->flush(); };
    ASSERT_TRUE(wait(*first, flush()).ok());
    EXPECT_GT(first->disk()->usage().object_count, objects);
  }
  const auto second = EmbeddedNode::open({.dram_bytes = 16 << 20, .store = dir_.path()}).value();
  EXPECT_EQ(build_count(*second), 1);
  EXPECT_EQ(second->disk()->usage().object_count, objects);
}

TEST_F(NodeTest, BuildsThatLoseAPartGoAsAWhole) {
  const auto small = EmbeddedNode::open({.dram_bytes = 2 << 20}).value();
  std::int64_t objects = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const BuiltSegment built = build(seed);
    ASSERT_TRUE(publish(*small, built).ok());
    objects = std::ssize(built.manifest.parts) + 1;
  }
  const std::int64_t builds = build_count(*small);
  EXPECT_GT(builds, 0);
  EXPECT_LT(builds, 10);
  std::int64_t stored = 0;
  small->memory().for_each([&](const ObjectKey& key, const ObjectInfo&) {
    if (key.part.kind <= PartKind::kExtent) ++stored;
  });
  EXPECT_EQ(stored, builds * objects);
}

TEST_F(NodeTest, RemovedBuildsAreForgotten) {
  const BuiltSegment built = build(1);
  ASSERT_TRUE(publish(*node_, built).ok());
  ASSERT_TRUE(
      wait(*node_, node_->store().remove(built.manifest, built.build, Deadline::never())).ok());
  EXPECT_EQ(build_count(*node_), 0);
  EXPECT_EQ(node_->memory().usage().object_count, 1) << "the fingerprint's text stays";
}

// ---------------------------------------------------------------------------------- bad requests

class NodeServerTest : public NodeTest {
 protected:
  Status call(NodeMethod method, const std::string& header) {
    Request request(static_cast<MethodId>(method), header);
    return wait(*node_, node_->transport().call("embedded", std::move(request), Buffer(1 << 20),
                                                Deadline::never()))
        .status();
  }
};

TEST_F(NodeServerTest, GarbageIsRefusedNotBelieved) {
  SeededRng rng(1);
  for (int method = 0; method < 10; ++method) {
    for (int trial = 0; trial < 200; ++trial) {
      const Bytes bytes = random_bytes(rng, 1 + rng.below(100));
      const Status status = call(static_cast<NodeMethod>(method), std::string(as_text(bytes)));
      EXPECT_TRUE(status.ok() || status.code() == Code::kInvalidArgument) << status.to_string();
    }
  }
  EXPECT_EQ(build_count(*node_), 0);
}

TEST_F(NodeServerTest, RequestsBeyondTheirLimitsAreRefused) {
  const BuiltSegment built = build(1);
  const auto refused = [&](PageRequest request) {
    proto::ReadPagesRequest message;
    to_proto(request, &message);
    return call(NodeMethod::kReadPages, message.SerializeAsString()).code() ==
           Code::kInvalidArgument;
  };
  EXPECT_FALSE(refused(pages_of(built, {1, 2})));
  EXPECT_TRUE(refused(pages_of(built, {2, 1}))) << "not ascending";
  EXPECT_TRUE(refused(pages_of(built, {1, 1}))) << "twice";
  EXPECT_TRUE(refused(pages_of(built, {4096})));
  EXPECT_TRUE(refused(pages_of(built, {8}, 16))) << "not aligned";
  EXPECT_TRUE(refused(pages_of(built, {0}, 3)));
  EXPECT_TRUE(refused(pages_of(built, {0}, 32)));
  for (const std::int64_t row_bytes : {0, 32, 100, 1056, 1 << 20}) {
    PageRequest odd = pages_of(built, {0});
    odd.row_bytes = row_bytes;
    EXPECT_TRUE(refused(odd)) << row_bytes;
  }
  PageRequest huge = pages_of(built, {});
  for (std::uint16_t row = 0; row < 4096; row += 16) huge.contexts[0][0].first_rows.push_back(row);
  huge.page_rows = 16;
  huge.row_bytes = 512;
  huge.contexts[0].resize(40, huge.contexts[0][0]);
  EXPECT_TRUE(refused(huge)) << "80 MB in one reply";

  proto::PutRequest put;
  put.add_objects()->set_key("short");
  EXPECT_EQ(call(NodeMethod::kPut, put.SerializeAsString()).code(), Code::kInvalidArgument);
  put.mutable_objects(0)->set_key(key_bytes(key_of(built, {})));
  put.mutable_objects(0)->set_length(5);
  EXPECT_EQ(call(NodeMethod::kPut, put.SerializeAsString()).code(), Code::kInvalidArgument)
      << "longer than the payload";
}

// Every domain type survives its message.
TEST(NodeMessages, RoundTrip) {
  const Status status = Status::miss(MissReason::kEvicted, "object");
  proto::Outcome outcome;
  to_proto(status, &outcome);
  EXPECT_EQ(from_proto(outcome).to_string(), status.to_string());
  outcome.set_code(200);
  EXPECT_EQ(from_proto(outcome).code(), Code::kInternal) << "a code of a later version";

  StoredBuild build{
      .segment = {.first_token = 4096, .token_count = 1024},
      .slice = {.first_layer = 1, .layer_count = 2, .first_kv_head = 3, .kv_head_count = 4},
      .stored_bytes = 5,
      .manifest_bytes = 6};
  build.segment.origin.approx_tag = 0;
  proto::StoredBuild message;
  to_proto(build, &message);
  const StoredBuild back = from_proto(message).value();
  EXPECT_EQ(back.segment, build.segment);
  EXPECT_EQ(back.slice, build.slice);
  EXPECT_EQ(back.manifest_bytes, 6);
  message.set_end("short");
  EXPECT_FALSE(from_proto(message).has_value());

  const HeadOutcome head{.status = status, .failed_pages = {1, 500}};
  proto::HeadOutcome head_message;
  to_proto(head, &head_message);
  EXPECT_EQ(from_proto(head_message).value().failed_pages, head.failed_pages);
}

TEST_F(NodeTest, NamespacesDoNotSeeEachOther) {
  const BuiltSegment ours = build(1, 0, 256, "ours");
  EXPECT_TRUE(publish(*node_, ours).ok());
  const auto found = [&](const std::string& name_space) {
    const MatchQuery query{.name_space = name_space,
                           .ends = {ours.manifest.segment.end},
                           .fingerprint = ours.manifest.fingerprint};
    const MatchReply reply = wait(*node_, node_->stub().match(query, Deadline::never())).value();
    const ListBuildsReply listed =
        wait(*node_, node_->stub().list_builds(name_space, Deadline::never())).value();
    EXPECT_EQ(reply.builds.size(), listed.builds.size());
    EXPECT_FALSE(reply.other_fingerprint.has_value());
    return reply.builds.size();
  };
  EXPECT_EQ(found("ours"), 1u);
  EXPECT_EQ(found("theirs"), 0u);
  // Nobody puts a build where its manifest does not belong.
  BuiltSegment smuggled = build(2, 0, 256, "theirs");
  smuggled.name_space = "ours";
  EXPECT_EQ(publish(*node_, smuggled).code(), Code::kFailedPrecondition);
  EXPECT_EQ(build_count(*node_), 1);
}

// A node as callers with a token meet it.
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
TEST_F(NodeTest, OnlyWhoMayUseEverythingIsToldWhereValuesAre) {
  const ByteSpan memory = node_->memory().memory();
  NodeServer server(node_->node(), system_clock(), {.bytes = memory, .key = "key of the slab"});
  const ConnectionFacts near{.number = 1, .one_sided = true};
  const ConnectionFacts far{.number = 2, .one_sided = false};
  const auto grant = [](std::vector<std::string> spaces) {
    return Caller(TokenGrant{.token = "a-token-that-is-long", .namespaces = std::move(spaces)});
  };
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
TEST_F(NodeTest, ObjectsOfValuesAreNoPartsOfBuilds) {
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

// What is decoded of a request stays within the limit on requests under way, which counts bytes.
TEST_F(NodeTest, SmallValuesAreNotDecodedAheadOfTheirPayload) {
  NodeServer server(node_->node());
  const Caller caller(TokenGrant{.token = "a-token-that-is-long", .namespaces = {"*"}});
  const auto lands = [&](std::uint64_t value_bytes) {
    constexpr int kCount = 100;
    proto::PutValuesRequest put;
    for (int i = 0; i < kCount; ++i) {
      put.mutable_keys()->mutable_text()->append("key");
      put.mutable_keys()->add_lengths(3);
      put.add_value_bytes(value_bytes);
      put.add_first_chunks(0);
      put.add_chunk_counts(1);
    }
    const auto method = static_cast<MethodId>(NodeMethod::kPutValues);
    const auto payload_bytes = kCount * static_cast<std::int64_t>(value_bytes + 8);
    return server.land(caller, method, put.SerializeAsString(), payload_bytes) != nullptr;
  };
  EXPECT_FALSE(lands(0));
  EXPECT_FALSE(lands(1015));
  EXPECT_TRUE(lands(1016));
  EXPECT_TRUE(lands(100'000));
}

TEST_F(NodeTest, StatsTellATokenOfItsOwnNamespaces) {
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
