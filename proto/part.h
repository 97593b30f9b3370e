// proto/part.h — parts of kinds L0 to order: one layer of a build's slice, all its KV heads.
//
// A part is read in place: what a node stores, what the wire carries and what the kernels scan are
// the same bytes (docs/formats/part.md). Writers lay out an empty part and fill the arrays that the
// mutable views point to; readers parse, which validates everything that a kernel relies on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/float_bits.h"
#include "common/ids.h"
#include "common/status.h"
#include "proto/layout.h"

namespace icefield {

// Statistics of the clusters (L1) or lists (L0) of one (segment, layer, KV head), in stored order.
// Arrays are padded to `padded_count`; padding has count 0 and ln_count -inf, so it weighs nothing.
// T is const-qualified for readers.
template <template <class> class Qualify>
struct BasicLevelView {
  std::int32_t count = 0;  // clusters in use; a reader may lower it to leave the last ones out
  std::int32_t stored_count = 0;  // clusters stored: decides where things are
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;

  Qualify<std::int8_t>* key_means = nullptr;      // panels, see key_panel()
  Qualify<std::int8_t>* value_means = nullptr;    // [stored_count, d_v]
  Qualify<float>* key_scale = nullptr;            // [padded] mean = scale × int8
  Qualify<float>* value_scale = nullptr;          // [padded]
  Qualify<float>* ln_count = nullptr;             // [padded]
  Qualify<Fp16>* sigma = nullptr;                 // [padded] variance scalar
  Qualify<std::uint16_t>* token_count = nullptr;  // [padded]
  Qualify<std::uint16_t>* first_row = nullptr;    // [padded] first stored row
  Qualify<float>* gamma = nullptr;                // [d_k] variance shape
  // How values follow keys inside clusters: scale × int8. Null in L0 and in segments of fewer than
  // kSlopeTokens.
  Qualify<std::int8_t>* slope = nullptr;  // [d_k, d_v]
  Qualify<float>* slope_scale = nullptr;  // [d_k]

  static std::int32_t padded(std::int32_t count) {
    return static_cast<std::int32_t>(round_up(count, kClusterPanelGrain));
  }
  std::int32_t panel_count() const {
    return static_cast<std::int32_t>(ceil_div(stored_count, kClusterPanel));
  }
  // Clusters side by side in panel `panel`: 32, in the last panel the rest rounded up to 4.
  std::int32_t panel_width(std::int32_t panel) const {
    const std::int32_t left = stored_count - panel * kClusterPanel;
    return left >= kClusterPanel ? kClusterPanel : padded(left);
  }
  // [d_k / 4, panel_width, 4]
  Qualify<std::int8_t>* key_panel(std::int32_t panel) const {
    return key_means + static_cast<std::int64_t>(panel) * kClusterPanel * d_k;
  }
  // Where dimension `dim` of cluster `index`'s key mean stands in key_means.
  std::int64_t key_mean_at(std::int32_t index, std::int32_t dim) const {
    const std::int32_t panel = index / kClusterPanel;
    const std::int64_t in_panel =
        (static_cast<std::int64_t>(dim / 4) * panel_width(panel) + index % kClusterPanel) * 4 +
        dim % 4;
    return static_cast<std::int64_t>(panel) * kClusterPanel * d_k + in_panel;
  }
};
template <class T>
using AsConst = const T;
template <class T>
using AsMutable = T;
using LevelView = BasicLevelView<AsConst>;
using MutableLevelView = BasicLevelView<AsMutable>;

// Codes and row checks of one (segment, layer, KV head), by stored row.
template <template <class> class Qualify>
struct BasicCodesView {
  std::int32_t row_count = 0;
  std::int32_t d_k = 0;
  Qualify<std::uint32_t>* codes = nullptr;  // [⌈rows/16⌉, d_k/16, 16 rows], see code_word()
  Qualify<Fp16>* scale = nullptr;           // [rows padded to 16]
  Qualify<std::uint32_t>* check = nullptr;  // [rows] row_check()

  std::int32_t panel_count() const {
    return static_cast<std::int32_t>(ceil_div(row_count, kCodePanel));
  }
  // The word that holds dimensions dim / 16 × 16 to + 15 of a row. Dimension 4 k + b of these is at
  // bit 8 b + 2 k: a shift by 2 k and a mask give four neighbouring dimensions in four bytes.
  Qualify<std::uint32_t>& code_word(std::int32_t row, std::int32_t dim) const {
    return codes[static_cast<std::int64_t>(row / kCodePanel) * d_k + dim / kCodeGroup * kCodePanel +
                 row % kCodePanel];
  }
  static int code_shift(std::int32_t dim) {
    return 8 * (dim % 4) + kCodeBits * (dim % kCodeGroup / 4);
  }
  std::uint32_t code(std::int32_t row, std::int32_t dim) const {
    return (code_word(row, dim) >> code_shift(dim)) & 3u;
  }
};
using CodesView = BasicCodesView<AsConst>;
using MutableCodesView = BasicCodesView<AsMutable>;

// What the parts of one layer have in common.
struct PartShape {
  std::int32_t layer = 0;
  std::int32_t first_kv_head = 0;
  std::int32_t kv_head_count = 0;
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::int32_t row_count = 0;          // tokens of the segment
  std::int32_t first_indexed_row = 0;  // kSinkTokens in the segment at position 0, else 0

  friend bool operator==(const PartShape&, const PartShape&) = default;
};

// ------------------------------------------------------------------------------------- writing

// An empty L0 or L1 part; counts[head] clusters each. Padding is filled in.
AlignedBytes make_level_part(PartKind kind, const PartShape& shape,
                             std::span<const std::int32_t> counts);
AlignedBytes make_codes_part(const PartShape& shape);
AlignedBytes make_order_part(const PartShape& shape);

// Views of head `head_index` (from 0 within the slice) of a part that make_…_part() made.
MutableLevelView mutable_level(AlignedBytes& part, std::int32_t head_index);
MutableCodesView mutable_codes(AlignedBytes& part, std::int32_t head_index);
std::uint16_t* mutable_order(AlignedBytes& part, std::int32_t head_index);  // [row_count]

// ------------------------------------------------------------------------------------- reading

// A parsed part borrows its bytes, which must outlive it. parse_…() give kInvalidArgument with what
// is wrong (bytes that are not 64-byte aligned, another magic, version, kind, length, a count or an
// offset that does not fit); after they succeed every index in the views is in range.
struct LevelPart {
  PartShape shape;
  std::vector<LevelView> heads;
};
struct CodesPart {
  PartShape shape;
  std::vector<CodesView> heads;
};
struct OrderPart {
  PartShape shape;
  std::vector<const std::uint16_t*> heads;  // [row_count] each: offset of the token in the segment
};

Result<LevelPart> parse_level_part(ConstByteSpan part, PartKind kind);
Result<CodesPart> parse_codes_part(ConstByteSpan part);
Result<OrderPart> parse_order_part(ConstByteSpan part);

}  // namespace icefield
