// transport/ucx/listener.h — accepts connections for a service.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <set>

#include "transport/ucx/server_connection.h"

namespace icefield::ucx {

// Threads  The shard's. stop() before the destructor.
class Listener {
 public:
  // Connections are the worker's that is there when they are accepted. `doubt` is called after the
  // loss of a client that may have left its queue stuck.
  Listener(const std::unique_ptr<UcxWorker>& worker, Service& service, const UcxOptions& options,
           std::uint64_t incarnation, LanesLog& lanes_log, std::function<void()> doubt)
      : worker_(worker),
        service_(service),
        options_(options),
        incarnation_(incarnation),
        lanes_log_(lanes_log),
        doubt_(std::move(doubt)),
        acceptor_(worker->shard()),
        scope_(worker->shard()) {}

  // The address with the port in use. kAlreadyExists when another has it, kInvalidArgument for
  // what is no address of this machine.
  Task<Address> open(Address self);
  // Takes no more connections and requests, waits for those under way.
  asio::awaitable<void> stop();
  // All that there are: calls under way are not answered any more.
  void end_connections(const Status& why);
  const std::set<std::shared_ptr<ServerConnection>>& connections() const { return connections_; }

 private:
  asio::awaitable<void> accept_all();
  asio::awaitable<void> run(std::shared_ptr<ServerConnection> connection);

  const std::unique_ptr<UcxWorker>& worker_;
  Service& service_;
  const UcxOptions options_;
  const std::uint64_t incarnation_;
  LanesLog& lanes_log_;
  const std::function<void()> doubt_;
  asio::ip::tcp::acceptor acceptor_;
  std::set<std::shared_ptr<ServerConnection>> connections_;
  TaskScope scope_;
};

}  // namespace icefield::ucx
