#include "cache_node/admin_http.h"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

namespace icefield {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;

constexpr std::size_t kMaxConnections = 64;
constexpr std::uint32_t kMaxHeaderBytes = 8 << 10;
constexpr std::uint64_t kMaxBodyBytes = 1 << 10;  // of a request: none is wanted
constexpr std::chrono::seconds kIdleLimit{30};

// "127.0.0.1:7071", "[::1]:7071".
Result<tcp::endpoint> parse_loopback(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  const Status wrong(Code::kInvalidArgument,
                     "admin address " + address + ": expected 127.0.0.1:port or [::1]:port");
  if (colon == address.npos || colon + 1 == address.size()) return wrong;
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  boost::system::error_code error;
  const asio::ip::address ip = asio::ip::make_address(host, error);
  if (error || !ip.is_loopback()) return wrong;
  unsigned long port = 0;
  for (const char c : address.substr(colon + 1)) {
    if (c < '0' || c > '9') return wrong;
    port = port * 10 + static_cast<unsigned long>(c - '0');
    if (port > 65535) return wrong;
  }
  return tcp::endpoint(ip, static_cast<std::uint16_t>(port));
}

}  // namespace

class AdminHttp::Connection {
 public:
  explicit Connection(tcp::socket socket) : stream(std::move(socket)) {}
  beast::tcp_stream stream;
  beast::flat_buffer buffer{kMaxHeaderBytes};
};

AdminHttp::AdminHttp(asio::any_io_executor shard)
    : shard_(std::move(shard)), acceptor_(shard_), scope_(shard_) {}

Task<std::string> AdminHttp::listen(std::string address) {
  ICE_CO_TRY(const tcp::endpoint endpoint, parse_loopback(address));
  boost::system::error_code error;
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error == asio::error::address_in_use) {
    co_return Status(Code::kAlreadyExists,
                     "admin address " + address + " is in use; choose another with --admin_listen");
  }
  if (error) {
    co_return Status(Code::kInvalidArgument, "admin address " + address + ": " + error.message());
  }
  const tcp::endpoint bound = acceptor_.local_endpoint();
  scope_.spawn(accept_all());
  co_return address.substr(0, address.rfind(':') + 1) + std::to_string(bound.port());
}

asio::awaitable<void> AdminHttp::accept_all() {
  while (acceptor_.is_open()) {
    boost::system::error_code error;
    tcp::socket socket(shard_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      if (!acceptor_.is_open()) co_return;
      asio::steady_timer pause(shard_, std::chrono::milliseconds(50));  // out of descriptors
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    if (!acceptor_.is_open()) co_return;  // stop() has been, and knows nothing of this one
    if (connections_.size() >= kMaxConnections) continue;  // closed with `socket`
    auto connection = std::make_shared<Connection>(std::move(socket));
    connections_.insert(connection);
    scope_.spawn(serve(std::move(connection)));
  }
}

asio::awaitable<void> AdminHttp::serve(std::shared_ptr<Connection> connection) {
  beast::tcp_stream& stream = connection->stream;
  boost::system::error_code error;
  bool open = true;
  while (open) {
    http::request_parser<http::string_body> parser;
    parser.header_limit(kMaxHeaderBytes);
    parser.body_limit(kMaxBodyBytes);
    stream.expires_after(kIdleLimit);
    co_await http::async_read(stream, connection->buffer, parser,
                              asio::redirect_error(asio::use_awaitable, error));
    if (error) break;
    const auto& request = parser.get();
    const std::string target(request.target());
    Page page = answer(std::string(request.method_string()), target);
    http::response<http::string_body> response(static_cast<http::status>(page.status),
                                               request.version());
    response.set(http::field::content_type, page.type);
    response.keep_alive(request.keep_alive());
    response.body() = std::move(page.body);
    response.prepare_payload();
    if (request.method() == http::verb::head) response.body().clear();
    co_await http::async_write(stream, response, asio::redirect_error(asio::use_awaitable, error));
    open = !error && response.keep_alive();
  }
  stream.close();
  connections_.erase(connection);
}

AdminHttp::Page AdminHttp::answer(const std::string& method, const std::string& target) const {
  if (method != "GET" && method != "HEAD") return {.status = 405, .body = "only GET\n"};
  const auto found = pages_.find(target.substr(0, target.find('?')));
  if (found != pages_.end()) return found->second();
  Page page{.status = 404, .body = "no such page; there are\n"};
  for (const auto& [path, handler] : pages_) page.body += path + "\n";
  return page;
}

Task<> AdminHttp::stop() {
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  for (const auto& connection : connections_) connection->stream.close();
  co_await scope_.join();
  co_return Status();
}

}  // namespace icefield
