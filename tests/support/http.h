// tests/support/http.h — asks a node's admin pages, and whatever else listens.
#pragma once

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <string>

namespace icefield {

// What the server at `address` sends back for these bytes until it closes.
inline std::string talk(const std::string& address, const std::string& bytes) {
  namespace asio = boost::asio;
  const std::size_t colon = address.rfind(':');
  asio::io_context io;
  asio::ip::tcp::socket socket(io);
  asio::ip::tcp::resolver resolver(io);
  asio::connect(socket, resolver.resolve(address.substr(0, colon), address.substr(colon + 1)));
  boost::system::error_code ended;
  asio::write(socket, asio::buffer(bytes), ended);
  std::string answer;
  asio::read(socket, asio::dynamic_buffer(answer), ended);
  return answer;
}

inline std::string http(const std::string& address, const std::string& path,
                        const std::string& method = "GET") {
  return talk(address,
              method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
}

}  // namespace icefield
