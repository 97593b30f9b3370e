#include "tools/child_node.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace icefield {

Result<ChildNode> ChildNode::start(std::vector<std::string> flags) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string program = (self.parent_path() / "icefield-node").string();
  flags.insert(flags.begin(), {program, "--listen=127.0.0.1:0", "--admin_listen="});
  std::vector<char*> argv;
  for (std::string& flag : flags) argv.push_back(flag.data());
  argv.push_back(nullptr);
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) {
    return Status(Code::kInternal, std::string("pipe: ") + std::strerror(errno));
  }
  const pid_t pid = fork();
  if (pid < 0) return Status(Code::kInternal, std::string("fork: ") + std::strerror(errno));
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(out[1]);
  ChildNode node(pid, out[0]);
  std::string line;
  for (char c = 0; c != '\n' && read(node.out_, &c, 1) == 1;) line += c;
  constexpr std::size_t kWord = 5;  // "node ADDRESS serves"
  if (!line.starts_with("node ")) return Status(Code::kUnavailable, program + " did not start");
  node.address_ = line.substr(kWord, line.find_first_of(" \n", kWord) - kWord);
  return node;
}

ChildNode::ChildNode(ChildNode&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      out_(std::exchange(other.out_, -1)),
      address_(std::move(other.address_)) {}

ChildNode::~ChildNode() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGCONT);
  ::kill(pid_, SIGTERM);
  constexpr int kPatienceMs = 5000;
  pollfd ended{out_, 0, 0};  // its end of the pipe closes with it
  if (poll(&ended, 1, kPatienceMs) == 0) ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(out_);
}

void ChildNode::signal(int number) const { ::kill(pid_, number); }

}  // namespace icefield
