// worker/page_fetch.h — reads pages from the nodes and verifies every row.
#pragma once

#include <vector>

#include "client/context_store.h"
#include "common/task.h"
#include "worker/context.h"

namespace icefield {

// A page that a step wants and the hot pool does not have.
struct WantedPage {
  const AttachedSegment* segment = nullptr;
  std::int32_t layer = 0;  // within the slice
  std::int32_t kv_head = 0;
  std::int32_t first_row = 0;
  const std::byte* bytes = nullptr;  // out: verified rows, in FetchedPages; null: it did not come
};

struct FetchedPages {
  std::vector<Buffer> buffers;  // own the bytes
  std::int64_t bytes_moved = 0;
  std::int64_t failed_pages = 0;
  Status first_error;  // of the pages that did not come
};

// Where a worker's pages come from.
struct PageSource {
  ContextStore& store;
  asio::any_io_executor executor;  // runs the store's calls
  KvShape shape;                   // of the slice
  Slice slice;
};

// Reads `wanted`, one list per context, pages of the same (segment, layer, KV head) side by side
// and by ascending first row, in one gathered request. A page whose rows fail their checks is asked
// for once more, with the node told to verify what it holds. Never an error: pages that do not come
// by the deadline stay null. `source` and `wanted` stay until it is done.
asio::awaitable<FetchedPages> fetch_pages(const PageSource& source, std::int32_t page_rows,
                                          std::span<std::vector<WantedPage>> wanted,
                                          Deadline deadline);

}  // namespace icefield
