// common/task.h — coroutines: Task<T>, waiting for one from a thread, blocking work.
//
// GCC 12.2 destroys some temporaries inside a co_await expression twice. Inside one, write no
// capturing lambda and no aggregate that has a destructor: name it first, then move it in
// (STYLE.md §5).
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <future>
#include <type_traits>
#include <utility>

#include "common/status.h"

namespace icefield {

namespace asio = boost::asio;

namespace internal {
template <class T>
struct TaskValue {
  using type = Result<T>;
};
template <>
struct TaskValue<void> {
  using type = Status;
};
}  // namespace internal

// What every suspending function returns: Task<T> gives a Result<T>, Task<> a Status.
template <class T = void>
using Task = asio::awaitable<typename internal::TaskValue<T>::type>;

// Runs `task` on `executor` and blocks the calling thread until it is done. Never call it from a
// thread that runs `executor`.
template <class R>
R sync_wait(const asio::any_io_executor& executor, asio::awaitable<R> task) {
  std::promise<R> promise;
  std::future<R> future = promise.get_future();
  asio::co_spawn(executor, std::move(task), [&promise](std::exception_ptr error, R result) {
    if (error) {
      promise.set_exception(error);
    } else {
      promise.set_value(std::move(result));
    }
  });
  return future.get();
}

// Runs `work` (returns a Status or Result, may block) on a thread of `pool` and resumes the
// caller on its own executor. `work` must be named and moved in, see above.
template <class Work>
asio::awaitable<std::invoke_result_t<Work>> offload(asio::thread_pool& pool, Work work) {
  auto run = [](Work inner) -> asio::awaitable<std::invoke_result_t<Work>> { co_return inner(); };
  auto running = asio::co_spawn(pool, run(std::move(work)), asio::use_awaitable);
  co_return co_await std::move(running);
}

}  // namespace icefield
