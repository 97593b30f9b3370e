// Contexts over several nodes: published, matched and read from all of them.
#include <gtest/gtest.h>

#include "tests/support/value_cluster.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};

BuiltSegment build(const PrefixHash& before, std::uint64_t number, ThreadPool& pool) {
  const FakeSequence sequence(number + 1, kShape, 256);
  SegmentName name{
      .before = before, .first_token = static_cast<std::int64_t>(number) * 256, .token_count = 256};
  name.end.bytes[0] = static_cast<std::byte>(number + 1);
  const auto read_rows = [&](std::int32_t layer, std::int32_t head, Bf16* out) {
    std::ranges::copy(sequence.rows[static_cast<std::size_t>(layer * 2 + head)], out);
  };
  return build_segment({.name = name,
                        .fingerprint = fingerprint_hash("model\n"),
                        .model = kShape,
                        .slice = Slice::whole(kShape),
                        .read_rows = read_rows},
                       cpu_kernels(), pool)
      .value();
}

TEST(Contexts, LiveOverSeveralNodesAndPagesComeFromAll) {
  ValueCluster cluster({}, 3);
  ThreadPool pool(1);
  std::vector<PrefixHash> prefix(1);
  std::vector<BuiltSegment> built;
  for (std::uint64_t i = 0; i < 6; ++i) {
    built.push_back(build(prefix.back(), i, pool));
    prefix.push_back(built.back().manifest.segment.end);
    ASSERT_TRUE(
        cluster.run(cluster.contexts().publish(built.back(), "model\n", Deadline::never())).ok());
  }
  ContextScope scope{.fingerprint_text = "model\n", .slice = Slice::whole(kShape)};
  auto matching = cluster.contexts().match(prefix, std::move(scope), Deadline::never());
  const PrefixMatch match = cluster.run(std::move(matching)).value();
  ASSERT_EQ(match.chain.size(), 6u);
  std::size_t nodes_used = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    nodes_used += cluster.node(i).memory().usage().object_count > 0 ? 1 : 0;
  }
  EXPECT_GT(nodes_used, 1u);

  PageRequest request{.page_rows = 1, .row_bytes = 256};
  request.contexts.emplace_back();
  for (const BuiltSegment& one : built) {
    request.contexts[0].push_back({.end = one.manifest.segment.end,
                                   .segment = one.manifest.segment.id(),
                                   .build = one.build,
                                   .layer = 1,
                                   .kv_head = 1,
                                   .first_rows = {3, 200}});
  }
  const PageReply pages =
      cluster.run(cluster.contexts().read_pages(request, Deadline::never())).value();
  for (std::size_t i = 0; i < built.size(); ++i) {
    EXPECT_TRUE(pages.heads[i].status.ok());
    const Manifest& manifest = built[i].manifest;
    for (std::size_t part = 0; part < manifest.parts.size(); ++part) {
      const PartId& id = manifest.parts[part].id;
      if (id.kind != PartKind::kExtent || id.layer != 1 || id.kv_head != 1) continue;
      EXPECT_TRUE(std::ranges::equal(pages.pages.bytes().subspan(i * 512 + 256, 256),
                                     built[i].part(part).subspan(200 * 256, 256)))
          << "segment " << i;
    }
  }
  // One node less: its pages fail, the others come.
  const std::size_t gone = cluster.nodes().view()->owner_index(built[0].manifest.segment.end);
  cluster.stop(gone);
  const PageReply rest =
      cluster.run(cluster.contexts().read_pages(request, Deadline::never())).value();
  for (std::size_t i = 0; i < built.size(); ++i) {
    const bool lost = cluster.nodes().view()->owner_index(built[i].manifest.segment.end) == gone;
    EXPECT_EQ(rest.heads[i].failed_pages.size(), lost ? 2u : 0u) << i;
  }
}

}  // namespace
}  // namespace icefield
