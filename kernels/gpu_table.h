// kernels/gpu_table.h — the segment table of a group in the memory of the GPU.
#pragma once

#include <cstdint>

#include "kernels/head_index.h"

namespace icefield {

// The parts that `index` points to are in the memory of the GPU too, laid out as everywhere.
struct GpuSegment {
  HeadIndex index;
  // Where its lists, clusters and rows begin in the arrays of a group.
  std::int32_t first_list = 0;
  std::int32_t first_cluster = 0;
  std::int32_t first_row = 0;
  // [rows / page_rows] slot of each page in the hot pool, -1: not there. For find_rows only.
  const std::int32_t* page_slot = nullptr;
};

// Fills the offsets of a table whose indexes are set, on the host, before it is copied.
inline TableSize place_segments(GpuSegment* segments, std::int32_t segment_count) {
  TableSize size;
  for (std::int32_t s = 0; s < segment_count; ++s) {
    GpuSegment& segment = segments[s];
    segment.first_list = size.lists;
    segment.first_cluster = size.clusters;
    segment.first_row = size.rows;
    const TableSize one = table_size(&segment.index, 1);
    size.lists += one.lists;
    size.clusters += one.clusters;
    size.rows += one.rows;
    size.indexed_rows += one.indexed_rows;
  }
  return size;
}

// The largest of each that any group of a launch has, now or when a recorded graph runs again:
// grids depend on it and on nothing else.
struct GpuCapacity {
  std::int32_t row_count = 1;  // G
  std::int32_t segments = 0;
  std::int32_t rows = 0;        // stored rows of a table
  std::int32_t exact_rows = 0;  // rows that one group attends exactly in one call
};
constexpr std::int32_t kGpuMaxQueryRows = 128;      // G
constexpr std::int32_t kGpuMaxGroups = 65535;       // of a launch: the blocks of a grid's y and z
constexpr std::int32_t kGpuMaxTableRows = 1 << 20;  // rows of one table

}  // namespace icefield
