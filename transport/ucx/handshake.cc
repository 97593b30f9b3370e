#include "transport/ucx/handshake.h"

#include <netinet/tcp.h>

#include <array>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <charconv>

#include "common/bytes.h"

namespace icefield::ucx {
namespace {

constexpr std::string_view kMagic = "ICE1";
constexpr std::uint32_t kMaxFrameBytes = 64 << 10;

Status broken(const boost::system::error_code& error) {
  return Status(Code::kUnavailable, error.message());
}

}  // namespace

Task<std::string> read_frame(asio::ip::tcp::socket& socket) {
  boost::system::error_code error;
  std::array<std::byte, 8> head;
  const auto head_buffer = asio::buffer(head);
  co_await asio::async_read(socket, head_buffer, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return broken(error);
  const auto bytes = load<std::uint32_t>(head.data() + kMagic.size());
  if (as_text(ConstByteSpan(head).first(kMagic.size())) != kMagic || bytes > kMaxFrameBytes) {
    co_return Status(Code::kInvalidArgument, "the other side does not speak Icefield's protocol");
  }
  std::string message(bytes, '\0');
  const auto body = asio::buffer(message);
  co_await asio::async_read(socket, body, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return broken(error);
  co_return message;
}

Task<> write_frame(asio::ip::tcp::socket& socket, std::string message) {
  const auto bytes = static_cast<std::uint32_t>(message.size());
  std::string frame(kMagic);
  frame.append(as_text(std::as_bytes(std::span(&bytes, 1))));
  frame += message;
  boost::system::error_code error;
  const auto buffer = asio::buffer(frame);
  co_await asio::async_write(socket, buffer, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return broken(error);
  co_return Status();
}

asio::awaitable<bool> wait_for_end(asio::ip::tcp::socket& socket) {
  std::array<std::byte, 1> byte;
  boost::system::error_code error;
  const auto buffer = asio::buffer(byte);
  co_await socket.async_read_some(buffer, asio::redirect_error(asio::use_awaitable, error));
  co_return !error;
}

void say_goodbye(asio::ip::tcp::socket& socket) {
  constexpr std::array<std::byte, 1> kGoodbye{};
  (void)::send(socket.native_handle(), kGoodbye.data(), kGoodbye.size(),
               MSG_DONTWAIT | MSG_NOSIGNAL);
}

void set_socket_options(asio::ip::tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
  const auto set = [&socket](int name, int value) {
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, name, &value, sizeof value);
  };
  set(TCP_KEEPIDLE, 10);
  set(TCP_KEEPINTVL, 5);
  set(TCP_KEEPCNT, 3);
}

Result<HostPort> parse_address(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  HostPort parsed;
  bool ok = colon != address.npos && colon > 0;
  if (ok) {
    const char* const end = address.data() + address.size();
    const auto [stop, error] = std::from_chars(address.data() + colon + 1, end, parsed.port);
    ok = error == std::errc() && stop == end;
    parsed.host = address.substr(0, colon);
  }
  const bool bracketed = ok && parsed.host.front() == '[' && parsed.host.back() == ']';
  if (bracketed) parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
  if (!ok || parsed.host.empty() || (!bracketed && parsed.host.find(':') != address.npos)) {
    return Status(Code::kInvalidArgument,
                  "address '" + address + "': write host:port, IPv6 as [host]:port");
  }
  return parsed;
}

std::string format_address(const std::string& host, std::uint16_t port) {
  const bool v6 = host.find(':') != host.npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

}  // namespace icefield::ucx
