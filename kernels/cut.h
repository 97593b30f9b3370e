// kernels/cut.h — device code: votes, and the largest of many of them by radix in one block.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/head_index.h"
#include "kernels/launch_math.h"

namespace icefield::gpu {

// e^min(logit - R, 80), and 0 below e^-87 as on every processor.
ICE_DEVICE float vote_of(float logit, float reference) {
  const float above = logit - reference;
  if (above < kLeastExponent) return 0;
  return exponential(above < kVoteExponentCap ? above : kVoteExponentCap);
}

constexpr int kCutThreads = 1024;
constexpr std::uint32_t kCutBuffer = 1024;  // items of the bin of the cut that are kept at hand

struct CutItem {
  std::uint64_t key = 0;     // all different: selection_key()
  std::uint32_t weight = 0;  // > 0
};

struct CutShared {
  std::uint32_t weights[kDigitBins];
  std::uint32_t items[kDigitBins];
  CutItem buffer[kCutBuffer];
  std::uint32_t scan[33];
  std::uint32_t buffered;
  std::uint32_t bin;     // of the cut
  std::uint32_t before;  // weight of what is larger than that bin
};

struct BufferedItems {
  const CutItem* items;
  ICE_DEVICE CutItem at(int i) const { return items[i]; }
};

// Histogram of one digit of the items whose higher digits are those of `prefix`.
template <class Items>
ICE_DEVICE void count_digit(const Items& items, int count, std::uint64_t prefix, std::uint64_t mask,
                            int digit, CutShared& shared) {
  for (int bin = thread(); bin < kDigitBins; bin += thread_count()) {
    shared.weights[bin] = shared.items[bin] = 0;
  }
  sync_threads();
  for (int i = thread(); i < count; i += thread_count()) {
    const CutItem item = items.at(i);
    if ((item.key & mask) != prefix) continue;
    const std::uint32_t bin = digit_of(item.key, digit);
    atomic_add(&shared.weights[bin], item.weight);
    atomic_add(&shared.items[bin], 1u);
  }
  sync_threads();
}

// The bin in which the weights, from the largest digit on, reach `wanted`; false: they never do.
ICE_DEVICE bool find_bin(std::int64_t wanted, CutShared& shared) {
  const int per_thread = kDigitBins / thread_count();  // threads divide the bins
  const int top = kDigitBins - 1 - thread() * per_thread;
  std::uint32_t sum = 0;
  for (int i = 0; i < per_thread; ++i) sum += shared.weights[top - i];
  unsigned total = 0;
  std::uint32_t before = block_exclusive_sum(sum, shared.scan, total);
  if (total < wanted) return false;
  for (int i = 0; i < per_thread; ++i) {
    const std::uint32_t weight = shared.weights[top - i];
    if (before < wanted && wanted <= static_cast<std::int64_t>(before) + weight) {
      shared.bin = static_cast<std::uint32_t>(top - i);
      shared.before = before;
    }
    before += weight;
  }
  sync_threads();
  return true;
}

// The items in descending order of key, until their weights add up to `wanted` (> 0) or more: the
// key of the last of them. 0 when all of them are not enough. Deterministic: sums of integers.
template <class Items>
ICE_DEVICE std::uint64_t find_cut(const Items& items, int count, std::int64_t wanted,
                                  CutShared& shared) {
  std::uint64_t prefix = 0;
  std::uint64_t mask = 0;
  bool buffered = false;
  for (int digit = 0; digit < kDigits; ++digit) {
    if (buffered) {
      count_digit(BufferedItems{shared.buffer}, static_cast<int>(shared.buffered), prefix, mask,
                  digit, shared);
    } else {
      count_digit(items, count, prefix, mask, digit, shared);
    }
    if (!find_bin(wanted, shared)) return 0;
    const std::uint32_t bin = shared.bin;
    const std::uint32_t weight = shared.weights[bin];
    const std::uint32_t in_bin = shared.items[bin];
    sync_threads();  // the next digit overwrites what was read here
    wanted -= shared.before;
    prefix |= static_cast<std::uint64_t>(bin) << digit_shift(digit);
    mask = digit_mask(digit);
    if (wanted == weight || in_bin == 1) break;  // the whole bin is taken
    if (buffered || in_bin > kCutBuffer) continue;
    // Few enough are left to keep them at hand: the other passes do not read them all again.
    if (thread() == 0) shared.buffered = 0;
    sync_threads();
    for (int i = thread(); i < count; i += thread_count()) {
      const CutItem item = items.at(i);
      if ((item.key & mask) == prefix) shared.buffer[atomic_add(&shared.buffered, 1u)] = item;
    }
    sync_threads();
    buffered = true;
  }
  return prefix;
}

}  // namespace icefield::gpu
