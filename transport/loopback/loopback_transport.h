// transport/loopback/loopback_transport.h — the transport inside one process.
#pragma once

#include <map>
#include <mutex>

#include "common/task_scope.h"
#include "transport/transport.h"

namespace icefield {

// Requests and replies are copied once, as a wire would; addresses are names.
//
// Threads  call() from any executor. A reply's payload is copied on the service's executor.
class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport() = default;
  ~LoopbackTransport() override;

  Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) override;
  Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                    Deadline deadline) override;
  Task<Region> allocate_region(std::int64_t bytes) override;
  Task<PeerHealth> health(Address peer) override;
  void disconnect(const Address&) override {}  // there is no connection
  Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) override;
  Task<> stop(Address self) override;
  Task<> shutdown() override;

  // That services have not answered yet. On their executor.
  std::int64_t calls_under_way();

 private:
  struct Listener {
    Listener(asio::any_io_executor executor_in, Service& service_in)
        : executor(std::move(executor_in)), service(service_in), scope(executor) {}
    asio::any_io_executor executor;
    Service& service;
    // Inside one process nobody has to prove anything.
    const Caller everyone = Caller().over({.one_sided = true});
    TaskScope scope;  // the executor's
  };
  struct Pending;

  Result<ByteSpan> find_region(const std::string& key);
  // Writes what goes to the room of a request of its payload.
  Status place(Request& request);
  static Payload land(Listener& listener, MethodId method, std::string_view header, Buffer payload);
  static asio::awaitable<void> serve(std::shared_ptr<Listener> listener, MethodId method,
                                     std::string header, Buffer payload,
                                     std::shared_ptr<Pending> pending);

  std::mutex mutex_;
  std::map<Address, std::shared_ptr<Listener>> listeners_;  // guarded by mutex_
  std::vector<Buffer> regions_;                             // guarded by mutex_; key: the index
};

}  // namespace icefield
