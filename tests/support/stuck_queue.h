// tests/support/stuck_queue.h — what a process leaves behind that is killed while it writes into
// another's queue in shared memory.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

namespace icefield {

// The queue of the UCX worker that is created in this process between the constructor and found().
// UCX 1.13 keeps the number of entries taken at its beginning, and each entry's owner bit says
// whether it was filled.
class StuckQueue {
 public:
  StuckQueue() : before_(mappings()) {}

  void find() {
    std::uint64_t bytes = UINT64_MAX;
    for (const auto& [begin, size] : mappings()) {
      if (before_.contains(begin) || size >= bytes) continue;  // the others are segments
      taken_ = reinterpret_cast<std::atomic<std::uint64_t>*>(begin);
      bytes = size;
    }
    ASSERT_NE(taken_, nullptr);
  }
  // Takes an entry and does not fill it.
  void get_stuck() { ++*taken_; }

 private:
  // Sizes of what UCX shares in this process, by address.
  static std::map<std::uint64_t, std::uint64_t> mappings() {
    std::map<std::uint64_t, std::uint64_t> found;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("ucx_shm_posix") == line.npos) continue;
      std::istringstream range(line);
      std::uint64_t begin = 0;
      std::uint64_t end = 0;
      char dash = 0;
      range >> std::hex >> begin >> dash >> end;
      found[begin] = end - begin;
    }
    return found;
  }

  const std::map<std::uint64_t, std::uint64_t> before_;
  std::atomic<std::uint64_t>* taken_ = nullptr;
};

}  // namespace icefield
