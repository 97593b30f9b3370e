// common/task_scope.h — coroutines that run beside their owner: nothing is detached.
#pragma once

#include <boost/asio/steady_timer.hpp>

#include "common/task.h"

namespace icefield {

// Counts the coroutines it started; join() waits for all of them.
//
// Threads  Everything on the executor given; spawned coroutines run on it too.
class TaskScope {
 public:
  explicit TaskScope(asio::any_io_executor executor)
      : executor_(std::move(executor)), idle_(executor_, asio::steady_timer::time_point::max()) {}
  ~TaskScope() { ICE_CHECK(running_ == 0); }
  TaskScope(const TaskScope&) = delete;
  TaskScope& operator=(const TaskScope&) = delete;

  // Starts `task`; its result is the task's own affair.
  void spawn(asio::awaitable<void> task) {
    ++running_;
    asio::co_spawn(executor_, std::move(task), [this](std::exception_ptr error) {
      ICE_CHECK(error == nullptr);
      if (--running_ == 0) idle_.cancel();
    });
  }

  // Suspends until no coroutine is running.
  asio::awaitable<void> join() {
    while (running_ > 0) {
      boost::system::error_code ignored;
      co_await idle_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
  }

  int running() const { return running_; }

 private:
  asio::any_io_executor executor_;
  asio::steady_timer idle_;  // never expires: cancelled when the last coroutine ends
  int running_ = 0;
};

}  // namespace icefield
