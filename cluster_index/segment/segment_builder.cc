#include "cluster_index/segment/segment_builder.h"

#include <mutex>

namespace icefield {
namespace {

// The first error of several threads.
class FirstError {
 public:
  void note(Status status) {
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = std::move(status);
  }
  Status status() const { return status_; }

 private:
  std::mutex mutex_;
  Status status_;
};

class Builder {
 public:
  Builder(const SegmentInput& input, const Kernels& kernels, ThreadPool& pool)
      : input_(input),
        kernels_(kernels),
        pool_(pool),
        heads_(input.slice.kv_head_count),
        partitions_(static_cast<std::size_t>(input.slice.layer_count * heads_)) {}

  Result<BuiltSegment> run() {
    built_.name_space = input_.name_space;
    built_.manifest = {.name_space = namespace_id(input_.name_space),
                       .fingerprint = input_.fingerprint,
                       .segment = input_.name,
                       .model = input_.model,
                       .slice = input_.slice,
                       .parts = {}};
    built_.rows.resize(partitions_.size());
    built_.index.resize(static_cast<std::size_t>(input_.slice.layer_count));
    built_.order.resize(static_cast<std::size_t>(input_.slice.layer_count));
    FirstError error;
    for_each_head([&](std::int32_t layer, std::int32_t head) {
      Status status = partition(layer, head);
      if (!status.ok()) {
        error.note(status.with_context("layer " + std::to_string(input_.slice.first_layer + layer) +
                                       " KV head " +
                                       std::to_string(input_.slice.first_kv_head + head)));
      }
    });
    ICE_TRY(error.status());
    for (std::int32_t layer = 0; layer < input_.slice.layer_count; ++layer) make_parts(layer);
    for_each_head([&](std::int32_t layer, std::int32_t head) { describe(layer, head); });
    list_parts();
    return std::move(built_);
  }

 private:
  PartShape shape(std::int32_t layer) const {
    return {.layer = input_.slice.first_layer + layer,
            .first_kv_head = input_.slice.first_kv_head,
            .kv_head_count = heads_,
            .d_k = input_.model.d_k,
            .d_v = input_.model.d_v,
            .row_count = input_.name.token_count,
            .first_indexed_row = input_.name.first_token == 0 ? kSinkTokens : 0};
  }
  std::size_t at(std::int32_t layer, std::int32_t head) const {
    return static_cast<std::size_t>(layer * heads_ + head);
  }
  template <class Body>
  void for_each_head(Body body) {
    pool_.parallel_for(static_cast<std::int64_t>(partitions_.size()), [&](std::int64_t index) {
      body(static_cast<std::int32_t>(index) / heads_, static_cast<std::int32_t>(index) % heads_);
    });
  }

  // Clusters one head and puts its rows in stored order.
  Status partition(std::int32_t layer, std::int32_t head) {
    const PartShape part = shape(layer);
    const std::int64_t width = part.d_k + part.d_v;
    thread_local std::vector<Bf16> rows;
    rows.resize(static_cast<std::size_t>(part.row_count * width));
    input_.read_rows(part.layer, part.first_kv_head + head, rows.data());
    Partition& partition = partitions_[at(layer, head)];
    ICE_TRY(kernels_.partition({.d_k = part.d_k,
                                .d_v = part.d_v,
                                .row_count = part.row_count,
                                .first_indexed_row = part.first_indexed_row,
                                .rows = rows.data()},
                               partition));
    const auto row_bytes = static_cast<std::size_t>(width) * sizeof(Bf16);
    AlignedBytes& stored = built_.rows[at(layer, head)];
    stored.resize(rows.size() * sizeof(Bf16));
    for (std::size_t row = 0; row < partition.order.size(); ++row) {
      std::memcpy(stored.data() + row * row_bytes, rows.data() + partition.order[row] * width,
                  row_bytes);
    }
    return Status();
  }

