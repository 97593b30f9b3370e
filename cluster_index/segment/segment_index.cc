#include "cluster_index/segment/segment_index.h"

namespace icefield {

Result<std::shared_ptr<const SegmentIndex>> SegmentIndex::parse(const Manifest& manifest,
                                                                std::vector<LayerParts> layers) {
  ICE_CHECK(layers.size() == static_cast<std::size_t>(manifest.slice.layer_count));
  std::shared_ptr<SegmentIndex> index(new SegmentIndex());
  index->name_ = manifest.segment;
  index->kv_head_count_ = manifest.slice.kv_head_count;
  index->parts_ = std::move(layers);
  PartShape expected{.first_kv_head = manifest.slice.first_kv_head,
                     .kv_head_count = manifest.slice.kv_head_count,
                     .d_k = manifest.model.d_k,
                     .d_v = manifest.model.d_v,
                     .row_count = manifest.segment.token_count,
                     .first_indexed_row = manifest.segment.first_token == 0 ? kSinkTokens : 0};
  for (std::int32_t layer = 0; layer < manifest.slice.layer_count; ++layer) {
    const LayerParts& parts = index->parts_[static_cast<std::size_t>(layer)];
    expected.layer = manifest.slice.first_layer + layer;
    ICE_TRY(const LevelPart lists, parse_level_part(parts.lists, PartKind::kLists));
    ICE_TRY(const LevelPart clusters, parse_level_part(parts.clusters, PartKind::kClusters));
    ICE_TRY(const CodesPart codes, parse_codes_part(parts.codes));
    if (lists.shape != expected || clusters.shape != expected || codes.shape != expected) {
      return Status(Code::kInvalidArgument, "parts of layer " + std::to_string(expected.layer) +
                                                " do not belong to segment " +
                                                to_string(manifest.segment.id()));
    }
    for (std::size_t head = 0; head < lists.heads.size(); ++head) {
      index->heads_.push_back({.lists = lists.heads[head],
                               .clusters = clusters.heads[head],
                               .codes = codes.heads[head],
                               .first_row = expected.first_indexed_row,
                               .end_row = expected.row_count});
    }
    index->bytes_ +=
        static_cast<std::int64_t>(parts.lists.size() + parts.clusters.size() + parts.codes.size());
  }
  return std::shared_ptr<const SegmentIndex>(std::move(index));
}

std::size_t SegmentIndex::at(std::int32_t layer, std::int32_t kv_head) const {
  const auto index = static_cast<std::size_t>(layer * kv_head_count_ + kv_head);
  ICE_CHECK(index < heads_.size());
  return index;
}

HeadIndex SegmentIndex::head(std::int32_t layer, std::int32_t kv_head,
                             LastExtent last_extent) const {
  const HeadIndex& head = heads_[at(layer, kv_head)];
  return last_extent == LastExtent::kInWindow ? without_last_extent(head) : head;
}

const std::uint32_t* SegmentIndex::row_checks(std::int32_t layer, std::int32_t kv_head) const {
  return heads_[at(layer, kv_head)].codes.check;
}

}  // namespace icefield
