// tools/child_process.h — a program that runs beside ours, whose output comes here.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

namespace icefield {

// Ended with the object; killed by the system when we are.
//
// Threads  One, and start() on a thread that outlives the program.
class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> arguments;  // the first is looked up in PATH unless it is a path
    // "NAME=value": all of its environment; null: ours.
    std::optional<std::vector<std::string>> environment;
    bool show_errors = false;  // its standard error is ours; else it is dropped
    bool own_group = false;    // Ctrl-C at the terminal is not for it
    int end_signal = SIGKILL;  // kill -9 follows when this does not end it within five seconds
  };

  // kNotFound when there is no such program.
  static Result<ChildProcess> start(Options options);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();

  pid_t id() const { return id_; }
  int output() const { return out_; }  // a pipe's end: its standard output
  std::string read_line();             // without its end; "" at the end
  std::string read_all();              // until the process closes its output
  // Returns after SIGSTOP when the process has stopped: signals arrive in their own time.
  void signal(int number) const;
  // Its exit code, 128 + the signal when one ended it; null while it runs.
  std::optional<int> ended();
  int wait();

 private:
  ChildProcess(pid_t id, int out, int end_signal) : id_(id), out_(out), end_signal_(end_signal) {}
  std::optional<int> reap(int flags);

  pid_t id_;
  int out_;
  int end_signal_;
  std::optional<int> ended_;
};

// What wait() returned, in words: "exit code 3", "signal 9 (Killed)".
std::string end_text(int code);

// The path of icefield-`verb`, which lies beside the running program.
std::string verb_program(const std::string& verb);

}  // namespace icefield
