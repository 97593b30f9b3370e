#include "common/thread_pool.h"

#include "common/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace icefield {
namespace {

// A decoder step forks some 180 times, a few microseconds apart: a worker that slept in between
// would pay a wake-up each time. After this many polls (about 50 us) it does sleep.
constexpr int kSpins = 2000;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int thread_count) {
  ICE_CHECK(thread_count >= 1);
  for (int i = 1; i < thread_count; ++i) threads_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(std::int64_t count, const void* context, Call call) {
  if (count <= 0) return;
  if (threads_.empty() || count == 1) {
    for (std::int64_t index = 0; index < count; ++index) call(context, index);
    return;
  }
  context_ = context;
  call_ = call;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  drain();
  int spins = 0;
  while (busy_.load(std::memory_order_acquire) != 0) {
    // With fewer cores than threads the last worker needs this core to finish.
    if (++spins > kSpins) std::this_thread::yield();
    pause_briefly();
  }
}

void ThreadPool::work() {
  std::uint64_t seen = 0;
  while (true) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && !stop_.load()) {
      if (++spins < kSpins) {
        pause_briefly();
        continue;
      }
      std::unique_lock lock(mutex_);
      wake_.wait(lock,
                 [&] { return generation_.load(std::memory_order_acquire) != seen || stop_; });
    }
    if (stop_.load()) return;
    seen = generation_.load(std::memory_order_acquire);
    drain();
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::drain() {
  while (true) {
    const std::int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return;
    call_(context_, index);
  }
}

}  // namespace icefield
