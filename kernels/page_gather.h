// kernels/page_gather.h — copies scattered pages into one contiguous buffer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace icefield {

struct PageGatherArgs {
  const std::byte* const* pages = nullptr;  // [page_count] where each page is
  std::byte* out = nullptr;                 // [page_count, page_bytes]; overlaps no page
  std::int64_t page_bytes = 0;
  std::int32_t page_count = 0;
};
void page_gather_reference(const PageGatherArgs& args);
void page_gather_cpu(const PageGatherArgs& args);

}  // namespace icefield
