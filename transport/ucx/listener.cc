#include "transport/ucx/listener.h"

#include "transport/ucx/handshake.h"

namespace icefield::ucx {

using asio::ip::tcp;

Task<Address> Listener::open(Address self) {
  ICE_CO_TRY(const HostPort address, parse_address(self));
  boost::system::error_code error;
  tcp::resolver resolver(worker_->shard());
  const std::string port = std::to_string(address.port);
  const auto found = co_await resolver.async_resolve(
      address.host, port, tcp::resolver::passive, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return Status(Code::kInvalidArgument, self + ": " + error.message());
  const tcp::endpoint endpoint = found.begin()->endpoint();
  const bool open_to_all = options_.tokens.empty() && !options_.insecure_listen;
  if (open_to_all && !endpoint.address().is_loopback()) {
    co_return Status(Code::kInvalidArgument,
                     "listening on " + self +
                         " lets other machines in: say who may with --token_file, or let everybody "
                         "with --insecure_listen");
  }
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error == asio::error::address_in_use) {
    co_return Status(Code::kAlreadyExists, "address " + self + " is in use");
  }
  if (error) {
    co_return Status(Code::kInvalidArgument, "listening on " + self + ": " + error.message());
  }
  scope_.spawn(accept_all());
  co_return format_address(address.host, acceptor_.local_endpoint().port());
}

asio::awaitable<void> Listener::accept_all() {
  while (acceptor_.is_open()) {
    boost::system::error_code error;
    tcp::socket socket(worker_->shard());
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      // Out of descriptors, mostly: connections that end will free some.
      if (acceptor_.is_open()) {
        asio::steady_timer pause(worker_->shard(), std::chrono::milliseconds(50));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      }
      continue;
    }
    if (!acceptor_.is_open()) co_return;  // stop() has been, and knows nothing of this one
    auto connection = std::make_shared<ServerConnection>(*worker_, std::move(socket), service_,
                                                         options_, incarnation_, lanes_log_);
    connections_.insert(connection);
    scope_.spawn(run(std::move(connection)));
  }
}

asio::awaitable<void> Listener::run(std::shared_ptr<ServerConnection> connection) {
  co_await connection->run();
  if (connection->abrupt()) doubt_();
  connections_.erase(connection);
}

void Listener::end_connections(const Status& why) {
  for (const auto& connection : connections_) connection->end(why);
}

asio::awaitable<void> Listener::stop() {
  acceptor_.close();
  for (const auto& connection : connections_) connection->stop();
  co_await scope_.join();
}

}  // namespace icefield::ucx
