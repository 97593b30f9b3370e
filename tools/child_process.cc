#include "tools/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace icefield {
namespace {

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

Status broken(const char* what) {
  return Status(Code::kInternal, std::string(what) + ": " + std::strerror(errno));
}

// What the child needs; all of it made before the fork.
struct Plan {
  char** arguments;
  char** environment;
  bool show_errors;
  bool own_group;
  int out;
  int failed;  // where errno goes when there is no such program
  pid_t parent;
};

[[noreturn]] void become(const Plan& plan) {
  if (plan.own_group) ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(1);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::dup2(plan.out, STDOUT_FILENO);
  if (!plan.show_errors) ::dup2(::open("/dev/null", O_WRONLY), STDERR_FILENO);
  ::execvpe(plan.arguments[0], plan.arguments, plan.environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t told = ::write(plan.failed, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

Result<ChildProcess> ChildProcess::start(Options options) {
  std::array<int, 2> out{-1, -1};
  std::array<int, 2> failed{-1, -1};
  if (::pipe2(out.data(), O_CLOEXEC) != 0) return broken("pipe");
  if (::pipe2(failed.data(), O_CLOEXEC) != 0) {
    for (const int end : out) ::close(end);
    return broken("pipe");
  }
  const bool inherits = !options.environment.has_value();
  std::vector<char*> environment;
  if (!inherits) environment = pointers(*options.environment);
  std::vector<char*> arguments = pointers(options.arguments);
  const Plan plan{.arguments = arguments.data(),
                  .environment = inherits ? environ : environment.data(),
                  .show_errors = options.show_errors,
                  .own_group = options.own_group,
                  .out = out[1],
                  .failed = failed[1],
                  .parent = ::getpid()};
  const pid_t id = ::fork();
  if (id == 0) become(plan);
  ::close(out[1]);
  ::close(failed[1]);
  int error = id < 0 ? errno : 0;
  if (id > 0 && ::read(failed[0], &error, sizeof error) < 0) error = errno;
  ::close(failed[0]);
  if (error == 0) return ChildProcess(id, out[0], options.end_signal);
  ::close(out[0]);
  if (id > 0) ::waitpid(id, nullptr, 0);
  return Status(error == ENOENT ? Code::kNotFound : Code::kInternal,
                "program " + options.arguments[0] + ": " + std::strerror(error));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : id_(std::exchange(other.id_, -1)),
      out_(std::exchange(other.out_, -1)),
      end_signal_(other.end_signal_),
      ended_(other.ended_) {}

ChildProcess::~ChildProcess() {
  if (id_ < 0) return;
  if (!ended().has_value()) {
    signal(end_signal_);
    signal(SIGCONT);
    constexpr int kPatienceMs = 5000;
    pollfd closed{out_, 0, 0};  // its end of the pipe closes with it
    if (::poll(&closed, 1, kPatienceMs) == 0) signal(SIGKILL);
    (void)wait();
  }
  ::close(out_);
}

std::string ChildProcess::read_line() {
  std::string line;
  for (char c = 0; ::read(out_, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

std::string ChildProcess::read_all() {
  std::string text;
  std::array<char, 4096> block;
  for (ssize_t got = 0; (got = ::read(out_, block.data(), block.size())) > 0;) {
    text.append(block.data(), static_cast<std::size_t>(got));
  }
  return text;
}

void ChildProcess::signal(int number) const {
  if (id_ < 0 || ended_.has_value() || ::kill(id_, number) != 0 || number != SIGSTOP) return;
  siginfo_t stopped;
  while (::waitid(P_PID, static_cast<id_t>(id_), &stopped, WSTOPPED | WEXITED | WNOWAIT) != 0 &&
         errno == EINTR) {
  }
}

std::optional<int> ChildProcess::reap(int flags) {
  int status = 0;
  if (!ended_.has_value() && ::waitpid(id_, &status, flags) == id_) {
    ended_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  return ended_;
}

std::optional<int> ChildProcess::ended() { return reap(WNOHANG); }
int ChildProcess::wait() { return reap(0).value_or(-1); }

std::string end_text(int code) {
  constexpr int kSignals = 128;
  if (code <= kSignals) return "exit code " + std::to_string(code);
  const int signal = code - kSignals;
  return "signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
}

std::string verb_program(const std::string& verb) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / ("icefield-" + verb)).string();
}

}  // namespace icefield
