// common/metrics.h — counters, members of the component that counts.
#pragma once

#include <atomic>
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

}  // namespace icefield
