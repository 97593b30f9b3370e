// Numbers, time, randomness and threads.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <set>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/float_bits.h"
#include "common/metrics.h"
#include "common/rng.h"
#include "common/run_writer.h"
#include "common/task_scope.h"
#include "common/thread_pool.h"
#include "common/xxh3_kernels.h"
#include "common/xxh3_stream.h"
#include "tests/support/run_task.h"

namespace icefield {
namespace {

TEST(Bytes, RunsAreFilledAndHashedWhateverTheCuts) {
  SeededRng rng(6);
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t seed = rng.next();
    Bytes bytes(1 + rng.below(3000));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
    Bytes memory(bytes.size() + 100, std::byte{9});
    const ByteSpan room = ByteSpan(memory).subspan(rng.below(100)).first(bytes.size());
    const std::size_t first = rng.below(bytes.size() + 1);
    const std::vector<ByteSpan> runs = {room.first(first), {}, room.subspan(first)};
    RunWriter writer(runs);
    Xxh3Stream hash(seed);
    for (ConstByteSpan left = bytes; !left.empty();) {
      EXPECT_FALSE(writer.full()) << round;
      const ConstByteSpan part = left.first(1 + rng.below(left.size()));
      writer.put(part);
      hash.update(part);
      left = left.subspan(part.size());
    }
    EXPECT_TRUE(writer.full()) << round;
    EXPECT_TRUE(std::ranges::equal(room, bytes)) << round;
    EXPECT_EQ(std::ranges::count(memory, std::byte{9}),
              100 + std::ranges::count(bytes, std::byte{9}));
    EXPECT_EQ(hash.digest(), xxh3(bytes, seed)) << round;
  }
}

#if defined(__x86_64__)
// hash.cc picks one kernel; a store that is read on another CPU must find the same checksums.
TEST(Xxh3, EveryInstructionSetGivesTheSameHash) {
  SeededRng rng(5);
  std::vector<std::byte> bytes(5000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
  std::vector<const internal::Xxh3Kernel*> kernels;
  if (__builtin_cpu_supports("avx2")) kernels.push_back(&internal::kXxh3Avx2);
  if (__builtin_cpu_supports("avx512f")) kernels.push_back(&internal::kXxh3Avx512);
  for (const std::size_t size : {0u, 1u, 16u, 128u, 129u, 240u, 241u, 256u, 1024u, 1025u, 5000u}) {
    const ConstByteSpan whole = ConstByteSpan(bytes).first(size);
    const std::uint64_t seed = rng.next();
    const std::uint64_t expected = internal::kXxh3Baseline.whole(whole.data(), size, seed);
    const std::vector<ConstByteSpan> pieces = {whole.first(size / 3), whole.subspan(size / 3)};
    EXPECT_EQ(internal::kXxh3Baseline.pieces(pieces, seed), expected) << size;
    for (const internal::Xxh3Kernel* kernel : kernels) {
      EXPECT_EQ(kernel->whole(whole.data(), size, seed), expected) << size;
      EXPECT_EQ(kernel->pieces(pieces, seed), expected) << size;
    }
  }
}
#endif

TEST(FloatBits, Bf16RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80) << "tie to even";
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82) << "tie to even";
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
  EXPECT_EQ(bf16_to_float(float_to_bf16(-HUGE_VALF)), -HUGE_VALF);
}

// Every finite half survives the round trip; values between two halves go to the nearer one.
TEST(FloatBits, Fp16RoundTripsAndRounds) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<Fp16>(bits);
    const float value = fp16_to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(fp16_to_float(float_to_fp16(value))));
      continue;
    }
    ASSERT_EQ(float_to_fp16(value), half);
    const bool largest = (bits & 0x7fff) >= 0x7bff;
    if (largest) continue;
    const float next = fp16_to_float(static_cast<Fp16>(bits + 1));
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(float_to_fp16(middle), bits % 2 == 0 ? bits : bits + 1) << "tie to even";
    ASSERT_EQ(float_to_fp16(std::nextafter(middle, value)), half);
  }
  EXPECT_EQ(float_to_fp16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_fp16(65520.0f), 0x7c00);
}

