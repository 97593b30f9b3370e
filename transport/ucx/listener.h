// transport/ucx/listener.h — accepts connections for a service.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <set>

#include "transport/ucx/server_connection.h"

namespace icefield::ucx {

// Threads  The shard's. stop() before the destructor.
class Listener {
 public:
  Listener(UcxWorker& worker, Service& service, const UcxOptions& options,
           std::uint64_t incarnation)
      : worker_(worker),
        service_(service),
        options_(options),
        incarnation_(incarnation),
        acceptor_(worker.shard()),
        scope_(worker.shard()) {}

  // The address with the port in use. kAlreadyExists when another has it, kInvalidArgument for
  // what is no address of this machine.
  Task<Address> open(Address self);
  // Takes no more connections and requests, waits for those under way.
  asio::awaitable<void> stop();
  const std::set<std::shared_ptr<ServerConnection>>& connections() const { return connections_; }

 private:
  asio::awaitable<void> accept_all();
  asio::awaitable<void> run(std::shared_ptr<ServerConnection> connection);

  UcxWorker& worker_;
  Service& service_;
  const UcxOptions options_;
  const std::uint64_t incarnation_;
  asio::ip::tcp::acceptor acceptor_;
  std::set<std::shared_ptr<ServerConnection>> connections_;
  TaskScope scope_;
};

}  // namespace icefield::ucx
