#include "tools/embedded_node.h"

namespace icefield {
namespace {

constexpr char kAddress[] = "embedded";

}  // namespace

EmbeddedNode::EmbeddedNode()
    : work_(asio::make_work_guard(io_)), stub_(transport_, kAddress), store_(stub_) {}

Result<std::unique_ptr<EmbeddedNode>> EmbeddedNode::open(Options options) {
  std::unique_ptr<EmbeddedNode> embedded(new EmbeddedNode());
  DramTier::Options memory{.capacity_bytes = options.dram_bytes};
  memory.on_evict = [raw = embedded.get()](const ObjectKey& key) { raw->node_->note_evicted(key); };
  ICE_TRY(embedded->memory_, DramTier::open(std::move(memory)));
  if (!options.store.empty()) {
    ICE_TRY(embedded->disk_, NvmeTier::open({.path = options.store, .create = options.create}));
  }
  embedded->node_ = std::make_unique<CacheNode>(*embedded->memory_, embedded->disk_.get());
  embedded->server_ = std::make_unique<NodeServer>(*embedded->node_);
  embedded->thread_ = std::thread([&io = embedded->io_] { io.run(); });
  ICE_TRY(sync_wait(embedded->executor(), embedded->node_->recover()));
  ICE_TRY(sync_wait(embedded->executor(), embedded->transport_.listen(
                                              kAddress, embedded->executor(), *embedded->server_)));
  return embedded;
}

EmbeddedNode::~EmbeddedNode() {
  if (thread_.joinable()) {
    (void)sync_wait(executor(), transport_.stop(kAddress));
    work_.reset();
    thread_.join();
  }
}

}  // namespace icefield
