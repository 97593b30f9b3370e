// tests/support/meddling_transport.h — a transport whose one-sided copies somebody has a hand in.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "transport/transport.h"

namespace icefield {

class MeddlingTransport final : public Transport {
 public:
  explicit MeddlingTransport(Transport& next) : next_(next) {}

  Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) override {
    ++calls;
    if (request.room.has_value()) {
      ++room_calls;
      if (before_write) co_await before_write();
      if (!unplaced.ok()) co_return Reply(unplaced);
      if (!failure.ok()) co_return failure;
    }
    co_return co_await next_.call(std::move(peer), std::move(request), std::move(into), deadline);
  }
  Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                    Deadline deadline) override {
    ++reads;
    if (before_read) co_await before_read();
    if (!failure.ok()) co_return failure;
    co_return co_await next_.read(std::move(peer), std::move(from), std::move(into), arrival,
                                  deadline);
  }
  Task<Region> allocate_region(std::int64_t bytes) override { return next_.allocate_region(bytes); }
  Task<PeerHealth> health(Address peer) override { return next_.health(std::move(peer)); }
  void disconnect(const Address& peer) override {
    const std::lock_guard lock(mutex_);
    disconnected_.push_back(peer);
    next_.disconnect(peer);
  }
  Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) override {
    return next_.listen(std::move(self), std::move(executor), service);
  }
  Task<> stop(Address self) override { return next_.stop(std::move(self)); }
  Task<> shutdown() override { return next_.shutdown(); }

  // From any thread.
  std::vector<Address> disconnected() const {
    const std::lock_guard lock(mutex_);
    return disconnected_;
  }

  int calls = 0;
  int reads = 0;
  int room_calls = 0;  // that have room in a region
  // Empty: nobody.
  std::function<asio::awaitable<void>()> before_read;
  std::function<asio::awaitable<void>()> before_write;
  Status failure;   // of both
  Status unplaced;  // of calls

 private:
  Transport& next_;
  mutable std::mutex mutex_;
  std::vector<Address> disconnected_;  // guarded by mutex_
};

}  // namespace icefield
