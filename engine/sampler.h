// engine/sampler.h — the next token from logits.
#pragma once

#include <span>

#include "common/rng.h"
#include "engine/tokenizer.h"

namespace icefield {

// The most likely token; the lowest id of equals.
TokenId most_likely(std::span<const float> logits);

// Greedy at temperature 0, else drawn from softmax(logits / temperature).
class Sampler {
 public:
  Sampler(double temperature, std::uint64_t seed) : temperature_(temperature), rng_(seed) {}
  TokenId next(std::span<const float> logits);

 private:
  const double temperature_;
  SeededRng rng_;
};

// ln softmax(logits)[token].
double log_probability(std::span<const float> logits, TokenId token);

}  // namespace icefield
