// tests/support/tcp_relay.h — a bad cable: forwards connections until a chosen byte, then does
// something to them.
#pragma once

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <list>

#include "common/shard.h"
#include "common/task_scope.h"

namespace icefield {

// What happens to the bytes from the `at`-th on, counted per connection and direction.
enum class CableFault { kNone, kClose, kSilence, kFlip };

class TcpRelay {
 public:
  struct Plan {
    CableFault fault = CableFault::kNone;
    std::int64_t at = 0;
    bool from_server = false;  // else on the client's bytes
  };
  TcpRelay(std::uint16_t port, Plan plan)
      : port_(port),
        plan_(plan),
        acceptor_(shard_.executor(), tcp::endpoint(asio::ip::address_v4::loopback(), 0)),
        scope_(shard_.executor()) {
    address_ = "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
    asio::post(shard_.executor(), [this] { scope_.spawn(run()); });
  }
  ~TcpRelay() {
    ICE_CHECK(sync_wait(shard_.executor(), end(true)).ok());
    shard_.stop();
  }
  const std::string& address() const { return address_; }
  // Closes the connections that there are; new ones are forwarded.
  void cut() { ICE_CHECK(sync_wait(shard_.executor(), end(false)).ok()); }

 private:
  using tcp = asio::ip::tcp;
  struct Line {
    tcp::socket client;
    tcp::socket server;
  };

  asio::awaitable<void> run() {
    boost::system::error_code error;
    while (true) {
      lines_.push_back({tcp::socket(shard_.executor()), tcp::socket(shard_.executor())});
      Line& line = lines_.back();
      co_await acceptor_.async_accept(line.client,
                                      asio::redirect_error(asio::use_awaitable, error));
      if (error) co_return;
      const tcp::endpoint there(asio::ip::address_v4::loopback(), port_);
      co_await line.server.async_connect(there, asio::redirect_error(asio::use_awaitable, error));
      if (error) co_return;
      scope_.spawn(forward(line, line.client, line.server, !plan_.from_server));
      scope_.spawn(forward(line, line.server, line.client, plan_.from_server));
    }
  }

  asio::awaitable<void> forward(Line& line, tcp::socket& from, tcp::socket& to, bool faulty) {
    std::array<char, 4096> bytes;
    std::int64_t done = 0;
    boost::system::error_code error;
    while (true) {
      const auto room = asio::buffer(bytes);
      auto count = static_cast<std::int64_t>(
          co_await from.async_read_some(room, asio::redirect_error(asio::use_awaitable, error)));
      if (error) break;
      const bool now = faulty && plan_.fault != CableFault::kNone && plan_.at < done + count;
      const std::int64_t whole = std::max<std::int64_t>(plan_.at - done, 0);
      if (now && plan_.fault == CableFault::kFlip) {
        if (plan_.at >= done) bytes[static_cast<std::size_t>(whole)] ^= 1;
      } else if (now) {
        count = whole;
      }
      const auto some = asio::buffer(bytes, static_cast<std::size_t>(count));
      co_await asio::async_write(to, some, asio::redirect_error(asio::use_awaitable, error));
      done += count;
      if (error || (now && plan_.fault == CableFault::kClose)) break;
    }
    line.client.close(error);
    line.server.close(error);
  }

  Task<> end(bool for_good) {
    boost::system::error_code ignored;
    if (for_good) acceptor_.close();
    for (Line& line : lines_) {
      line.client.close(ignored);
      line.server.close(ignored);
    }
    if (for_good) co_await scope_.join();
    co_return Status();
  }

  Shard shard_;
  const std::uint16_t port_;
  const Plan plan_;
  tcp::acceptor acceptor_;
  std::list<Line> lines_;  // the shard's; each used by two coroutines
  TaskScope scope_;
  std::string address_;
};

}  // namespace icefield
