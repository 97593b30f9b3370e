#include "kernels/page_gather.h"

#include <algorithm>
#include <cstring>

namespace icefield {

void page_gather_reference(const PageGatherArgs& args) {
  for (std::int32_t i = 0; i < args.page_count; ++i) {
    std::copy_n(args.pages[i], args.page_bytes, args.out + i * args.page_bytes);
  }
}

// Bound: latency of the first line of each page. The pages are known ahead, so they are prefetched.
void page_gather_cpu(const PageGatherArgs& args) {
  constexpr std::int32_t kAhead = 8;
  for (std::int32_t i = 0; i < args.page_count; ++i) {
    if (i + kAhead < args.page_count) __builtin_prefetch(args.pages[i + kAhead]);
    std::memcpy(args.out + i * args.page_bytes, args.pages[i],
                static_cast<std::size_t>(args.page_bytes));
  }
}

}  // namespace icefield
