// cluster_index/segment/segment_builder.h — makes a build: clusters the rows of a segment, lays out
// its parts and lists them in a manifest.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cluster_index/segment/segment_index.h"
#include "common/float_bits.h"
#include "common/thread_pool.h"
#include "kernels/kernels.h"
#include "proto/manifest.h"

namespace icefield {

struct SegmentInput {
  std::string name_space;
  SegmentName name;
  FingerprintHash fingerprint;
  KvShape model;
  Slice slice;
  // Writes the rows [token_count, d_k + d_v] of one (layer, KV head) of the model, in token order.
  // Called from several threads.
  std::function<void(std::int32_t layer, std::int32_t kv_head, Bf16* out)> read_rows;
};

// All bytes of a build. `index` holds L0 to L2, which a worker keeps; the rest is for the nodes.
struct BuiltSegment {
  std::string name_space;
  Manifest manifest;
  Bytes manifest_bytes;
  BuildId build;
  std::vector<SegmentIndex::LayerParts> index;  // [layer of the slice]
  std::vector<AlignedBytes> order;              // [layer of the slice]
  std::vector<AlignedBytes> rows;               // [layer, KV head] of the slice: its extents

  // The bytes of part number `part_index` of the manifest.
  ConstByteSpan part(std::size_t part_index) const;
};

// The same bytes for any thread count. kInvalidArgument when a key or value is not finite.
Result<BuiltSegment> build_segment(const SegmentInput& input, const Kernels& kernels,
                                   ThreadPool& pool);

}  // namespace icefield