TEST(Bytes, ReaderPastTheEndIsNotOkForGood) {
  Bytes bytes;
  ByteWriter writer(bytes);
  writer.put<std::uint32_t>(7);
  writer.put<std::uint16_t>(9);
  ByteReader reader(bytes);
  EXPECT_EQ(reader.get<std::uint32_t>(), 7u);
  EXPECT_EQ(reader.get<std::uint32_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.get<std::uint16_t>(), 0u) << "what was left is not read either";
}

TEST(Rng, SeededWordsAreThePublishedOnes) {
  SeededRng rng(1234567);
  // SplitMix64 from seed 1234567 (reference implementation, Vigna 2015).
  EXPECT_EQ(rng.next(), 6457827717110365317u);
  EXPECT_EQ(rng.next(), 3203168211198807973u);
  EXPECT_EQ(rng.next(), 9817491932198370423u);
}

TEST(Rng, BelowIsUniformAndInRange) {
  SeededRng rng(1);
  std::vector<int> counts(10, 0);
  for (int i = 0; i < 100000; ++i) ++counts[rng.below(10)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
  SystemRng system;
  EXPECT_NE(system.next(), system.next());
}

TEST(ThreadPool, RunsEveryIterationOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      pool.parallel_for(count, [&](std::int64_t i) { ++seen[static_cast<std::size_t>(i)]; });
      for (const auto& times : seen) EXPECT_EQ(times, 1);
    }
  }
}

TEST(ThreadPool, LoopsFollowEachOtherWithoutMixing) {
  ThreadPool pool(3);
  std::int64_t sum = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::int64_t> values(16, 0);
    pool.parallel_for(16, [&](std::int64_t i) { values[static_cast<std::size_t>(i)] = round; });
    for (const std::int64_t value : values) sum += value - round;
  }
  EXPECT_EQ(sum, 0);
}

TEST(Task, OffloadRunsElsewhereAndComesBack) {
  asio::io_context io;
  asio::thread_pool pool(1);
  const auto task = [](asio::thread_pool& elsewhere) -> Task<int> {
    const auto here = std::this_thread::get_id();
    auto work = [here]() -> Result<int> { return std::this_thread::get_id() == here ? 1 : 2; };
    ICE_CO_TRY(const int result, co_await offload(elsewhere, std::move(work)));
    if (std::this_thread::get_id() != here) co_return Status(Code::kInternal, "did not come back");
    co_return result;
  };
  EXPECT_EQ(run_task(io, task(pool)).value(), 2);
}

TEST(TaskScope, JoinWaitsForEverythingThatWasSpawned) {
  asio::io_context io;
  int done = 0;
  const auto child = [](int& count, int rounds) -> asio::awaitable<void> {
    for (int i = 0; i < rounds; ++i) {
      co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    }
    ++count;
  };
  const auto parent = [&](int& count) -> Task<> {
    TaskScope scope(co_await asio::this_coro::executor);
    for (int rounds = 0; rounds < 5; ++rounds) scope.spawn(child(count, rounds));
    co_await scope.join();
    co_return count == 5 ? Status() : Status(Code::kInternal, "joined too early");
  };
  EXPECT_TRUE(run_task(io, parent(done)).ok());
}

TEST(Deadline, PassesWithTheClock) {
  SystemClock clock;
  EXPECT_TRUE(Deadline::after(clock, std::chrono::milliseconds(-1)).passed(clock));
  EXPECT_FALSE(Deadline::after(clock, std::chrono::hours(1)).passed(clock));
  EXPECT_FALSE(Deadline::never().passed(clock));
  EXPECT_TRUE(Deadline::never().is_never());
  const auto before = clock.now();
  EXPECT_TRUE(run_task(clock.sleep_until(before + std::chrono::milliseconds(5))).ok());
  EXPECT_GE(clock.now() - before, std::chrono::milliseconds(5));
}

TEST(Counter, CountsFromAnyThread) {
  Counter counter("icefield_test_things_total", "things");
  ThreadPool pool(4);
  pool.parallel_for(1000, [&](std::int64_t) { counter.add(); });
  counter.add(5);
  EXPECT_EQ(counter.value(), 1005);
}

}  // namespace
}  // namespace icefield
