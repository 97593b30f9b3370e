// A node behind its server and stub: commits, matches, page reads, recovery, bad requests.
#include "cache_node/node.h"

#include <gtest/gtest.h>

#include <map>

#include "cache_node/node_messages.h"
#include "cache_node/node_server.h"
#include "common/fingerprint.h"
#include "tests/support/node_fixture.h"

namespace icefield {
namespace {

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

}  // namespace
}  // namespace icefield
