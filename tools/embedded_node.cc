#include "tools/embedded_node.h"

namespace icefield {
namespace {

constexpr char kAddress[] = "embedded";

}  // namespace

EmbeddedNode::EmbeddedNode()
    : membership_({{.name = kAddress}}), nodes_(clock_, transport_, membership_), store_(nodes_) {}

Result<std::unique_ptr<EmbeddedNode>> EmbeddedNode::open(Options options) {
  std::unique_ptr<EmbeddedNode> embedded(new EmbeddedNode());
  ICE_TRY(embedded->host_, NodeHost::open(std::move(options), embedded->executor()));
  auto listening =
      embedded->transport_.listen(kAddress, embedded->executor(), embedded->host_->service());
  ICE_TRY(sync_wait(embedded->executor(), std::move(listening)));
  return embedded;
}

EmbeddedNode::~EmbeddedNode() {
  (void)sync_wait(executor(), transport_.shutdown());
  if (host_ != nullptr) (void)sync_wait(executor(), host_->stop());
  shard_.stop();
}

}  // namespace icefield
