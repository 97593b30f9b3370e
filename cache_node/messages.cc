#include "cache_node/messages.h"

namespace icefield {

std::string_view to_string(NodeMethod method) {
  switch (method) {
    case NodeMethod::kPut: return "put";
    case NodeMethod::kGet: return "get";
    case NodeMethod::kRemove: return "remove";
    case NodeMethod::kMatch: return "match";
    case NodeMethod::kReadPages: return "read_pages";
    case NodeMethod::kListBuilds: return "list_builds";
    case NodeMethod::kPutValues: return "put_values";
    case NodeMethod::kGetValues: return "get_values";
    case NodeMethod::kFindValues: return "find_values";
    case NodeMethod::kRemoveValues: return "remove_values";
    case NodeMethod::kListValues: return "list_values";
    case NodeMethod::kFlushValues: return "flush_values";
    case NodeMethod::kStats: return "stats";
    case NodeMethod::kPing: return "ping";
  }
  return "unknown";
}

std::int64_t PageRequest::page_count() const {
  std::int64_t count = 0;
  for (const std::vector<HeadPages>& heads : contexts) {
    for (const HeadPages& head : heads) count += static_cast<std::int64_t>(head.first_rows.size());
  }
  return count;
}

Status validate(const PageRequest& request) {
  const auto bad = [](const std::string& what) {
    return Status(Code::kInvalidArgument, "page request: " + what);
  };
  const std::int32_t rows = request.page_rows;
  if (rows < 1 || rows > 16 || (rows & (rows - 1)) != 0) {
    return bad("pages of " + std::to_string(rows) + " rows, expected 1, 2, 4, 8 or 16");
  }
  // Any rows of a shape that validate(KvShape) takes.
  constexpr KvShape smallest{.d_k = kCodeGroup, .d_v = kCodeGroup};
  constexpr KvShape largest{.d_k = kMaxHeadDim, .d_v = kMaxHeadDim};
  if (request.row_bytes < smallest.row_bytes() || request.row_bytes > largest.row_bytes() ||
      request.row_bytes % (smallest.row_bytes() / 2) != 0) {
    return bad("rows of " + std::to_string(request.row_bytes) + " bytes, expected " +
               std::to_string(smallest.row_bytes()) + " to " + std::to_string(largest.row_bytes()) +
               ", a multiple of " + std::to_string(smallest.row_bytes() / 2));
  }
  if (request.page_count() * request.page_bytes() > kMaxRequestBytes) {
    return bad(std::to_string(request.page_count()) + " pages are more than one reply holds");
  }
  for (const std::vector<HeadPages>& heads : request.contexts) {
    for (const HeadPages& head : heads) {
      std::int32_t next = 0;
      for (const std::uint16_t first : head.first_rows) {
        if (first < next || first % rows != 0 || first + rows > kMaxSegmentTokens) {
          return bad("first row " + std::to_string(first) +
                     " is not ascending, aligned and inside "
                     "a segment");
        }
        next = first + rows;
      }
    }
  }
  return Status();
}

}  // namespace icefield
