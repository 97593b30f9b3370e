// client/flush_numbers.h — how often each namespace has been flushed, as far as a client knows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

namespace icefield {

// The highest number seen for each namespace. Threads: any.
class FlushNumbers {
 public:
  // 0 for one that nobody said anything of.
  std::uint64_t of(std::string_view name_space) const {
    const std::lock_guard lock(mutex_);
    const auto found = numbers_.find(name_space);
    return found == numbers_.end() ? 0 : found->second;
  }
  void learn(std::string_view name_space, std::uint64_t number) {
    if (number == 0) return;
    const std::lock_guard lock(mutex_);
    std::uint64_t& known = numbers_[std::string(name_space)];
    known = std::max(known, number);
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::uint64_t, std::less<>> numbers_;  // guarded by mutex_
};

}  // namespace icefield
