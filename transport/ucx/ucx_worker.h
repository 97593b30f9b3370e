// transport/ucx/ucx_worker.h — one UCX worker, driven by one shard.
#pragma once

#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/bytes.h"
#include "common/rng.h"
#include "common/task_scope.h"
#include "transport/transport.h"
#include "transport/ucx/patience.h"
#include "transport/ucx/ucx_context.h"
#include "transport/ucx/wire.h"

namespace icefield::ucx {

// Takes the fragments of one connection. Runs inside ucp_worker_progress(): it may copy, start
// coroutines and notify, but not progress or close anything.
class FragmentSink {
 public:
  virtual ~FragmentSink() = default;
  // False when more of the same message is still to come.
  virtual bool on_fragment(const FragmentHeader& header, ConstByteSpan bytes) = 0;
};

// A UCX worker, progressed on the shard's executor: when its event descriptor says so, or all the
// time (UcxOptions::poll).
//
// Threads  The shard's, all of it.
class UcxWorker {
 public:
  static Result<std::unique_ptr<UcxWorker>> create(asio::any_io_executor shard,
                                                   std::shared_ptr<UcxContext> context);
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  ucp_worker_h handle() const { return worker_; }
  const asio::any_io_executor& shard() const { return shard_; }
  const std::string& address() const { return address_; }

  // Fragments that carry the id returned go to `sink`; ids cannot be guessed.
  std::uint64_t add_sink(FragmentSink& sink);
  void remove_sink(std::uint64_t id) { sinks_.erase(id); }
  bool has_sinks() const { return !sinks_.empty(); }

  // A fragment that has arrived. One for no sink is counted, and nothing else.
  void deliver(const FragmentHeader& fragment, ConstByteSpan bytes);

  // To be called after posting an operation that did not complete at once: an armed worker sleeps
  // on.
  void wake();
  // To be called after sending something: the answer may be near.
  void sent();

  // Takes what has arrived. Not to be called by a FragmentSink.
  void take_in() { (void)progress(); }

  // Stops progress; all endpoints must be closed.
  asio::awaitable<void> stop();

  UcxCounters& counters() const { return context_->counters(); }

 private:
  UcxWorker(asio::any_io_executor shard, std::shared_ptr<UcxContext> context);
  Status init();
  Status read_address();
  asio::awaitable<void> drive();
  // Progress until nothing happens any more, or for a burst.
  enum class Progress { kNone, kSome, kMore };
  Progress progress();
  bool look(Progress made);
  asio::awaitable<void> wait_for_event();
  asio::awaitable<void> nap();
  static ucs_status_t on_message(void* self, const void* header, std::size_t header_bytes,
                                 void* data, std::size_t bytes, const ucp_am_recv_param_t* param);

  const asio::any_io_executor shard_;
  const std::shared_ptr<UcxContext> context_;
  const bool poll_;
  SystemRng rng_;
  ucp_worker_h worker_ = nullptr;
  std::string address_;
  asio::posix::stream_descriptor event_;
  asio::steady_timer nap_;
  // Never expires. Asio sets the system's timer whenever the first of its own changes: with this
  // one there, those that wait for an event and not for a time change nothing.
  asio::steady_timer anchor_;
  bool sleeping_ = false;
  Patience patience_;
  // The last fragment was not the last of its message, and the next one may be near.
  bool message_open_ = false;
  bool stopping_ = false;
  std::unordered_map<std::uint64_t, FragmentSink*> sinks_;
  TaskScope scope_;
};

}  // namespace icefield::ucx
