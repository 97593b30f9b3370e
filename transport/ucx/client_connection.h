// transport/ucx/client_connection.h — the caller's side of a connection.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <optional>
#include <set>
#include <unordered_map>

#include "transport/transport.h"
#include "transport/ucx/assembly.h"
#include "transport/ucx/endpoint.h"

namespace icefield::ucx {

// Calls that run side by side over one endpoint, as many as the server granted; further ones wait.
// When either the endpoint or the TCP connection beside it breaks, all calls end with kUnavailable.
//
// Threads  The shard's. close() before the last reference goes.
class ClientConnection final : public FragmentSink,
                               public std::enable_shared_from_this<ClientConnection> {
 public:
  ClientConnection(UcxWorker& worker, Address peer, const UcxOptions& options);
  ~ClientConnection() override;

  // Once, before anything else. kUnavailable when nobody answers in time or with our protocol.
  Task<> connect();
  // Ends a connect() that is under way; it returns soon.
  void abandon() {
    abandoned_ = true;
    control_.close();
  }
  // As Transport::call().
  Task<Reply> call(Request request, Buffer into, Deadline deadline);
  // As Transport::read(). A read whose deadline has passed keeps its buffer until UCX has let go of
  // it; when that takes longer than UcxOptions::close_timeout the connection is given up.
  Task<Buffer> read(RegionRuns from, Buffer into, Arrival* arrival, Deadline deadline);
  asio::awaitable<void> close();

  // Of buffers whose reads were given up and are still under way.
  std::int64_t quarantined_bytes() const { return quarantined_bytes_; }
  // Ok while it can carry calls.
  const Status& failure() const { return failure_; }
  const Address& peer() const { return peer_; }
  // What carries it: "posix", "tcp". Only once connect() succeeded.
  const std::string& lanes() const { return lanes_; }
  const std::string& devices() const { return devices_; }  // that those run over
  // After a failure: the peer shares memory with us and went without saying goodbye.
  bool abrupt() const { return abrupt_; }
  // Whether the peer runs on this machine.
  bool local() const { return local_; }
  // Called once, on the shard, when it can no longer.
  void on_failure(std::function<void()> notify) { notify_ = std::move(notify); }

  bool on_fragment(const FragmentHeader& header, ConstByteSpan bytes) override;

 private:
  // A call until its reply is here or its deadline has passed; in the frame of call().
  struct Pending {
    Pending(const asio::any_io_executor& executor, Buffer into_in, Arrival* arrival_in,
            Deadline deadline_in)
        : wake(executor, asio::steady_timer::time_point::max()),
          into(std::move(into_in)),
          arrival(arrival_in),
          deadline(deadline_in) {}
    asio::steady_timer wake;  // cancelled when there is something to see
    Buffer into;
    Arrival* arrival;  // may be null
    Deadline deadline;
    std::optional<Assembly> reply;
    Status failure;
  };
  // What the server still holds of us: stays when the caller has gone.
  struct Call {
    Pending* pending = nullptr;
    std::int64_t request_bytes = 0;
    std::uint64_t received = 0;
  };
  // A request of several fragments, sent beside its call.
  struct Upload {
    explicit Upload(Message message_in) : message(std::move(message_in)) {}
    Message message;
    Endpoint::Loan loan{Endpoint::Loan::Kind::kMayEnd};  // of the caller's payload
  };

  // A one-sided read, beside its caller.
  struct Reading {
    Reading(const asio::any_io_executor& executor, Buffer into_in, Arrival* arrival_in)
        : changed(executor, asio::steady_timer::time_point::max()),
          into(std::move(into_in)),
          arrival(arrival_in) {}
    asio::steady_timer changed;  // cancelled when `result` is there
    Buffer into;
    Arrival* arrival;  // null: nobody, or nobody any more
    std::optional<Endpoint::Read> read;
    bool abandoned = false;
    std::optional<Status> result;
  };

  Task<> shake_hands();
  // Writes what goes to the room of a request of its payload.
  Task<> place(Request& request, Deadline deadline);
  // Makes the page table entries of a mapped region, once for reading and once for writing.
  void populate_once(ConstByteSpan region, int advice);
  Task<Buffer> read_mapped(const std::byte* region, std::vector<RegionRun> runs, Buffer into,
                           Arrival* arrival, Deadline deadline);
  static asio::awaitable<void> finish_read(std::shared_ptr<Reading> reading);
  asio::awaitable<void> quarantine(std::shared_ptr<Reading> reading);
  Task<> wait_for_credit(std::int64_t bytes, Deadline deadline);
  bool has_credit(std::int64_t bytes) const;
  // Others get their turn; whether a copy that takes several may go on afterwards.
  Task<> yield(Deadline deadline);
  asio::awaitable<void> upload(std::shared_ptr<Upload> upload);
  // Nothing of it is with the server any more: its credit is free.
  void end_call(std::uint64_t number);
  asio::awaitable<void> watch();
  // Sees to it that end_late_calls() runs at `deadline` or before.
  void watch_deadline(Deadline deadline);
  void end_late_calls();
  void take_fragment(Call& call, const FragmentHeader& header, ConstByteSpan bytes);
  Status start_reply(Pending& pending, const FragmentHeader& header) const;
  static void finish(Pending& pending, Status failure);
  // The peer may have been killed.
  void lost(Status why);
  void fail(Status why);

  UcxWorker& worker_;
  const Address peer_;
  const UcxOptions options_;
  asio::ip::tcp::socket control_;
  std::unique_ptr<Endpoint> endpoint_;
  const std::uint64_t id_;       // in fragments to us
  std::uint64_t remote_id_ = 0;  // in fragments to the server
  std::int64_t max_calls_ = 0;   // granted
  std::int64_t max_bytes_ = 0;   // granted
  std::int64_t bytes_held_ = 0;  // of calls_
  std::int64_t quarantined_bytes_ = 0;
  std::set<std::pair<const std::byte*, int>> populated_;  // regions, and for what
  std::uint64_t next_call_ = 1;
  std::unordered_map<std::uint64_t, Call> calls_;
  // One timer for all calls: it stays set when a call ends in time, so that most calls set none.
  asio::steady_timer next_deadline_;
  Clock::TimePoint watched_ = Clock::TimePoint::max();
  Waiters credit_;
  Status failure_;
  bool failed_ = false;  // the same, for who wants no more than that
  std::string lanes_;
  std::string devices_;
  bool local_ = false;
  bool abrupt_ = false;
  bool abandoned_ = false;  // the socket may not have been open yet
  std::function<void()> notify_;
  TaskScope scope_;
};

}  // namespace icefield::ucx
