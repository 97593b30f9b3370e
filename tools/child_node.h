// tools/child_node.h — a cache node in a process of its own, for benchmarks and `icefield cluster`.
#pragma once

#include <string>
#include <vector>

#include "tools/child_process.h"

namespace icefield {

// Stopped with the object: SIGTERM, and kill -9 when that takes longer than five seconds.
class ChildNode {
 public:
  // Runs icefield-node beside this program with `flags` and does not wait for it.
  static Result<ChildNode> launch(std::vector<std::string> flags);
  // On a free loopback port and without admin pages; waits until it serves. kUnavailable when it
  // ends instead; it has then said why on standard error.
  static Result<ChildNode> start(std::vector<std::string> flags);

  // Reads what it says, once; blocks when there is nothing to read, so poll process().output()
  // first.
  void listen();
  bool closed() const { return closed_; }                  // it says no more
  const std::string& address() const { return address_; }  // empty: does not serve yet
  // "ADDRESS serves, admin http://…"; empty as long as the address is.
  const std::string& announcement() const { return announcement_; }
  ChildProcess& process() { return process_; }
  void signal(int number) const { process_.signal(number); }

 private:
  explicit ChildNode(ChildProcess process) : process_(std::move(process)) {}

  ChildProcess process_;
  std::string said_;  // until its first line is whole
  bool closed_ = false;
  std::string announcement_;
  std::string address_;
};

}  // namespace icefield
