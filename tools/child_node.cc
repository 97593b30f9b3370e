#include "tools/child_node.h"

#include <unistd.h>

#include <array>

namespace icefield {

Result<ChildNode> ChildNode::launch(std::vector<std::string> flags) {
  flags.insert(flags.begin(), verb_program("node"));
  ChildProcess::Options options;
  options.arguments = std::move(flags);
  options.show_errors = true;
  options.own_group = true;  // Ctrl-C is for whoever runs the node, who then stops it
  options.end_signal = SIGTERM;
  ICE_TRY(ChildProcess process, ChildProcess::start(std::move(options)));
  return ChildNode(std::move(process));
}

Result<ChildNode> ChildNode::start(std::vector<std::string> flags) {
  flags.insert(flags.begin(), {"--listen=127.0.0.1:0", "--admin_listen="});
  ICE_TRY(ChildNode node, launch(std::move(flags)));
  while (node.address_.empty() && !node.closed_) node.listen();
  if (node.closed_) return Status(Code::kUnavailable, "icefield node did not start");
  return node;
}

void ChildNode::listen() {
  std::array<char, 512> text;
  const ssize_t count = ::read(process_.output(), text.data(), text.size());
  closed_ = count <= 0;
  if (closed_ || !address_.empty()) return;
  said_.append(text.data(), static_cast<std::size_t>(count));
  constexpr std::string_view kWord = "node ";  // "node ADDRESS serves…"
  const std::size_t end = said_.find('\n');
  if (end == std::string::npos || !said_.starts_with(kWord)) return;
  announcement_ = said_.substr(kWord.size(), end - kWord.size());
  address_ = announcement_.substr(0, announcement_.find(' '));
}

}  // namespace icefield
