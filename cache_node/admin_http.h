// cache_node/admin_http.h — pages for operators: a small HTTP server on loopback.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "common/task.h"
#include "common/task_scope.h"

namespace icefield {

// Answers GET and HEAD requests for the pages it was given; everything else is a 404 or 405.
// Nothing can be changed through it, and it listens on loopback only.
//
// Threads  The shard's. stop() before the destructor.
class AdminHttp {
 public:
  struct Page {
    int status = 200;
    std::string type = "text/plain; charset=utf-8";
    std::string body;
  };
  using Handler = std::function<Page()>;

  explicit AdminHttp(asio::any_io_executor shard);

  // Before listen(). `path` starts with a slash.
  void add(std::string path, Handler handler) { pages_[std::move(path)] = std::move(handler); }

  // Gives back "host:port", the port chosen where it was 0. kInvalidArgument for what is no
  // loopback address, kAlreadyExists when the port is taken.
  Task<std::string> listen(std::string address);
  // Closes what is open, requests being answered included.
  Task<> stop();

 private:
  class Connection;

  asio::awaitable<void> accept_all();
  asio::awaitable<void> serve(std::shared_ptr<Connection> connection);
  Page answer(const std::string& method, const std::string& target) const;

  const asio::any_io_executor shard_;
  std::map<std::string, Handler> pages_;
  asio::ip::tcp::acceptor acceptor_;
  std::set<std::shared_ptr<Connection>> connections_;
  TaskScope scope_;
};

}  // namespace icefield
