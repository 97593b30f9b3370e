// tools/child_node.h — a cache node in a process of its own, for benchmarks.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "common/status.h"

namespace icefield {

// Stopped with the object: SIGTERM, and kill -9 when that takes longer than five seconds.
class ChildNode {
 public:
  // Runs icefield-node beside this program on a free loopback port, with `flags`, and waits until
  // it serves. kUnavailable when it ends instead; it has then said why on standard error.
  static Result<ChildNode> start(std::vector<std::string> flags);
  ChildNode(ChildNode&& other) noexcept;
  ChildNode& operator=(ChildNode&&) = delete;
  ~ChildNode();

  const std::string& address() const { return address_; }
  void signal(int number) const;

 private:
  ChildNode(pid_t pid, int out) : pid_(pid), out_(out) {}

  pid_t pid_;
  int out_;  // its standard output
  std::string address_;
};

}  // namespace icefield
