#include "tests/support/daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/check.h"

namespace icefield {

Daemon::Daemon(const std::vector<std::string>& arguments, const std::string& ready,
               const std::string& program) {
  const std::string path = program.empty() ? ICEFIELD_BIN_DIR "/icefield" : program;
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int out[2];
  ICE_CHECK(pipe2(out, O_CLOEXEC) == 0);
  pid_ = fork();
  ICE_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out[1], STDOUT_FILENO);
    execv(path.c_str(), argv.data());
    _exit(127);
  }
  close(out[1]);
  out_ = out[0];
  std::string line;
  for (char c = 0; ready_line_.empty() && read(out_, &c, 1) == 1;) {
    if (c != '\n') {
      line += c;
    } else if (line.starts_with(ready)) {
      ready_line_ = line;
    } else {
      line.clear();
    }
  }
}

Daemon::~Daemon() {
  kill();
  close(out_);
}

void Daemon::signal(int number) {
  ICE_CHECK(pid_ > 0);
  ::kill(pid_, number);
}

int Daemon::wait() {
  int status = 0;
  ICE_CHECK(waitpid(pid_, &status, 0) == pid_);
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int Daemon::stop() {
  signal(SIGTERM);
  return wait();
}

void Daemon::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  (void)wait();
}

NodeDaemon::NodeDaemon(const std::string& listen, const std::vector<std::string>& more)
    : Daemon(
          [&] {
            std::vector<std::string> arguments = {"node", "--listen=" + listen,
                                                  "--dram_bytes=67108864"};
            arguments.insert(arguments.end(), more.begin(), more.end());
            return arguments;
          }(),
          "node ") {}

std::string NodeDaemon::word_after(const std::string& words) const {
  const std::size_t at = ready_line().find(words);
  if (at == std::string::npos) return "";
  const std::size_t begin = at + words.size();
  return ready_line().substr(begin, ready_line().find_first_of(" ,", begin) - begin);
}

}  // namespace icefield
