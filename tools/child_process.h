// tools/child_process.h — a program that runs beside ours, whose output comes here.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace icefield {

// Started by the constructor, killed by the destructor. Its standard error is dropped.
class ChildProcess {
 public:
  // `arguments[0]` is looked up in PATH. `variables` ("NAME=value") are its whole environment.
  ChildProcess(std::vector<std::string> arguments, std::vector<std::string> variables);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  bool started() const { return started_; }
  std::string read_line();  // without its end; "" at the end
  std::string read_all();   // until the process closes its output

 private:
  pid_t id_ = -1;
  int out_ = -1;
  bool started_ = false;
};

}  // namespace icefield
