// bench/support/full_attention.h — what a step of full attention looks at and gives: the truth that
// methods are compared with.
#pragma once

#include <vector>

#include "bench/baselines/scan_kernels.h"
#include "bench/support/key_set.h"
#include "bench/support/selection_fixture.h"

namespace icefield {

struct StrongPair {
  std::int32_t row = 0;    // query row
  std::int32_t token = 0;  // indexed; has more than kStrongShare of the row's attention
};
constexpr float kStrongShare = 0.1f;
constexpr std::size_t kTopTokens = 64;

class FullAttention {
 public:
  FullAttention(const Kernels& kernels, const KeySet& set);

  void step(std::int32_t number);

  // Of the last step.
  const float* share(std::int32_t row) const;  // [tokens] of the row's attention
  const std::vector<StrongPair>& strong() const { return strong_; }
  const std::vector<std::int32_t>& top() const { return top_; }  // kTopTokens, of the whole group
  double exact_mass() const { return exact_mass_; }           // of sink and window, mean over rows
  const std::vector<float>& out() const { return out_.out; }  // [group, d_v]
  PartialBuffer& exact() { return exact_; }                   // of the same

 private:
  const Kernels& kernels_;
  const KeySet& set_;
  const HeadShape shape_;
  const Bf16Vectors keys_;         // of all tokens
  std::vector<Bf16> exact_rows_;   // sink and window
  std::vector<float> share_;       // [group, padded tokens]
  std::vector<float> group_mass_;  // [indexed]
  std::vector<Scored> best_;
  std::vector<StrongPair> strong_;
  std::vector<std::int32_t> top_;
  double exact_mass_ = 0;
  PartialBuffer out_;
  PartialBuffer exact_;

  PartialBuffer own(std::int32_t number) const;
};

}  // namespace icefield
