// tests/support/run_task.h — runs a coroutine to its end on the calling thread.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <optional>

#include "common/task.h"

namespace icefield {

template <class R>
R run_task(asio::io_context& io, asio::awaitable<R> task) {
  std::optional<R> result;
  asio::co_spawn(io, std::move(task), [&result](std::exception_ptr error, R value) {
    ICE_CHECK(error == nullptr);
    result = std::move(value);
  });
  io.restart();
  const auto work = asio::make_work_guard(io);  // part of the task may be on another thread
  while (!result.has_value()) {
    // A thread that let go of the last task's work may stop the context only now.
    if (io.run_one() == 0) io.restart();
  }
  return std::move(*result);
}

// The context outlives every test: a thread that posted the last step of a task may still be inside
// the context when the task is done.
template <class R>
R run_task(asio::awaitable<R> task) {
  static asio::io_context io;
  return run_task(io, std::move(task));
}

}  // namespace icefield
