#include "cluster_index/segment/pieces.h"

#include <algorithm>
#include <limits>

namespace icefield {

std::vector<Piece> aligned_pieces(std::int64_t begin, std::int64_t end) {
  ICE_CHECK(begin >= 0 && begin <= end && begin % kBlockTokens == 0 && end % kBlockTokens == 0);
  std::vector<Piece> pieces;
  while (begin < end) {
    std::int32_t length = kSegmentTokens.front();
    for (const std::int32_t candidate : kSegmentTokens) {
      if (begin % candidate == 0 && begin + candidate <= end) length = candidate;
    }
    pieces.push_back({begin, length});
    begin += length;
  }
  return pieces;
}

std::int64_t window_begin(std::int64_t end) {
  return end < 2 * kExtentRows ? 0 : (end / kExtentRows - 1) * kExtentRows;
}

std::vector<StoredBuild> best_chain(std::span<const PrefixHash> prefix,
                                    std::span<const StoredBuild> builds, const Slice& whole) {
  // The best way to reach each block: fewest segments, then smallest ids from the start on.
  struct Way {
    std::size_t segments = std::numeric_limits<std::size_t>::max();
    std::vector<const StoredBuild*> chain;
  };
  const auto smaller = [](const Way& a, const Way& b) {
    if (a.segments != b.segments) return a.segments < b.segments;
    return std::lexicographical_compare(
        a.chain.begin(), a.chain.end(), b.chain.begin(), b.chain.end(),
        [](const StoredBuild* x, const StoredBuild* y) {
          return std::pair(x->segment.id(), x->build) < std::pair(y->segment.id(), y->build);
        });
  };
  std::vector<Way> ways(prefix.size());
  ways[0].segments = 0;
  std::vector<const StoredBuild*> ordered;
  for (const StoredBuild& build : builds) {
    const SegmentName& segment = build.segment;
    const std::int64_t first = segment.first_token / kBlockTokens;
    const std::int64_t end = segment.end_token() / kBlockTokens;
    const bool fits = segment.origin.exact() && build.slice == whole &&
                      validate_alignment(segment.first_token, segment.token_count).ok() &&
                      end < static_cast<std::int64_t>(prefix.size()) &&
                      prefix[static_cast<std::size_t>(first)] == segment.before &&
                      prefix[static_cast<std::size_t>(end)] == segment.end;
    if (fits) ordered.push_back(&build);
  }
  std::sort(ordered.begin(), ordered.end(), [](const StoredBuild* a, const StoredBuild* b) {
    return a->segment.end_token() < b->segment.end_token();
  });
  std::size_t furthest = 0;
  for (const StoredBuild* build : ordered) {
    const auto first = static_cast<std::size_t>(build->segment.first_token / kBlockTokens);
    const auto end = static_cast<std::size_t>(build->segment.end_token() / kBlockTokens);
    if (ways[first].segments == std::numeric_limits<std::size_t>::max()) continue;
    Way way{ways[first].segments + 1, ways[first].chain};
    way.chain.push_back(build);
    if (smaller(way, ways[end])) ways[end] = std::move(way);
    furthest = std::max(furthest, end);
  }
  std::vector<StoredBuild> chain;
  for (const StoredBuild* build : ways[furthest].chain) chain.push_back(*build);
  return chain;
}

}  // namespace icefield
