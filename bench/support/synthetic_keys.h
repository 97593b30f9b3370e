// bench/support/synthetic_keys.h — made-up keys, values and queries that look like those of a
// model with rotary positions, and some that are meant to hurt.
#pragma once

#include "bench/support/key_set.h"
#include "common/status.h"

namespace icefield {

// The first two are the ones that figures are reported for; the others stress one thing each.
enum class SyntheticKind : std::uint8_t {
  kDiffuse = 0,   // κ = 1.5: attention spreads over thousands of tokens
  kPeaked = 1,    // κ = 2.2
  kFlat = 2,      // independent keys without any structure: no index can help
  kOutliers = 3,  // one key in a hundred is four times as long
  kNeedles = 4,   // near-duplicates, of which one in sixteen carries the value
  kDrift = 5,     // topics move with the position
  kUniform = 6,   // attention to everything alike: only the tail can be right
  kRecency = 7,   // queries look for what was among the last tokens
};
// "diffuse", "peaked", …; kInvalidArgument lists them.
Result<SyntheticKind> parse_synthetic_kind(const std::string& name);

struct SyntheticOptions {
  SyntheticKind kind = SyntheticKind::kDiffuse;
  std::int32_t tokens = 0;
  std::int32_t head_dim = 128;  // d_k and d_v
  std::int32_t group = 8;
  std::int32_t steps = 64;
  std::uint64_t seed = 1234;
};

// The same options give the same set on every machine (up to its libm). The recipe, for d = 128;
// other dimensions take the pair at the same share of the spectrum:
//
// - Pairs (j, j + 64) turn with the position (rotary, base 500 000). A pair's scale s is 0.35 up to
//   pair 31, grows linearly to 1.6 at pair 48 and stays there: content is in slow pairs.
// - All keys share the mean +8, -8, +8, -8 on channels 50, 55, 59, 62: outlier channels.
// - N/50 clusters g_c, ν_c ~ N(0, I). Tokens come in runs of geometric length (mean 12), each run
//   of one cluster, drawn by Zipf's law (exponent 0.8).
// - key_i = rotate_i(mean + s ⊙ (g_c + 0.5 ε)), value_i = ν_c + 0.7 ε.
// - query of step t, at position N + t: rotate(q̄ + κ (0.8 s ⊙ g_c + 0.6 s ⊙ ξ)) with q̄ = ±1 on
//   the outlier channels and c the cluster of a random token. The rows of a group share half of the
//   energy of ξ, and half of the rows share c.
KeySet synthetic_keys(const SyntheticOptions& options);

}  // namespace icefield
