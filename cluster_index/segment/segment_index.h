// cluster_index/segment/segment_index.h — L0 to L2 of one build in memory, ready for the kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/bytes.h"
#include "kernels/head_index.h"
#include "proto/manifest.h"

namespace icefield {

// Whether a context's window covers the last extent of a segment: then its clusters are left out.
enum class LastExtent { kIndexed, kInWindow };

// Ownership  Owns the parts; HeadIndex views borrow from it.
// Threads    Const after parse().
class SegmentIndex {
 public:
  struct LayerParts {
    AlignedBytes lists;
    AlignedBytes clusters;
    AlignedBytes codes;
  };

  // `layers` are those of the manifest's slice, in order, already verified against its checksums.
  // kInvalidArgument when a part is malformed or belongs to another layer, slice or segment.
  static Result<std::shared_ptr<const SegmentIndex>> parse(const Manifest& manifest,
                                                           std::vector<LayerParts> layers);

  const SegmentName& name() const { return name_; }
  std::int64_t bytes() const { return bytes_; }  // of the parts

  // What the views of head() point into, by layer of the slice.
  std::span<const LayerParts> parts() const { return parts_; }

  // `layer` and `kv_head` count within the slice.
  HeadIndex head(std::int32_t layer, std::int32_t kv_head, LastExtent last_extent) const;
  // Row checks [token_count].
  const std::uint32_t* row_checks(std::int32_t layer, std::int32_t kv_head) const;

 private:
  SegmentIndex() = default;
  std::size_t at(std::int32_t layer, std::int32_t kv_head) const;

  SegmentName name_;
  std::int32_t kv_head_count_ = 0;
  std::int64_t bytes_ = 0;
  std::vector<LayerParts> parts_;
  std::vector<HeadIndex> heads_;  // [layer, KV head]
};

}  // namespace icefield
