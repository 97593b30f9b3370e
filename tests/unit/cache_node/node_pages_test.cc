// Page reads: rows that are cut by the ends of slots, and more than a node holds at a time.
#include <gtest/gtest.h>

#include "cache_node/node.h"
#include "storage/nvme_tier.h"
#include "tests/support/manual_clock.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

class NodePagesTest : public testing::Test {
 protected:
  static ObjectKey extent_key(std::uint16_t kv_head) {
    ObjectKey key;
    key.part = {.kind = PartKind::kExtent, .kv_head = kv_head};
    return key;
  }
  void open(std::int64_t dram_bytes, Tier* disk = nullptr) {
    memory_ = DramTier::open({.capacity_bytes = dram_bytes}, clock_).value();
    node_ = std::make_unique<CacheNode>(clock_, *memory_, disk);
  }
  Bytes put_extent(std::uint16_t kv_head, std::int64_t row_bytes) {
    const Bytes bytes = random_bytes(rng_, static_cast<std::size_t>(kExtentRows * row_bytes));
    const ObjectKey key = extent_key(kv_head);
    const PutObject object{.key = key, .info = info_of(key, bytes), .bytes = bytes};
    EXPECT_TRUE(
        run_task(io_, node_->put(everyone_, std::span(&object, 1), {})).value().front().ok());
    return bytes;
  }
  // All pages of extents 0 … count - 1.
  Result<std::vector<HeadOutcome>> read(PageRequest request, std::uint16_t count, Bytes& out) {
    std::vector<HeadPages>& heads = request.contexts.emplace_back();
    for (std::uint16_t head = 0; head < count; ++head) {
      HeadPages& pages = heads.emplace_back();
      pages.kv_head = head;
      for (std::int32_t row = 0; row < kExtentRows; row += request.page_rows) {
        pages.first_rows.push_back(static_cast<std::uint16_t>(row));
      }
    }
    ICE_TRY(validate(request));
    out.resize(static_cast<std::size_t>(request.page_count() * request.page_bytes()));
    return run_task(io_, node_->read_pages(everyone_, request, out.data()));
  }

  TempDir dir_;
  asio::io_context io_;
  ManualClock clock_;
  const Caller everyone_;
  SeededRng rng_{1};
  std::unique_ptr<DramTier> memory_;
  std::unique_ptr<CacheNode> node_;
};

// Objects of a slot each, every other removed: what comes next stands in pieces.
TEST_F(NodePagesTest, RowsThatAreCutByTheEndOfASlotAreWhole) {
  open(64 * (16 << 10));
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 64; ++i) {
    const Bytes bytes(1000);
    const ObjectKey key = keys.emplace_back(random_key(rng_));
    const PutObject object{.key = key, .info = info_of(key, bytes), .bytes = bytes};
    ASSERT_TRUE(
        run_task(io_, node_->put(everyone_, std::span(&object, 1), {})).value().front().ok());
  }
  for (std::size_t i = 0; i < keys.size(); i += 2) {
    ASSERT_TRUE(run_task(io_, node_->remove(everyone_, keys[i])).ok());
  }
  for (const std::int64_t row_bytes : {384, 1024}) {
    const Bytes bytes = put_extent(0, row_bytes);
    ASSERT_GT(memory_->lease(extent_key(0))->pieces().size(), 1u);
    for (const std::int32_t page_rows : {1, 2, 16}) {
      Bytes out;
      const auto outcomes = read({.page_rows = page_rows, .row_bytes = row_bytes}, 1, out);
      ASSERT_TRUE(outcomes.value().front().status.ok())
          << outcomes.value().front().status.to_string();
      EXPECT_TRUE(outcomes.value().front().failed_pages.empty());
      EXPECT_EQ(out, bytes) << row_bytes << " bytes, pages of " << page_rows;
    }
    ASSERT_TRUE(run_task(io_, node_->remove(everyone_, extent_key(0))).ok());
  }
}

// A cold request of 16 MB, where reads may hold 12: nothing of it fails for want of buffers.
TEST_F(NodePagesTest, LargeColdRequestsHoldLittleAtATime) {
  const auto disk =
      NvmeTier::open({.path = dir_.path(), .read_buffer_bytes = 12 << 20}, clock_).value();
  open(16 << 10, disk.get());
  constexpr std::uint16_t kHeads = 64;
  Bytes stored;
  for (std::uint16_t head = 0; head < kHeads; ++head) {
    const Bytes bytes = put_extent(head, 1024);
    stored.insert(stored.end(), bytes.begin(), bytes.end());
  }
  Bytes out;
  const auto outcomes = read({.page_rows = 16, .row_bytes = 1024}, kHeads, out);
  for (const HeadOutcome& outcome : outcomes.value()) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.to_string();
  }
  EXPECT_TRUE(out == stored);
}

TEST_F(NodePagesTest, PagesBeyondTheEndFailAlone) {
  open(1 << 20);
  put_extent(0, 64);
  Bytes out;
  const auto outcomes = read({.page_rows = 1, .row_bytes = 128}, 1, out);
  EXPECT_EQ(outcomes.value().front().status.code(), Code::kInvalidArgument);
  EXPECT_EQ(outcomes.value().front().failed_pages.size(), 128u);
}

}  // namespace
}  // namespace icefield
