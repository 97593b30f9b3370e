// icefield cluster — several cache nodes on this machine.
#include <fcntl.h>
#include <gflags/gflags.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <vector>

#include "tools/command_line.h"

DEFINE_int32(nodes, 3, "how many");
DEFINE_string(dir, "", "each node keeps its store in a directory of its own below this one");
DEFINE_int32(port, 7070, "of the first node, the others follow; 0: free ports");
DEFINE_int64(dram_bytes, std::int64_t{1} << 28, "memory of each node");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield cluster — runs several cache nodes on this machine, for trying and for tests

Prints one line per node and the --cluster to give to clients. Ctrl-C stops all nodes cleanly. A
node that dies is reported; the others go on.

  icefield cluster --nodes=3 --dir=/tmp/cluster
)";

// A node's process and the end of its standard output.
struct Node {
  pid_t pid = -1;  // -1: gone
  int out = -1;
  std::string line;     // what it has said so far
  std::string address;  // once it serves
};

std::string node_program() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / "icefield-node").string();
}

Result<Node> start_node(int number) {
  const std::string directory = FLAGS_dir + "/node" + std::to_string(number);
  const int port = FLAGS_port == 0 ? 0 : FLAGS_port + number;
  std::vector<std::string> arguments = {
      node_program(), "--listen=127.0.0.1:" + std::to_string(port), "--store=" + directory,
      "--dram_bytes=" + std::to_string(FLAGS_dram_bytes), "--lanes=" + FLAGS_lanes};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) {
    return Status(Code::kInternal, std::string("pipe: ") + std::strerror(errno));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return Status(Code::kInternal, std::string("fork: ") + std::strerror(errno));
  if (pid == 0) {
    setpgid(0, 0);                     // Ctrl-C is for us alone; we pass it on
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // nobody stays behind when we are killed
    if (getppid() != parent) _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(out[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(out[1]);
  return Node{.pid = pid, .out = out[0]};
}

class Cluster {
 public:
  ~Cluster() {
    for (const Node& node : nodes_) {
      if (node.pid > 0) kill(node.pid, SIGTERM);
    }
    for (Node& node : nodes_) {
      if (node.pid > 0) waitpid(node.pid, nullptr, 0);
      close(node.out);
    }
    if (signals_ >= 0) close(signals_);
  }

  Status start() {
    sigset_t watched;
    sigemptyset(&watched);
    for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&watched, signal);
    sigprocmask(SIG_BLOCK, &watched, nullptr);
    signals_ = signalfd(-1, &watched, SFD_CLOEXEC);
    for (int i = 0; i < FLAGS_nodes; ++i) {
      ICE_TRY(Node node, start_node(i));
      nodes_.push_back(std::move(node));
    }
    return Status();
  }

  // Until told to stop, or all nodes are gone.
  Status run() {
    while (true) {
      std::vector<pollfd> watched = {{signals_, POLLIN, 0}};
      for (const Node& node : nodes_) watched.push_back({node.out, POLLIN, 0});
      if (poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) {
        return Status(Code::kInternal, std::string("poll: ") + std::strerror(errno));
      }
      for (std::size_t i = 0; i < nodes_.size(); ++i) {
        if ((watched[i + 1].revents & POLLIN) != 0) read_line(nodes_[i], i);
      }
      if ((watched[0].revents & POLLIN) == 0) continue;
      signalfd_siginfo signal;
      if (read(signals_, &signal, sizeof signal) != sizeof signal) continue;
      if (signal.ssi_signo != SIGCHLD) return stop();
      ICE_TRY(reap());
    }
  }

 private:
  void read_line(Node& node, std::size_t number) {
    char text[512];
    const ssize_t count = read(node.out, text, sizeof text);
    if (count <= 0) return;
    node.line.append(text, static_cast<std::size_t>(count));
    const std::size_t end = node.line.find('\n');
    if (end == std::string::npos || !node.address.empty()) return;
    const std::string line = node.line.substr(0, end);
    node.address = line.substr(5, line.find(' ', 5) - 5);  // "node ADDRESS serves…"
    std::cout << "node" << number << "  " << line.substr(5) << "  pid " << node.pid << std::endl;
    std::string members;
    for (const Node& other : nodes_) {
      if (other.address.empty()) return;
      members += (members.empty() ? "" : ",") + other.address;
    }
    std::cout << "ready: --cluster=" << members << std::endl;
  }

  Status reap() {
    bool alive = false;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      Node& node = nodes_[i];
      int status = 0;
      if (node.pid > 0 && waitpid(node.pid, &status, WNOHANG) == node.pid) {
        node.pid = -1;
        std::cout << "node" << i << "  ended, "
                  << (WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                          : "exit code " + std::to_string(WEXITSTATUS(status)))
                  << std::endl;
        if (node.address.empty()) {
          return Status(Code::kUnavailable, "node" + std::to_string(i) + " did not start");
        }
      }
      alive = alive || node.pid > 0;
    }
    return alive ? Status() : Status(Code::kUnavailable, "all nodes are gone");
  }

  Status stop() {
    for (const Node& node : nodes_) {
      if (node.pid > 0) kill(node.pid, SIGTERM);
    }
    Status status;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      int result = 0;
      if (nodes_[i].pid > 0) waitpid(nodes_[i].pid, &result, 0);
      nodes_[i].pid = -1;
      // A node that had not come to installing its handler just ends.
      const bool clean = result == 0 || (WIFSIGNALED(result) && WTERMSIG(result) == SIGTERM &&
                                         nodes_[i].address.empty());
      std::cout << "node" << i << (clean ? "  stopped" : "  stopped with an error") << std::endl;
      if (!clean)
        status = Status(Code::kInternal, "node" + std::to_string(i) + " did not stop cleanly");
    }
    return status;
  }

  std::vector<Node> nodes_;
  int signals_ = -1;
};

Status run() {
  if (FLAGS_dir.empty()) return Status(Code::kInvalidArgument, "no directory: give --dir=DIR");
  if (FLAGS_nodes < 1 || FLAGS_nodes > 64) {
    return Status(Code::kInvalidArgument, "--nodes must be 1 to 64");
  }
  if (FLAGS_port < 0 || FLAGS_port + FLAGS_nodes > 65536) {
    return Status(Code::kInvalidArgument, "--port must leave room for all nodes below 65536");
  }
  Cluster cluster;
  ICE_TRY(cluster.start());
  return cluster.run();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
