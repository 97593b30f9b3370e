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

// What the step attends to beyond the rows of the set.
PartialBuffer FullAttention::own(std::int32_t number) const {
  PartialBuffer own(set_.group, set_.d_v);
  std::fill(own.out.begin(), own.out.end(), 0.0f);
  std::fill(own.lse.begin(), own.lse.end(), -HUGE_VALF);
  std::fill(own.tail.begin(), own.tail.end(), 0.0f);
  std::fill(own.fault.begin(), own.fault.end(), 0.0f);
  if (!set_.own_lse.empty()) {
    const std::int64_t first = static_cast<std::int64_t>(number) * set_.group;
    std::copy_n(set_.own_lse.begin() + first, own.lse.size(), own.lse.begin());
    std::copy_n(set_.own_out.begin() + first * set_.d_v, own.out.size(), own.out.begin());
  }
  return own;
}

void FullAttention::step(std::int32_t number) {
  const std::int32_t tokens = set_.tokens();
  const std::int32_t stride = scan_padded(tokens);
  const std::vector<float> q(set_.query(number), set_.query(number) + set_.group * set_.d_k);
  scan(keys_, q.data(), set_.group, set_.beta, share_.data(), stride);
  PartialBuffer beyond = own(number);
  strong_.clear();
  exact_mass_ = 0;
  std::fill(group_mass_.begin(), group_mass_.end(), 0.0f);
  for (std::int32_t h = 0; h < set_.group; ++h) {
    float* row = share_.data() + static_cast<std::int64_t>(h) * stride;
    const float own_logit = beyond.lse[at(h)];
    const float largest = std::max(*std::max_element(row, row + tokens), own_logit);
    const double own_weight = std::exp(static_cast<double>(own_logit - largest));
    double total = own_weight;
    for (std::int32_t t = 0; t < tokens; ++t) {
      row[t] = std::exp(row[t] - largest);
      total += static_cast<double>(row[t]);
    }
    const auto inverse = static_cast<float>(1 / total);
    exact_mass_ += own_weight / total / set_.group;
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
  const auto wanted = std::min(static_cast<std::int32_t>(kTopTokens), set_.indexed());
  top_scores(group_mass_.data(), set_.indexed(), wanted, best_.data());
  top_.clear();
  for (std::int32_t i = 0; i < wanted; ++i) {
    top_.push_back(set_.first_indexed + best_[at(i)].index);
  }
  PartialBuffer all = attend_rows(kernels_, shape_, q, set_.rows.data(), tokens);
  PartialBuffer exact =
      attend_rows(kernels_, shape_, q, exact_rows_.data(), std::ssize(exact_rows_) / set_.width());
  out_ = merge(kernels_, set_.d_v, {&all, &beyond});
  exact_ = merge(kernels_, set_.d_v, {&exact, &beyond});
}

}  // namespace icefield
