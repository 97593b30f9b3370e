// kernels/page_moves_cuda.h — brings rows and pages to where attention finds them, on the GPU. One
// copy from the host and one launch, however many pages. Ownership, graphs and errors as in
// kernels/select_cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "kernels/gpu.h"
#include "kernels/head_index.h"

namespace icefield {

// The reverse of a gather: page i goes to pages[i]. page_bytes and all addresses are multiples of
// 16; pages do not overlap.
struct PageScatterArgs {
  const std::byte* from = nullptr;    // [page_count, page_bytes]
  std::byte* const* pages = nullptr;  // [page_count]
  std::int64_t page_bytes = 0;
  std::int32_t page_count = 0;
};
Status page_scatter_cuda(const PageScatterArgs& args, Stream stream);

// Entries of GpuSegment::page_slot that change. One that is named twice gets one of the values.
struct SlotUpdate {
  std::int32_t* at = nullptr;
  std::int32_t slot = -1;
};
struct SetSlotsArgs {
  const SlotUpdate* updates = nullptr;  // [count]
  std::int32_t count = 0;
};
Status set_slots_cuda(const SetSlotsArgs& args, Stream stream);

// Rows that stand one after the other, and where their addresses belong in the group's.
struct RowSpan {
  static constexpr std::int32_t kMaxRows = 64;

  const Bf16* rows = nullptr;  // [count, d_k + d_v]
  std::int32_t count = 0;      // at most kMaxRows
  std::int32_t first = 0;
};
// Names every row for attend_cuda().
struct NameRowsGroup {
  std::int32_t span_count = 0;
  const RowSpan* spans = nullptr;
  const Bf16** rows = nullptr;  // out [rows of all spans]
};
struct NameRowsArgs {
  HeadShape shape;
  std::int32_t group_count = 0;
  const NameRowsGroup* groups = nullptr;  // in the memory of the GPU, as is all it points to
};
Status name_rows_cuda(const NameRowsArgs& args, Stream stream);

}  // namespace icefield