  void make_parts(std::int32_t layer) {
    std::vector<std::int32_t> lists;
    std::vector<std::int32_t> clusters;
    for (std::int32_t head = 0; head < heads_; ++head) {
      const Partition& partition = partitions_[at(layer, head)];
      lists.push_back(static_cast<std::int32_t>(partition.list_rows.size()));
      clusters.push_back(static_cast<std::int32_t>(partition.cluster_rows.size()));
    }
    SegmentIndex::LayerParts& parts = built_.index[static_cast<std::size_t>(layer)];
    parts.lists = make_level_part(PartKind::kLists, shape(layer), lists);
    parts.clusters = make_level_part(PartKind::kClusters, shape(layer), clusters);
    parts.codes = make_codes_part(shape(layer));
    built_.order[static_cast<std::size_t>(layer)] = make_order_part(shape(layer));
  }

  void describe(std::int32_t layer, std::int32_t head) {
    const PartShape part = shape(layer);
    const Partition& partition = partitions_[at(layer, head)];
    SegmentIndex::LayerParts& parts = built_.index[static_cast<std::size_t>(layer)];
    const AlignedBytes& rows = built_.rows[at(layer, head)];
    MutableCodesView codes = mutable_codes(parts.codes, head);
    kernels_.describe({.d_k = part.d_k,
                       .d_v = part.d_v,
                       .row_count = part.row_count,
                       .first_indexed_row = part.first_indexed_row,
                       .rows = reinterpret_cast<const Bf16*>(rows.data()),
                       .partition = &partition,
                       .lists = mutable_level(parts.lists, head),
                       .clusters = mutable_level(parts.clusters, head),
                       .codes = codes});
    const SegmentId segment = input_.name.id();
    const std::size_t row_bytes = rows.size() / static_cast<std::size_t>(part.row_count);
    for (std::int32_t row = 0; row < part.row_count; ++row) {
      codes.check[row] = row_check(
          ConstByteSpan(rows).subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes),
          segment, static_cast<std::uint16_t>(part.layer),
          static_cast<std::uint16_t>(part.first_kv_head + head), static_cast<std::uint32_t>(row));
    }
    std::copy(partition.order.begin(), partition.order.end(),
              mutable_order(built_.order[static_cast<std::size_t>(layer)], head));
  }

  void list_parts() {
    Manifest& manifest = built_.manifest;
    for (const PartId& id : parts_of(input_.slice, input_.name.token_count)) {
      manifest.parts.push_back({.id = id});
    }
    const SegmentId segment = input_.name.id();
    pool_.parallel_for(static_cast<std::int64_t>(manifest.parts.size()), [&](std::int64_t index) {
      const auto i = static_cast<std::size_t>(index);
      PartEntry& entry = manifest.parts[i];
      const ConstByteSpan bytes = built_.part(i);
      entry.bytes = bytes.size();
      entry.checksum = xxh3(bytes, checksum_seed(segment, entry.id.kind, entry.id.layer,
                                                 entry.id.kv_head, entry.id.extent));
    });
    built_.manifest_bytes = manifest.serialise();
    built_.build = build_id(built_.manifest_bytes);
  }

  const SegmentInput& input_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const std::int32_t heads_;
  std::vector<Partition> partitions_;  // [layer, KV head]
  BuiltSegment built_;
};

}  // namespace

ConstByteSpan BuiltSegment::part(std::size_t part_index) const {
  const PartId& id = manifest.parts[part_index].id;
  const auto layer = static_cast<std::size_t>(id.layer - manifest.slice.first_layer);
  switch (id.kind) {
    case PartKind::kLists: return index[layer].lists;
    case PartKind::kClusters: return index[layer].clusters;
    case PartKind::kCodes: return index[layer].codes;
    case PartKind::kOrder: return order[layer];
    default: break;
  }
  const auto head = static_cast<std::size_t>(id.kv_head - manifest.slice.first_kv_head);
  const auto heads = static_cast<std::size_t>(manifest.slice.kv_head_count);
  const auto extent_bytes =
      static_cast<std::size_t>(kExtentRows) * static_cast<std::size_t>(manifest.model.row_bytes());
  return ConstByteSpan(rows[layer * heads + head]).subspan(id.extent * extent_bytes, extent_bytes);
}

Result<BuiltSegment> build_segment(const SegmentInput& input, const Kernels& kernels,
                                   ThreadPool& pool) {
  ICE_TRY(validate(input.model));
  ICE_TRY(validate_alignment(input.name.first_token, input.name.token_count));
  return Builder(input, kernels, pool).run();
}

}  // namespace icefield
