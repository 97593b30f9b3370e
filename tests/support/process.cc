#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "common/check.h"

namespace icefield {
namespace {

struct Child {
  pid_t pid = -1;
  int out = -1;
  int err = -1;
};

Child start(const std::vector<std::string>& arguments, const std::vector<std::string>& variables) {
  const std::string program = std::string(ICEFIELD_BIN_DIR) + "/icefield";
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int out[2];
  int err[2];
  ICE_CHECK(pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0);
  const pid_t pid = fork();
  ICE_CHECK(pid >= 0);
  if (pid == 0) {
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const std::string& variable : variables) putenv(const_cast<char*>(variable.c_str()));
    if (chdir(ICEFIELD_SOURCE_DIR) != 0) _exit(126);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  return {pid, out[0], err[0]};
}

// Reads what is there within `timeout_ms`; false at the end of both streams.
bool read_some(const Child& child, int timeout_ms, ProcessResult& result) {
  std::array<pollfd, 2> streams = {{{child.out, POLLIN, 0}, {child.err, POLLIN, 0}}};
  if (poll(streams.data(), streams.size(), timeout_ms) <= 0) return true;
  std::array<char, 65536> buffer;
  bool open = false;
  for (std::size_t i = 0; i < streams.size(); ++i) {
    if (streams[i].revents == 0) {
      open = true;
      continue;
    }
    const ssize_t count = read(streams[i].fd, buffer.data(), buffer.size());
    if (count > 0) {
      (i == 0 ? result.out : result.err).append(buffer.data(), static_cast<std::size_t>(count));
      open = true;
    }
  }
  return open;
}

void finish(const Child& child, ProcessResult& result) {
  close(child.out);
  close(child.err);
  int status = 0;
  ICE_CHECK(waitpid(child.pid, &status, 0) == child.pid);
  result.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

ProcessResult run_icefield(const std::vector<std::string>& arguments,
                           const std::vector<std::string>& variables) {
  const Child child = start(arguments, variables);
  ProcessResult result;
  while (read_some(child, -1, result)) {
  }
  finish(child, result);
  return result;
}

ProcessResult kill_icefield(const std::vector<std::string>& arguments, bool (*when)(void*),
                            void* context) {
  const Child child = start(arguments, {});
  ProcessResult result;
  while (read_some(child, 1, result) && !when(context)) {
  }
  kill(child.pid, SIGKILL);
  finish(child, result);
  return result;
}

}  // namespace icefield
