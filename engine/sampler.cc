#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace icefield {

TokenId most_likely(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TokenId Sampler::next(std::span<const float> logits) {
  if (temperature_ <= 0) return most_likely(logits);
  const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  std::vector<double> cumulative;
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp((static_cast<double>(logit) - largest) / temperature_);
    cumulative.push_back(sum);
  }
  const double point = rng_.unit() * sum;
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), point);
  const auto token = std::min<std::ptrdiff_t>(found - cumulative.begin(),
                                              static_cast<std::ptrdiff_t>(logits.size()) - 1);
  return static_cast<TokenId>(token);
}

double log_probability(std::span<const float> logits, TokenId token) {
  const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return static_cast<double>(logits[token]) - largest - std::log(sum);
}

}  // namespace icefield
