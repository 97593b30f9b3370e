#include "bench/support/full_attention.h"

#include <algorithm>
#include <cmath>

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

FullAttention::FullAttention(const Kernels& kernels, const KeySet& set)
    : kernels_(kernels),
      set_(set),
      shape_{.d_k = set.d_k, .d_v = set.d_v, .beta = set.beta},
      keys_(Bf16Vectors::make(set.rows.data(), set.width(), set.tokens(), set.d_k)),
      share_(at(static_cast<std::int64_t>(set.group) * scan_padded(set.tokens()))),
      group_mass_(at(set.indexed())),
      best_(at(top_room(static_cast<std::int32_t>(kTopTokens)))),
      out_(set.group, set.d_v),
      exact_(set.group, set.d_v) {
  exact_rows_.assign(set.row(0), set.row(set.first_indexed));
  exact_rows_.insert(exact_rows_.end(), set.row(set.end_indexed), set.row(set.tokens()));
}

const float* FullAttention::share(std::int32_t row) const {
  return share_.data() + static_cast<std::int64_t>(row) * scan_padded(set_.tokens());
}

void FullAttention::step(std::int32_t number) {
  const std::int32_t tokens = set_.tokens();
  const std::int32_t stride = scan_padded(tokens);
  const std::vector<float> q(set_.query(number), set_.query(number) + set_.group * set_.d_k);
  scan(keys_, q.data(), set_.group, set_.beta, share_.data(), stride);
  strong_.clear();
  exact_mass_ = 0;
  std::fill(group_mass_.begin(), group_mass_.end(), 0.0f);
  for (std::int32_t h = 0; h < set_.group; ++h) {
    float* row = share_.data() + static_cast<std::int64_t>(h) * stride;
    const float largest = *std::max_element(row, row + tokens);
    double total = 0;
    for (std::int32_t t = 0; t < tokens; ++t) {
      row[t] = std::exp(row[t] - largest);
      total += static_cast<double>(row[t]);
    }
    const auto inverse = static_cast<float>(1 / total);
    for (std::int32_t t = 0; t < tokens; ++t) {
      row[t] *= inverse;
      if (t < set_.first_indexed || t >= set_.end_indexed) {
        exact_mass_ += static_cast<double>(row[t]) / set_.group;
        continue;
      }
      group_mass_[at(t - set_.first_indexed)] += row[t];
      if (row[t] > kStrongShare) strong_.push_back({h, t});
    }
  }
  const auto wanted =
      std::min(static_cast<std::int32_t>(kTopTokens), static_cast<std::int32_t>(set_.indexed()));
  top_scores(group_mass_.data(), set_.indexed(), wanted, best_.data());
  top_.clear();
  for (std::int32_t i = 0; i < wanted; ++i) {
    top_.push_back(set_.first_indexed + best_[at(i)].index);
  }
  out_ = attend_rows(kernels_, shape_, q, set_.rows.data(), tokens);
  exact_ =
      attend_rows(kernels_, shape_, q, exact_rows_.data(), std::ssize(exact_rows_) / set_.width());
}

}  // namespace icefield
