// common/thread_pool.h — fork and join on a fixed set of threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace icefield {

// Runs the iterations of a loop on `thread_count` threads, the caller among them.
//
// Which thread runs which iteration is not fixed, so results must depend on the iteration alone:
// then they are the same for any thread count.
//
// Threads  One parallel_for() at a time. Iterations must not call parallel_for() of the same pool.
class ThreadPool {
 public:
  explicit ThreadPool(int thread_count);  // >= 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int thread_count() const { return static_cast<int>(threads_.size()) + 1; }

  // body(index) for every index in [0, count); returns when all are done. Allocates nothing.
  template <class Body>
  void parallel_for(std::int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(count, &body, [](const void* context, std::int64_t index) {
      (*static_cast<Plain*>(const_cast<void*>(context)))(index);
    });
  }

 private:
  using Call = void (*)(const void* context, std::int64_t index);

  void run(std::int64_t count, const void* context, Call call);
  void work();
  void drain();  // takes iterations until none are left

  std::vector<std::thread> threads_;

  // The loop being run. Written before `generation_` is raised, read after it was seen.
  const void* context_ = nullptr;
  Call call_ = nullptr;
  std::int64_t count_ = 0;

  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};                  // workers still inside the loop
  std::atomic<std::uint64_t> generation_{0};  // release/acquire pairs with the loop's fields
  std::atomic<bool> stop_{false};
  std::mutex mutex_;  // sleeping and waking only
  std::condition_variable wake_;
};

}  // namespace icefield
