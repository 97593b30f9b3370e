#include "common/rng.h"

#include "common/check.h"

namespace icefield {

std::uint64_t Rng::below(std::uint64_t bound) {
  ICE_CHECK(bound > 0);
  // Words below 2^64 mod bound would make the small residues more likely.
  const std::uint64_t reject_below = (0 - bound) % bound;
  while (true) {
    const std::uint64_t word = next();
    if (word >= reject_below) return word % bound;
  }
}

std::uint64_t SeededRng::next() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace icefield
