#include "client/value_nodes.h"

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

ValueNodes::ValueNodes(const Clock& clock, Nodes& nodes, const CircuitBreaker::Options& breaker)
    : clock_(clock), nodes_(nodes) {
  for (std::size_t i = 0; i < nodes.size(); ++i) peers_.emplace_back(breaker);
}

std::uint64_t ValueNodes::flush_number(std::string_view name_space) const {
  const std::lock_guard lock(mutex_);
  const auto found = flush_numbers_.find(name_space);
  return found == flush_numbers_.end() ? 0 : found->second;
}

void ValueNodes::learn(std::string_view name_space, std::uint64_t flush_number) {
  if (flush_number == 0) return;
  const std::lock_guard lock(mutex_);
  std::uint64_t& known = flush_numbers_[std::string(name_space)];
  known = std::max(known, flush_number);
}

Status ValueNodes::admit(std::size_t node) {
  const std::lock_guard lock(mutex_);
  if (peers_[node].breaker.allow(clock_.now())) return Status();
  return Status(Code::kUnavailable, "node " + nodes_.stub(node).address() +
                                        " has not answered lately; it is asked again in a while");
}

void ValueNodes::report(std::size_t node, const Status& status) {
  const std::lock_guard lock(mutex_);
  if (blames_node(status)) {
    peers_[node].breaker.fail(clock_.now());
  } else {
    peers_[node].breaker.succeed();
  }
}

void ValueNodes::note_read(std::size_t node, std::int64_t bytes, NodeSpeed::Duration time) {
  const std::lock_guard lock(mutex_);
  peers_[node].speed.note(bytes, time);
}

bool ValueNodes::worth_it(std::size_t node, std::int64_t bytes,
                          NodeSpeed::Duration recompute_estimate) {
  const std::lock_guard lock(mutex_);
  Peer& peer = peers_[node];
  if (peer.speed.estimate(bytes) <= recompute_estimate) return true;
  return ++peer.not_worth_it % kProbeEvery == 0;
}

CircuitBreaker::State ValueNodes::state(std::size_t node) const {
  const std::lock_guard lock(mutex_);
  return peers_[node].breaker.state();
}

}  // namespace icefield
