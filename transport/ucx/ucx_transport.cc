#include "transport/ucx/ucx_transport.h"

#include <glog/logging.h>
#include <sys/mman.h>

#include <map>

#include "transport/ucx/client_connection.h"
#include "transport/ucx/handshake.h"
#include "transport/ucx/hearing.h"
#include "transport/ucx/lanes_log.h"
#include "transport/ucx/listener.h"
#include "transport/ucx/patience.h"
#include "transport/ucx/ucx_worker.h"

namespace icefield {
namespace {

using namespace ucx;

// Runs `task` on the shard and resumes here.
template <class R>
asio::awaitable<R> on_shard(const asio::any_io_executor& shard, asio::awaitable<R> task) {
  if (co_await asio::this_coro::executor == shard) co_return co_await std::move(task);
  auto there = asio::co_spawn(shard, std::move(task), asio::use_awaitable);
  co_return co_await std::move(there);
}

}  // namespace

Result<UcxLanes> parse_lanes(const std::string& text) {
  if (text == "auto") return UcxLanes::kAuto;
  if (text == "tcp") return UcxLanes::kTcp;
  if (text == "shared_memory") return UcxLanes::kSharedMemory;
  return Status(Code::kInvalidArgument,
                "lanes \"" + text + "\": expected auto, tcp or shared_memory");
}

std::string network_for(std::span<const std::string> addresses) {
  for (const std::string& address : addresses) {
    const Result<HostPort> parsed = parse_address(address);
    if (!parsed.has_value()) continue;  // refused where it is used
    boost::system::error_code error;
    const auto ip = asio::ip::make_address(parsed->host, error);
    if (parsed->host != "localhost" && (error || !ip.is_loopback())) return "all";
  }
  return "lo";
}

// All of it on the shard.
class UcxTransport::Impl {
 public:
  Impl(std::shared_ptr<UcxContext> context, std::unique_ptr<UcxWorker> worker)
      : shard_(worker->shard()),
        context_(std::move(context)),
        worker_(std::move(worker)),
        options_(context_->options()),
        lanes_log_(options_.lanes),
        scope_(shard_) {}

