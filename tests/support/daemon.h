// tests/support/daemon.h — a program of ours that keeps running while a test talks to it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace icefield {

// Starts a program, build/<preset>/bin/icefield when none is named, and waits until it has printed
// a line that begins with `ready`, or has ended. The destructor kills it.
class Daemon {
 public:
  Daemon(const std::vector<std::string>& arguments, const std::string& ready,
         const std::string& program = "");
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // That line; empty when it ended before.
  const std::string& ready_line() const { return ready_line_; }
  pid_t pid() const { return pid_; }
  void signal(int number);
  // SIGTERM, then its exit code (128 + signal when one ended it).
  int stop();
  // kill -9.
  void kill();

 private:
  int wait();

  pid_t pid_ = -1;  // -1: has ended
  int out_ = -1;
  std::string ready_line_;
};

// A cache node of its own process.
class NodeDaemon : public Daemon {
 public:
  // `listen` "127.0.0.1:0" takes a free port.
  NodeDaemon(const std::string& listen, const std::vector<std::string>& more);
  // Where it listens; empty when it did not start.
  std::string address() const { return word_after("node "); }
  std::string admin() const { return word_after("http://"); }

 private:
  std::string word_after(const std::string& words) const;
};

}  // namespace icefield
