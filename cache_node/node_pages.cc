// Page reads of CacheNode: rows of many extents, gathered into one reply.
#include <algorithm>

#include "cache_node/node.h"
#include "common/task_scope.h"
#include "kernels/page_gather.h"

namespace icefield {
namespace {

// Of extents that one request holds at a time: enough to keep a disk busy, and so little that many
// requests find read buffers.
constexpr std::int64_t kGroupBytes = 8 << 20;

// to.size() bytes from `offset` on.
void copy_bytes(std::span<const ConstByteSpan> pieces, std::int64_t offset, ByteSpan to) {
  for (const ConstByteSpan piece : pieces) {
    const std::int64_t skip = std::min(offset, std::ssize(piece));
    offset -= skip;
    const ConstByteSpan rest = piece.subspan(static_cast<std::size_t>(skip));
    const ConstByteSpan part = rest.first(std::min(rest.size(), to.size()));
    std::ranges::copy(part, to.begin());
    to = to.subspan(part.size());
  }
}

}  // namespace

// An extent that a page request wants.
struct CacheNode::WantedExtent {
  ObjectKey key;
  std::optional<ObjectBytes> bytes;
  Status status;
};

struct CacheNode::WantedPage {
  std::size_t extent = 0;  // index in the plan's
  std::int64_t offset = 0;
  bool found = false;
};

// Extents in the order of the request, each once per item: items are heads, so they share none.
struct CacheNode::PagePlan {
  explicit PagePlan(const PageRequest& request);

  std::vector<WantedExtent> extents;
  std::vector<WantedPage> pages;
};

CacheNode::PagePlan::PagePlan(const PageRequest& request) {
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) {
      const std::size_t first_extent = extents.size();
      for (const std::uint16_t row : head.first_rows) {
        const auto number = static_cast<std::uint16_t>(row / kExtentRows);
        if (extents.size() == first_extent || extents.back().key.part.extent != number) {
          extents.push_back({.key = {.segment = head.segment,
                                     .build = head.build,
                                     .part = {.kind = PartKind::kExtent,
                                              .layer = static_cast<std::uint16_t>(head.layer),
                                              .kv_head = static_cast<std::uint16_t>(head.kv_head),
                                              .extent = number}}});
        }
        pages.push_back(
            {.extent = extents.size() - 1, .offset = row % kExtentRows * request.row_bytes});
      }
    }
  }
}

// Those on disk side by side.
asio::awaitable<void> CacheNode::load(const Caller& caller, std::span<WantedExtent> extents,
                                      Verify verify) {
  TaskScope scope(co_await asio::this_coro::executor);
  const auto load_one = [](CacheNode& node, const Caller& who, WantedExtent& extent,
                           Verify how) -> asio::awaitable<void> {
    Result<ObjectBytes> bytes = co_await node.get(who, extent.key, how);
    extent.status = bytes.status();
    if (bytes.has_value()) extent.bytes = std::move(*bytes);
  };
  for (WantedExtent& extent : extents) scope.spawn(load_one(*this, caller, extent, verify));
  co_await scope.join();
}

// Pages that stand in one piece go through the kernel, the few that are cut by the end of a slot
// one by one. Those that are not there become zeros.
void CacheNode::gather(std::span<const WantedExtent> extents, std::span<WantedPage> pages,
                       std::int64_t page_bytes, std::byte* out) {
  const std::vector<std::byte> zeros(static_cast<std::size_t>(page_bytes), std::byte{0});
  std::vector<const std::byte*> sources;
  sources.reserve(pages.size());
  std::vector<std::size_t> cut;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    WantedPage& page = pages[i];
    const std::optional<ObjectBytes>& bytes = extents[page.extent].bytes;
    const std::byte* at = bytes.has_value() ? bytes->find(page.offset, page_bytes) : nullptr;
    page.found = at != nullptr;
    if (bytes.has_value() && at == nullptr && page.offset + page_bytes <= bytes->size()) {
      page.found = true;
      cut.push_back(i);
    }
    sources.push_back(at == nullptr ? zeros.data() : at);
  }
  page_gather_cpu({.pages = sources.data(),
                   .out = out,
                   .page_bytes = page_bytes,
                   .page_count = static_cast<std::int32_t>(sources.size())});
  for (const std::size_t i : cut) {
    const auto size = static_cast<std::size_t>(page_bytes);
    copy_bytes(extents[pages[i].extent].bytes->pieces(), pages[i].offset, {out + i * size, size});
  }
}

Task<std::vector<HeadOutcome>> CacheNode::read_pages(const Caller& caller,
                                                     const PageRequest& request, std::byte* out) {
  PagePlan plan(request);
  const auto group = static_cast<std::size_t>(kGroupBytes / (kExtentRows * request.row_bytes));
  auto first = plan.pages.begin();
  for (std::size_t begin = 0; begin < plan.extents.size(); begin += group) {
    const std::size_t end = std::min(begin + group, plan.extents.size());
    const std::span some = std::span(plan.extents).subspan(begin, end - begin);
    co_await load(caller, some, request.scrub ? Verify::kByTier : Verify::kByCaller);
    const auto last =
        std::ranges::lower_bound(first, plan.pages.end(), end, {}, &WantedPage::extent);
    gather(plan.extents, {first, last}, request.page_bytes(), out);
    out += (last - first) * request.page_bytes();
    first = last;
    for (WantedExtent& extent : some) extent.bytes.reset();
  }
  page_reads.add(std::ssize(plan.pages));
  std::vector<HeadOutcome> outcomes;
  std::size_t page = 0;
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) {
      HeadOutcome& outcome = outcomes.emplace_back();
      for (std::size_t i = 0; i < head.first_rows.size(); ++i, ++page) {
        if (plan.pages[page].found) continue;
        const WantedExtent& extent = plan.extents[plan.pages[page].extent];
        outcome.failed_pages.push_back(static_cast<std::uint16_t>(i));
        if (!outcome.status.ok()) continue;
        outcome.status =
            extent.status.ok()
                ? Status(Code::kInvalidArgument, "page beyond the end of " + to_string(extent.key))
                : extent.status;
      }
    }
  }
  co_return outcomes;
}

}  // namespace icefield
