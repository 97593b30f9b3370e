// tests/support/node_fixture.h — a node with little memory, and builds to put there.
#pragma once

#include <gtest/gtest.h>

#include "cache_node/node.h"
#include "common/fingerprint.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"
#include "tests/support/worker_fixture.h"

namespace icefield {

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

}  // namespace icefield
