// common/shard.h — one thread that runs one io_context: where a node, a transport and their
// connections live without locks.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

#include "common/task.h"

namespace icefield {

// Runs until stop() or the destructor, which wait for the handlers that are still due: whatever
// lives on the shard must have ended by then.
class Shard {
 public:
  Shard() : work_(asio::make_work_guard(io_)), thread_([this] { io_.run(); }) {}
  ~Shard() { stop(); }
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  asio::any_io_executor executor() { return io_.get_executor(); }
  // Not from the shard's own thread. Nothing runs on it afterwards.
  void stop() {
    work_.reset();
    if (thread_.joinable()) thread_.join();
  }

 private:
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace icefield