  const asio::any_io_executor& shard() const { return shard_; }
  const UcxCounters& counters() const { return context_->counters(); }

  Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) {
    ICE_CO_TRY(const auto connection, co_await connection_to(peer, deadline));
    co_return co_await connection->call(std::move(request), std::move(into), deadline);
  }

  Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                    Deadline deadline) {
    ICE_CO_TRY(const auto connection, co_await connection_to(peer, deadline));
    co_return co_await connection->read(std::move(from), std::move(into), arrival, deadline);
  }

  Task<Region> allocate_region(std::int64_t bytes) {
    ICE_CO_TRY(Region region, co_await context_->allocate_region(bytes));
    if (context_->shares_memory()) {  // UCX has made the pages
      scope_.spawn(populate(shard_, region.bytes, MADV_POPULATE_WRITE, stopping_));
    }
    co_return region;
  }

  Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) {
    ICE_CHECK(executor == shard());
    auto listener = std::make_unique<Listener>(worker_, service, options_, rng_.next(), lanes_log_,
                                               [this] { doubt_hearing(); });
    ICE_CO_TRY(const Address bound, co_await listener->open(self));
    listeners_.emplace(bound, std::move(listener));
    co_return bound;
  }

  Task<> stop(Address self) {
    const auto found = listeners_.find(self);
    if (found == listeners_.end()) co_return Status();
    const std::unique_ptr<Listener> listener = std::move(found->second);
    listeners_.erase(found);
    co_await listener->stop();
    co_return Status();
  }

  Task<PeerHealth> health(Address address) {
    PeerHealth health;
    const auto found = peers_.find(address);
    if (found == peers_.end()) co_return health;
    const Peer& peer = found->second;
    health.failures = peer.failures;
    health.last_failure = peer.last_failure.message();
    if (peer.connection != nullptr) {
      health.state = PeerState::kUp;
      health.lanes = peer.connection->lanes();
      health.local = peer.connection->local();
      LanesLog::Finding found_out = lanes_log_.find(*peer.connection);
      health.bytes_per_second = found_out.bytes_per_second;
      health.concern = std::move(found_out.concern);
    } else if (peer.attempt != nullptr) {
      health.state = PeerState::kConnecting;
    } else if (peer.failures > 0) {
      health.state = PeerState::kFailing;
    }
    co_return health;
  }

  void disconnect(const Address& address) {
    const auto found = peers_.find(address);
    if (found == peers_.end() || stopping_) return;
    Peer& peer = found->second;
    peer.wanted = false;  // a connection that is being made is closed when it is there
    let_go(peer, not_wanted());
  }

  Task<Usage> usage() {
    Usage usage;
    for (const auto& [address, listener] : listeners_) {
      for (const auto& connection : listener->connections()) {
        ++usage.connections;
        usage.calls += connection->calls_held();
        usage.request_bytes += connection->bytes_held();
      }
    }
    for (const auto& [address, peer] : peers_) {
      if (peer.connection != nullptr) {
        usage.quarantined_bytes += peer.connection->quarantined_bytes();
      }
    }
    co_return usage;
  }

  Task<> shutdown() {
    while (!listeners_.empty()) ICE_CO_TRY(co_await stop(listeners_.begin()->first));
    stopping_ = true;
    for (auto& [address, peer] : peers_) drop(peer, Status(Code::kUnavailable, "closed"));
    co_await scope_.join();
    co_await worker_->stop();
    co_return Status();
  }

 private:
  struct Peer {
    std::shared_ptr<ClientConnection> connection;  // null: none
    std::shared_ptr<ClientConnection> attempt;     // being made
    int failures = 0;                              // in a row
    Clock::TimePoint retry_at{};
    Status last_failure;
    bool wanted = true;  // by somebody since disconnect()
    Waiters changed;
  };

  Task<std::shared_ptr<ClientConnection>> connection_to(Address address, Deadline deadline) {
    Peer& peer = peers_[address];
    peer.wanted = true;
    bool waited = false;
    while (peer.connection == nullptr) {
      const bool failed_for_us = waited && peer.attempt == nullptr;
      if (failed_for_us || (peer.attempt == nullptr && clock_.now() < peer.retry_at)) {
        co_return peer.last_failure;
      }
      if (peer.attempt == nullptr) {
        peer.attempt = std::make_shared<ClientConnection>(*worker_, address, options_);
        scope_.spawn(connect(peer));
      }
      waited = true;
      if (peer.attempt == nullptr) continue;  // failed at once: not an address
      if (!co_await peer.changed.wait(deadline)) {
        co_return Status(Code::kDeadlineExceeded, "no connection to " + address + " in time");
      }
    }
    co_return peer.connection;
  }

  asio::awaitable<void> connect(Peer& peer) {
    std::shared_ptr<ClientConnection> connection = peer.attempt;
    Status connected = co_await connection->connect();
    if (connected.ok() && stopping_) connected = Status(Code::kUnavailable, "closed");
    peer.attempt = nullptr;
    if (connected.ok()) {
      peer.failures = 0;
      auto lost = [this, &peer, mine = connection.get()] {
        if (peer.connection.get() != mine) return;  // it is being closed
        peer.last_failure = mine->failure();
        if (mine->abrupt()) doubt_hearing();
        scope_.spawn(close(std::move(peer.connection)));
      };
      connection->on_failure(std::move(lost));
      peer.connection = std::move(connection);
      scope_.spawn(lanes_log_.connected(peer.connection));
    } else {
      peer.last_failure = connected;
      peer.retry_at = clock_.now() + ucx::pause_to_connect(++peer.failures);
    }
    peer.changed.notify_all();
    if (!peer.wanted) let_go(peer, not_wanted());
    if (connection != nullptr) co_await close(std::move(connection));
  }

  // After the loss of a peer that may have left our queue in shared memory stuck.
  void doubt_hearing() {
    ++doubts_;
    if (!std::exchange(checking_, true)) scope_.spawn(check_hearing());
  }

  asio::awaitable<void> check_hearing() {
    for (int checked = 0; checked != doubts_ && !stopping_;) {
      checked = doubts_;
      const bool fine = co_await hears(*worker_);
      if (!fine && !stopping_) change_worker();
    }
    checking_ = false;
  }

  // Everybody is reached anew, by another worker; calls under way end.
  void change_worker() {
    const Status why(Code::kUnavailable, "a peer was killed in the middle of a message");
    context_->counters().stuck_queues.add();
    LOG(WARNING) << why.message() << "; the queue that it left stuck is replaced, with it all "
                 << "connections";
    Result<std::unique_ptr<UcxWorker>> fresh = UcxWorker::create(shard_, context_);
    if (!fresh.has_value()) {
      LOG(ERROR) << "no other queue: " << fresh.error().to_string() << "; restart this process";
      return;
    }
    for (auto& [address, listener] : listeners_) listener->end_connections(why);
    for (auto& [address, peer] : peers_) drop(peer, why);
    scope_.spawn(retire(std::exchange(worker_, std::move(*fresh))));
  }

  // Who waits for the connection may not have seen it yet, and is told why it is gone.
  void let_go(Peer& peer, const Status& why) {
    if (peer.connection == nullptr) return;
    peer.last_failure = why;
    scope_.spawn(close(std::move(peer.connection)));
  }
  void drop(Peer& peer, const Status& why) {
    let_go(peer, why);
    if (peer.attempt != nullptr) peer.attempt->abandon();
  }
  static Status not_wanted() {
    return Status(Code::kUnavailable, "nobody asks this peer any more");
  }

  asio::awaitable<void> retire(std::unique_ptr<UcxWorker> worker) {
    const std::chrono::milliseconds pause(20);
    while (worker->has_sinks()) (void)co_await clock_.sleep_until(clock_.now() + pause);
    co_await worker->stop();
  }

  static asio::awaitable<void> close(std::shared_ptr<ClientConnection> connection) {
    co_await connection->close();
  }

  const asio::any_io_executor shard_;
  const std::shared_ptr<UcxContext> context_;
  std::unique_ptr<UcxWorker> worker_;
  const UcxOptions options_;
  int doubts_ = 0;  // whether the worker still hears
  bool checking_ = false;
  SystemClock clock_;
  SystemRng rng_;
  bool stopping_ = false;
  LanesLog lanes_log_;
  std::map<Address, Peer> peers_;
  std::map<Address, std::unique_ptr<Listener>> listeners_;
  TaskScope scope_;
};

