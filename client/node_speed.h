// client/node_speed.h — how long a read from a node is likely to take.
#pragma once

#include <chrono>
#include <cstdint>

namespace icefield {

// Moving averages of latency and bandwidth, from reads as they happen: small ones say what a round
// trip costs, large ones what a byte costs. Pure. Threads: one at a time.
class NodeSpeed {
 public:
  using Duration = std::chrono::nanoseconds;

  // A read of `bytes` took `time`.
  void note(std::int64_t bytes, Duration time) {
    const auto ns = static_cast<double>(time.count());
    if (bytes <= kSmallBytes) {
      blend(latency_ns_, ns);
      return;
    }
    // What the round trip took is not the bytes' fault; with no small read yet, all of it is.
    const double transfer = ns > 2 * latency_ns_ ? ns - latency_ns_ : ns / 2;
    blend(ns_per_byte_, transfer / static_cast<double>(bytes));
  }

  // Zero until something is known.
  Duration estimate(std::int64_t bytes) const {
    return Duration(
        static_cast<std::int64_t>(latency_ns_ + ns_per_byte_ * static_cast<double>(bytes)));
  }

 private:
  static constexpr std::int64_t kSmallBytes = 16 << 10;
  static constexpr double kWeight = 0.2;  // of the newest: the last ten reads make nine tenths

  static void blend(double& average, double sample) {
    average = average == 0 ? sample : average + kWeight * (sample - average);
  }

  double latency_ns_ = 0;
  double ns_per_byte_ = 0;
};

}  // namespace icefield
