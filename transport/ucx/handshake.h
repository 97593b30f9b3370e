// transport/ucx/handshake.h — framed messages on the TCP connection that sets up a UCX one.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <string>

#include "common/task.h"

namespace icefield::ucx {

// Errors  kUnavailable when the connection breaks, kInvalidArgument for what is no frame or cannot
//         be decoded, kInternal never.
Task<std::string> read_frame(asio::ip::tcp::socket& socket);
Task<> write_frame(asio::ip::tcp::socket& socket, std::string message);

template <class Message>
Task<Message> read_message(asio::ip::tcp::socket& socket) {
  ICE_CO_TRY(const std::string bytes, co_await read_frame(socket));
  Message message;
  if (!message.ParseFromString(bytes)) {
    co_return Status(Code::kInvalidArgument, "handshake message cannot be decoded");
  }
  co_return message;
}

// Suspends until the peer closes the connection, says goodbye, or the socket is closed here. True
// when it said goodbye: then it does not write into our memory any more. A peer that was killed did
// not.
asio::awaitable<bool> wait_for_end(asio::ip::tcp::socket& socket);
// To be called when the endpoint beside the connection is closed. Does not wait.
void say_goodbye(asio::ip::tcp::socket& socket);

// Small messages at once, and a dead machine noticed within half a minute.
void set_socket_options(asio::ip::tcp::socket& socket);

// "host:port", IPv6 in brackets. kInvalidArgument when it is none.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
Result<HostPort> parse_address(const std::string& address);
std::string format_address(const std::string& host, std::uint16_t port);

}  // namespace icefield::ucx
