// common/metrics.h — counters and histograms, members of the component that counts.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

namespace icefield {

// Only goes up. Name it icefield_<module>_<noun>_<unit>_total.
//
// Threads  Safe from any thread: single relaxed additions; readers want no order between counters.
class Counter {
 public:
  constexpr Counter(const char* name, const char* help) : name_(name), help_(help) {}
  void add(std::int64_t count = 1) { value_.fetch_add(count, std::memory_order_relaxed); }
  std::int64_t value() const { return value_.load(std::memory_order_relaxed); }
  const char* name() const { return name_; }
  const char* help() const { return help_; }

 private:
  const char* name_;
  const char* help_;
  std::atomic<std::int64_t> value_{0};
};

// Durations in buckets that double: up to 1 µs, 2 µs, 4 µs … 67 s, and longer. Name it
// icefield_<module>_<noun>_seconds.
//
// Threads  Safe from any thread, as Counter.
class LatencyHistogram {
 public:
  static constexpr int kBucketCount = 27;  // and one more for what is longer

  constexpr LatencyHistogram(const char* name, const char* help) : name_(name), help_(help) {}

  void observe(std::chrono::nanoseconds duration) {
    const std::int64_t ns = duration.count() > 0 ? duration.count() : 0;
    const auto us = static_cast<std::uint64_t>((ns + 999) / 1000);
    const int bucket = us <= 1 ? 0 : static_cast<int>(std::bit_width(us - 1));
    const auto index = static_cast<std::size_t>(bucket < kBucketCount ? bucket : kBucketCount);
    buckets_[index].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(ns, std::memory_order_relaxed);
  }

  // Durations of at most bucket_seconds(bucket) and more than the bucket before; the last one,
  // kBucketCount, has no upper bound.
  std::int64_t count(int bucket) const {
    return buckets_[static_cast<std::size_t>(bucket)].load(std::memory_order_relaxed);
  }
  static double bucket_seconds(int bucket) { return 1e-6 * static_cast<double>(1LL << bucket); }
  double sum_seconds() const {
    return 1e-9 * static_cast<double>(sum_ns_.load(std::memory_order_relaxed));
  }
  const char* name() const { return name_; }
  const char* help() const { return help_; }

 private:
  const char* name_;
  const char* help_;
  std::array<std::atomic<std::int64_t>, kBucketCount + 1> buckets_{};
  std::atomic<std::int64_t> sum_ns_{0};
};

}  // namespace icefield