Result<std::unique_ptr<UcxTransport>> UcxTransport::create(asio::any_io_executor shard,
                                                           const UcxOptions& options) {
  ICE_TRY(auto context, UcxContext::create(options));
  ICE_TRY(auto worker, UcxWorker::create(std::move(shard), context));
  auto impl = std::make_shared<Impl>(std::move(context), std::move(worker));
  return std::unique_ptr<UcxTransport>(new UcxTransport(std::move(impl)));
}

UcxTransport::UcxTransport(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
UcxTransport::~UcxTransport() = default;

Task<Reply> UcxTransport::call(Address peer, Request request, Buffer into, Deadline deadline) {
  auto there = impl_->call(std::move(peer), std::move(request), std::move(into), deadline);
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<Buffer> UcxTransport::read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                                Deadline deadline) {
  auto there = impl_->read(std::move(peer), std::move(from), std::move(into), arrival, deadline);
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<Region> UcxTransport::allocate_region(std::int64_t bytes) {
  auto there = impl_->allocate_region(bytes);
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<PeerHealth> UcxTransport::health(Address peer) {
  auto there = impl_->health(std::move(peer));
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

void UcxTransport::disconnect(const Address& peer) {
  auto disconnect = [weak = std::weak_ptr<Impl>(impl_), peer] {
    if (const auto impl = weak.lock()) impl->disconnect(peer);
  };
  asio::post(impl_->shard(), std::move(disconnect));
}

const UcxCounters& UcxTransport::counters() const { return impl_->counters(); }

Task<UcxTransport::Usage> UcxTransport::usage() {
  auto there = impl_->usage();
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<Address> UcxTransport::listen(Address self, asio::any_io_executor executor, Service& service) {
  auto there = impl_->listen(std::move(self), std::move(executor), service);
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<> UcxTransport::stop(Address self) {
  auto there = impl_->stop(std::move(self));
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

Task<> UcxTransport::shutdown() {
  auto there = impl_->shutdown();
  co_return co_await on_shard(impl_->shard(), std::move(there));
}

}  // namespace icefield
