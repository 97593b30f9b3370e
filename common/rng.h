// common/rng.h — the door to randomness.
#pragma once

#include <cstdint>

namespace icefield {

// Random 64-bit words. Threads: one at a time.
class Rng {
 public:
  virtual ~Rng() = default;
  virtual std::uint64_t next() = 0;

  // Uniform in [0, bound), bound > 0, without bias.
  std::uint64_t below(std::uint64_t bound);
  // Uniform in [0, 1), 53 bits.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

// The same words for the same seed on every machine (SplitMix64; Steele, Lea, Flood 2014).
class SeededRng final : public Rng {
 public:
  explicit SeededRng(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() override;

 private:
  std::uint64_t state_;
};

// The operating system's entropy: incarnations and tags that must never repeat.
class SystemRng final : public Rng {
 public:
  std::uint64_t next() override;
};

}  // namespace icefield
