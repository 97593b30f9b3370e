// proto/layout.h — every number of the stored layout, in one place.
//
// Layout version 1 is frozen: a change of any number below raises the version, and a reader refuses
// every other one. The bytes are described in docs/formats/part.md, extent.md and manifest.md.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "common/status.h"

namespace icefield {

constexpr std::uint16_t kLayoutVersion = 1;

// Sequence.
constexpr std::int32_t kSinkTokens = 16;   // kept exact; the first rows of the segment at 0
constexpr std::int32_t kExtentRows = 256;  // rows of one extent; also the window's grain
constexpr std::array<std::int32_t, 3> kSegmentTokens = {256, 1024, 4096};  // aligned lengths
constexpr std::int32_t kMaxSegmentTokens = kSegmentTokens.back();

// Clusters.
constexpr std::int32_t kListTokens = 64;            // mean size of a list
constexpr std::int32_t kOneListBelowTokens = 1024;  // shorter segments have one list per extent
constexpr std::int32_t kClusterTokens = 19;         // mean size of a cluster
constexpr std::int32_t kMaxClusterTokens = 48;
constexpr std::int32_t kSlopeTokens = kMaxSegmentTokens;  // shorter segments carry no slope

// Panels: runs of clusters (L0, L1) or tokens (L2) whose numbers are interleaved for SIMD.
constexpr std::int32_t kClusterPanel = 32;
constexpr std::int32_t kClusterPanelGrain = 4;  // the last panel's width is rounded up to it
constexpr std::int32_t kCodePanel = 16;
constexpr std::int32_t kPartAlign = 64;  // bytes; of every array inside a part

// L2 codes: two bits per dimension of the rotated residual. Code c stands for level 2 c - 3, times
// one fp16 scale per token. Levels at equal distances are exact in integers, and for a normal
// variable 1 % short of the best four levels there are (Max 1960).
constexpr std::int32_t kCodeBits = 2;
constexpr std::int32_t kCodeGroup = 16;  // dimensions whose codes of one row share a word
constexpr std::int32_t code_level(std::uint32_t code) {
  return 2 * static_cast<std::int32_t>(code) - 3;
}
constexpr float kCodeThreshold = 2;                  // × scale: midpoint of the positive levels
constexpr std::uint64_t kRotationSeed = 0x1cef1e1d;  // signs of the randomised Hadamard rotation

constexpr std::int32_t kMaxHeadDim = 256;

// Shape of the K/V of a model, the same for every layer.
struct KvShape {
  std::int32_t layer_count = 0;
  std::int32_t kv_head_count = 0;
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;

  // Bytes of one row: K[d_k] V[d_v] of one token for one (layer, KV head), bf16.
  std::int64_t row_bytes() const { return 2 * (static_cast<std::int64_t>(d_k) + d_v); }
  // Bytes of the K/V of one token, all layers and heads.
  std::int64_t token_bytes() const {
    return row_bytes() * layer_count * static_cast<std::int64_t>(kv_head_count);
  }
  friend bool operator==(const KvShape&, const KvShape&) = default;
};

// Ok when the kernels and formats can hold this shape: counts in range, head dimensions that are
// multiples of 16 up to kMaxHeadDim.
Status validate(const KvShape& shape);

}  // namespace icefield
