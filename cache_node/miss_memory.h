// cache_node/miss_memory.h — why values that are gone are gone, in eight bytes each.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "common/status.h"

namespace icefield {

// Remembers a reason for the fingerprints noted last; older ones fall out, each within its own
// cache line of eight. Whoever is forgotten was never stored, as far as anyone can tell.
//
// Threads  One at a time.
class MissMemory {
 public:
  explicit MissMemory(std::size_t entry_count = std::size_t{1} << 16)
      : lines_(std::bit_ceil(std::max(entry_count / kWays, std::size_t{1}))) {}

  void note(std::uint64_t fingerprint, MissReason reason) {
    Line& line = lines_[line_number(fingerprint)];
    const std::size_t at = std::min(find(line, fingerprint), kWays - 1);
    std::rotate(line.begin(), line.begin() + at, line.begin() + at + 1);
    line.front() = name(fingerprint) | static_cast<std::uint64_t>(reason);
  }

  MissReason recall(std::uint64_t fingerprint) const {
    const Line& line = lines_[line_number(fingerprint)];
    const std::size_t at = find(line, fingerprint);
    if (at == kWays) return MissReason::kNeverStored;
    return static_cast<MissReason>(line[at] & kReasonBits);
  }

  void forget(std::uint64_t fingerprint) {
    Line& line = lines_[line_number(fingerprint)];
    const std::size_t at = find(line, fingerprint);
    if (at < kWays) line[at] = 0;
  }

 private:
  static constexpr std::size_t kWays = 8;
  static constexpr std::uint64_t kReasonBits = 15;
  using Line = std::array<std::uint64_t, kWays>;  // the newest first; 0: empty

  static std::uint64_t name(std::uint64_t fingerprint) { return fingerprint & ~kReasonBits; }
  std::size_t line_number(std::uint64_t fingerprint) const {
    return static_cast<std::size_t>(fingerprint >> 20) & (lines_.size() - 1);
  }
  // kWays when it is not there.
  static std::size_t find(const Line& line, std::uint64_t fingerprint) {
    std::size_t at = 0;
    while (at < kWays && (line[at] == 0 || name(line[at]) != name(fingerprint))) ++at;
    return at;
  }
  std::vector<Line> lines_;
};

}  // namespace icefield
