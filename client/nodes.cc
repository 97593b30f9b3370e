#include "client/nodes.h"

namespace icefield {
namespace {

constexpr std::uint32_t kProbeEvery = 16;  // of the reads that would not pay

// Whether the node, not the request, is what is wrong.
bool blames_node(const Status& status) {
  switch (status.code()) {
    case Code::kUnavailable:
    case Code::kDeadlineExceeded:
    case Code::kInternal: return true;
    default: return false;
  }
}

}  // namespace

ClusterNode::ClusterNode(const Clock& clock, Transport& transport, const Address& address,
                         const CircuitBreaker::Options& breaker)
    : clock_(clock),
      transport_(transport),
      contexts_(transport, address),
      values_(transport, address),
      breaker_(breaker) {}

ClusterNode::~ClusterNode() { transport_.disconnect(address()); }

Status ClusterNode::admit() {
  const std::lock_guard lock(mutex_);
  if (breaker_.allow(clock_.now())) return Status();
  return Status(Code::kUnavailable,
                "node " + address() + " has not answered lately; it is asked again in a while");
}

void ClusterNode::report(const Status& status) {
  const std::lock_guard lock(mutex_);
  if (status.code() == Code::kCancelled) return breaker_.give_up(clock_.now());
  blames_node(status) ? breaker_.fail(clock_.now()) : breaker_.succeed();
}

CircuitBreaker::State ClusterNode::state() const {
  const std::lock_guard lock(mutex_);
  return breaker_.state();
}

void ClusterNode::note_read(std::int64_t bytes, NodeSpeed::Duration time) {
  const std::lock_guard lock(mutex_);
  speed_.note(bytes, time);
}

bool ClusterNode::worth_it(std::int64_t bytes, NodeSpeed::Duration recompute_estimate) {
  const std::lock_guard lock(mutex_);
  if (speed_.estimate(bytes) <= recompute_estimate) return true;
  return ++not_worth_it_ % kProbeEvery == 0;
}

Nodes::Nodes(const Clock& clock, Transport& transport, Membership& membership,
             const CircuitBreaker::Options& breaker)
    : clock_(clock), transport_(transport), membership_(membership), breaker_(breaker) {
  watch_ = membership_.watch([this](const MembersSnapshot& members) { adopt(members); });
  adopt(membership_.current());
}

Nodes::~Nodes() { membership_.unwatch(watch_); }

std::shared_ptr<const NodesView> Nodes::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

void Nodes::adopt(const MembersSnapshot& members) {
  std::shared_ptr<const NodesView> before;  // goes when the lock has gone
  const std::lock_guard lock(mutex_);
  if (view_ != nullptr && members->revision <= view_->revision()) return;
  std::erase_if(known_, [](const auto& one) { return one.second.expired(); });
  std::vector<std::shared_ptr<ClusterNode>> nodes;
  for (const Member& member : members->placement.members()) {
    std::weak_ptr<ClusterNode>& known = known_[member.name];
    std::shared_ptr<ClusterNode> node = known.lock();
    if (node == nullptr) {
      node = std::make_shared<ClusterNode>(clock_, transport_, member.name, breaker_);
    }
    known = node;
    nodes.push_back(std::move(node));
  }
  before = std::exchange(view_, std::make_shared<const NodesView>(members, std::move(nodes)));
}

}  // namespace icefield
