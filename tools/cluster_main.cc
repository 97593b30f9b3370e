// icefield cluster — several cache nodes on this machine.
#include <gflags/gflags.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <vector>

#include "tools/child_node.h"
#include "tools/command_line.h"

DEFINE_int32(nodes, 3, "how many");
DEFINE_string(dir, "", "each node keeps its store in a directory of its own below this one");
DEFINE_int32(port, 7070, "of the first node, the others follow; 0: free ports");
DEFINE_int64(dram_bytes, std::int64_t{1} << 28, "memory of each node");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_string(token_file, "", "who may use the nodes: lines of \"token namespace[,namespace…]\"");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield cluster — runs several cache nodes on this machine, for trying and for tests

Prints one line per node and the --cluster to give to clients. Ctrl-C stops all nodes cleanly. A
node that dies is reported; the others go on.

  icefield cluster --nodes=3 --dir=/tmp/cluster
)";

Result<ChildNode> launch_node(int number) {
  const int port = FLAGS_port == 0 ? 0 : FLAGS_port + number;
  return ChildNode::launch({"--listen=127.0.0.1:" + std::to_string(port),
                            "--store=" + FLAGS_dir + "/node" + std::to_string(number),
                            "--dram_bytes=" + std::to_string(FLAGS_dram_bytes),
                            "--lanes=" + FLAGS_lanes, "--token_file=" + FLAGS_token_file});
}

class Cluster {
 public:
  ~Cluster() {
    ask_to_stop();
    nodes_.clear();
    if (signals_ >= 0) close(signals_);
  }

  Status start() {
    sigset_t watched;
    sigemptyset(&watched);
    for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&watched, signal);
    sigprocmask(SIG_BLOCK, &watched, nullptr);
    signals_ = signalfd(-1, &watched, SFD_CLOEXEC);
    for (int i = 0; i < FLAGS_nodes; ++i) {
      ICE_TRY(ChildNode node, launch_node(i));
      nodes_.push_back(std::move(node));
    }
    return Status();
  }

  // Until told to stop, or all nodes are gone.
  Status run() {
    while (true) {
      std::vector<pollfd> watched = {{signals_, POLLIN, 0}};
      for (ChildNode& node : nodes_) {
        watched.push_back({node.closed() ? -1 : node.process().output(), POLLIN, 0});
      }
      if (poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) {
        return Status(Code::kInternal, std::string("poll: ") + std::strerror(errno));
      }
      for (std::size_t i = 0; i < nodes_.size(); ++i) {
        if (watched[i + 1].revents != 0) listen(nodes_[i], i);
      }
      if ((watched[0].revents & POLLIN) == 0) continue;
      signalfd_siginfo signal;
      if (read(signals_, &signal, sizeof signal) != sizeof signal) continue;
      if (signal.ssi_signo != SIGCHLD) return stop();
      ICE_TRY(reap());
    }
  }

 private:
  void listen(ChildNode& node, std::size_t number) {
    const bool served = !node.address().empty();
    node.listen();
    if (served || node.address().empty()) return;
    std::cout << "node" << number << "  " << node.announcement() << "  pid " << node.process().id()
              << std::endl;
    std::string members;
    for (const ChildNode& other : nodes_) {
      if (other.address().empty()) return;
      members += (members.empty() ? "" : ",") + other.address();
    }
    std::cout << "ready: --cluster=" << members << std::endl;
  }

  // Says which nodes have ended since.
  Status reap() {
    bool alive = false;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      const std::optional<int> code = nodes_[i].process().ended();
      alive = alive || !code.has_value();
      if (!code.has_value() || said_gone_[i]) continue;
      said_gone_[i] = true;
      std::cout << "node" << i << "  ended, " << end_text(*code) << std::endl;
      if (nodes_[i].address().empty()) {
        return Status(Code::kUnavailable, "node" + std::to_string(i) + " did not start");
      }
    }
    return alive ? Status() : Status(Code::kUnavailable, "all nodes are gone");
  }

  void ask_to_stop() {
    for (ChildNode& node : nodes_) node.signal(SIGTERM);
  }

  Status stop() {
    ask_to_stop();
    Status status;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      if (said_gone_[i]) continue;
      const int code = nodes_[i].process().wait();
      // A node that had not come to installing its handler just ends.
      const bool early = nodes_[i].address().empty() && code == 128 + SIGTERM;
      const bool clean = code == 0 || early;
      std::cout << "node" << i << (clean ? "  stopped" : "  stopped with an error") << std::endl;
      if (!clean) {
        status = Status(Code::kInternal, "node" + std::to_string(i) + " did not stop cleanly");
      }
    }
    return status;
  }

  std::vector<ChildNode> nodes_;
  std::vector<bool> said_gone_ = std::vector<bool>(static_cast<std::size_t>(FLAGS_nodes));
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
