// kernels/segment_build.h — clusters the tokens of one (segment, layer, KV head) and describes the
// clusters (docs/formats/attention.md steps 1 and 2). Off the step path: it may allocate.
#pragma once

#include <cstdint>
#include <vector>

#include "common/float_bits.h"
#include "common/status.h"
#include "proto/part.h"

namespace icefield {

struct PartitionArgs {
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::int32_t row_count = 0;          // tokens of the segment: a multiple of 256 up to 4 096
  std::int32_t first_indexed_row = 0;  // 0 or 16; sink rows stay in place, in no cluster
  const Bf16* rows = nullptr;          // [row_count, d_k + d_v] in token order
};

// The stored order and where it is cut. The last kExtentRows tokens of a segment are clustered by
// themselves and come last. Within a cluster tokens keep their order.
struct Partition {
  std::vector<std::uint16_t> order;         // [row_count] token (offset in the segment) of each row
  std::vector<std::uint16_t> list_rows;     // rows of each list, in stored order
  std::vector<std::uint16_t> cluster_rows;  // rows of each cluster; lists end at cluster ends
};

// k-means into about n / kListTokens lists (strided sample, strided first centroids, a fixed number
// of Lloyd iterations). Then the group with the largest sum of squared distances to its mean, at
// first a list, is split in two, again and again, until there are n / kClusterTokens clusters, all
// of at most kMaxClusterTokens: a rare token stands alone, many alike share a cluster. The same
// input gives the same result on the same kind of CPU. kInvalidArgument when a key or value is not
// finite, or 2^48 or more, also of the sink (the message names the first such token), and for other
// numbers of tokens; kUnimplemented for head dimensions that no segment has.
Status partition_reference(const PartitionArgs& args, Partition& out);
Status partition_cpu(const PartitionArgs& args, Partition& out);

// Of a partition that was made for these rows.
struct DescribeArgs {
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::int32_t row_count = 0;
  std::int32_t first_indexed_row = 0;
  const Bf16* rows = nullptr;  // [row_count, d_k + d_v] in stored order
  const Partition* partition = nullptr;
  MutableLevelView lists;     // out: everything but the padding
  MutableLevelView clusters;  // out
  MutableCodesView codes;     // out: codes and scales; checks are the caller's
};

// Means, variance scalars, variance shapes, the slope where the view has one, and codes, as
// docs/formats/attention.md step 2 defines them. A code's scale is the one of least squared error.
void describe_reference(const DescribeArgs& args);
void describe_cpu(const DescribeArgs& args);

}  // namespace icefield
