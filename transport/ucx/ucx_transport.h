// transport/ucx/ucx_transport.h — the transport between processes and machines.
#pragma once

#include <memory>

#include "transport/transport.h"
#include "transport/ucx/ucx_counters.h"
#include "transport/ucx/ucx_options.h"

namespace icefield {

// Connects on the first call to a peer and again after a failure, then at growing intervals (calls
// in between fail at once with the reason). Addresses are "host:port"; port 0 listens on a free
// one.
//
// A connection is a TCP connection to that port, by which both sides introduce themselves and
// notice that the other has gone, and a UCX endpoint beside it that carries the bytes.
//
// Ownership  shutdown() before the destructor.
// Threads    One shard: `shard` must run on one thread. call() and listen() from any executor.
class UcxTransport final : public Transport {
 public:
  // kInternal when UCX cannot be set up.
  static Result<std::unique_ptr<UcxTransport>> create(asio::any_io_executor shard,
                                                      const UcxOptions& options);
  ~UcxTransport() override;

  Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) override;
  Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                    Deadline deadline) override;
  Task<Region> allocate_region(std::int64_t bytes) override;
  Task<PeerHealth> health(Address peer) override;
  void disconnect(const Address& peer) override;
  Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) override;
  Task<> stop(Address self) override;
  Task<> shutdown() override;

  // What peers hold of this process as a server, all zero when nobody is connected, and what it
  // holds as a client for reads that were given up.
  struct Usage {
    std::int64_t connections = 0;
    std::int64_t calls = 0;          // from the first fragment of a request to its reply
    std::int64_t request_bytes = 0;  // of those calls
    std::int64_t quarantined_bytes = 0;
  };
  Task<Usage> usage();
  const UcxCounters& counters() const;  // of this process as a server, mostly

 private:
  class Impl;
  explicit UcxTransport(std::shared_ptr<Impl> impl);
  const std::shared_ptr<Impl> impl_;  // shared for what disconnect() leaves behind
};

}  // namespace icefield
