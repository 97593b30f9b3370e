#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/support/machine_limits.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: highway.h needs the target.
#include <chrono>
#include <cstring>
#include <vector>

#include "bench/support/machine_limits.h"
#include "common/bytes.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::ScalableTag<float>;
using WordTag = hn::ScalableTag<std::uint32_t>;

}  // namespace

// The sum of `count` words, a multiple of 4 096, so that they are read.
std::uint32_t sum_words(const std::uint32_t* words, std::int64_t count) {
  const WordTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr int kSums = 8;
  hn::Vec<WordTag> sum[kSums];
  for (auto& s : sum) s = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += kSums * lanes) {
    for (int k = 0; k < kSums; ++k) sum[k] = hn::Add(sum[k], hn::LoadU(d, words + i + k * lanes));
  }
  std::uint32_t total = 0;
  for (auto& s : sum) total += hn::GetLane(hn::SumOfLanes(d, s));
  return total;
}

// Runs `rounds` × kSums independent chains of multiply-adds; how many were done comes back in
// `done`.
float chain_fma(std::int64_t rounds, std::int64_t& done) {
  const FloatTag d;
  constexpr int kSums = 12;  // more than latency × ports, few enough to stay in registers
  hn::Vec<FloatTag> sum[kSums];
  for (int k = 0; k < kSums; ++k) sum[k] = hn::Set(d, static_cast<float>(k));
  const auto a = hn::Set(d, 0.999f);
  const auto b = hn::Set(d, 0.001f);
  for (std::int64_t i = 0; i < rounds; ++i) {
    for (auto& s : sum) s = hn::MulAdd(s, a, b);
  }
  auto total = hn::Zero(d);
  for (auto& s : sum) total = hn::Add(total, s);
  done = rounds * kSums * static_cast<std::int64_t>(hn::Lanes(d));
  return hn::GetLane(total);
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(sum_words);
HWY_EXPORT(chain_fma);

namespace {

using AlignedWords = std::vector<std::uint32_t, AlignedAllocator<std::uint32_t>>;
constexpr std::int64_t kGrain = 4096;  // words

AlignedWords words_of(std::int64_t bytes) {
  return AlignedWords(
      static_cast<std::size_t>(round_up(std::max<std::int64_t>(bytes / 4, 1), kGrain)), 1);
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Keeps what is measured from being left out.
void keep(std::uint32_t value) { asm volatile("" : : "r"(value) : "memory"); }

}  // namespace

double memcpy_gbps(std::int64_t bytes) {
  const AlignedWords from = words_of(bytes);
  AlignedWords to = words_of(bytes);
  const std::size_t size = from.size() * sizeof(std::uint32_t);
  const auto begin = std::chrono::steady_clock::now();
  std::memcpy(to.data(), from.data(), size);
  const double seconds = seconds_since(begin);
  keep(to[to.size() / 2]);
  return static_cast<double>(size) / seconds / 1e9;
}

double read_gbps(ConstByteSpan bytes) {
  const auto* const words = reinterpret_cast<const std::uint32_t*>(bytes.data());
  const auto count = static_cast<std::int64_t>(bytes.size() / sizeof *words) / kGrain * kGrain;
  const auto begin = std::chrono::steady_clock::now();
  keep(HWY_DYNAMIC_DISPATCH(sum_words)(words, count));
  const double seconds = seconds_since(begin);
  return static_cast<double>(count) * sizeof *words / seconds / 1e9;
}

double read_gbps(std::int64_t bytes) {
  const AlignedWords words = words_of(bytes);
  return read_gbps(std::as_bytes(std::span(words)));
}

double fma_gflops() {
  std::int64_t done = 0;
  const auto begin = std::chrono::steady_clock::now();
  keep(static_cast<std::uint32_t>(HWY_DYNAMIC_DISPATCH(chain_fma)(1000000, done)));
  const double seconds = seconds_since(begin);
  return 2 * static_cast<double>(done) / seconds / 1e9;
}

}  // namespace icefield
#endif  // HWY_ONCE
