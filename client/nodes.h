// client/nodes.h — the nodes of a cluster as a client sees them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cache_node/node_stub.h"
#include "cache_node/value_stub.h"
#include "client/circuit_breaker.h"
#include "client/node_speed.h"
#include "cluster_index/membership/membership.h"

namespace icefield {

// One node: how it is asked, whether it answers, and how fast. Both stores ask through one, so that
// what one of them finds out spares the other the wait.
//
// Threads  Any.
class ClusterNode {
 public:
  ClusterNode(const Clock& clock, Transport& transport, const Address& address,
              const CircuitBreaker::Options& breaker);
  // Nobody asks it any more: its connection is closed.
  ~ClusterNode();
  ClusterNode(const ClusterNode&) = delete;
  ClusterNode& operator=(const ClusterNode&) = delete;

  const Address& address() const { return contexts_.address(); }
  NodeStub& contexts() { return contexts_; }
  ValueStub& values() { return values_; }

  // kUnavailable at once while the breaker is open. Every ok is followed by a report().
  Status admit();
  // How a call ended.
  void report(const Status& status);
  // A call of one of the stubs, between those two.
  template <class T>
  asio::awaitable<Result<T>> ask(asio::awaitable<Result<T>> call) {
    ICE_CO_TRY(admit());
    Result<T> result = co_await std::move(call);
    report(result.status());
    co_return result;
  }
  CircuitBreaker::State state() const;

  // A read brought so many bytes in that time.
  void note_read(std::int64_t bytes, NodeSpeed::Duration time);
  // Whether a read of so many bytes pays. Now and then a read goes out that would not, so that a
  // node that became faster is noticed.
  bool worth_it(std::int64_t bytes, NodeSpeed::Duration recompute_estimate);

 private:
  const Clock& clock_;
  Transport& transport_;
  NodeStub contexts_;
  ValueStub values_;
  mutable std::mutex mutex_;  // guards the rest; never held across a call
  CircuitBreaker breaker_;
  NodeSpeed speed_;
  std::uint32_t not_worth_it_ = 0;
};

// The nodes at one revision of the membership. A call holds one from its beginning to its end.
// Everything of a segment lives with the owner of the prefix hash at its end, a value with the
// owner of its key hash: the first by rank, and nowhere else.
class NodesView {
 public:
  NodesView(MembersSnapshot members, std::vector<std::shared_ptr<ClusterNode>> nodes)
      : members_(std::move(members)), nodes_(std::move(nodes)) {}

  std::uint64_t revision() const { return members_->revision; }
  std::size_t size() const { return nodes_.size(); }
  ClusterNode& node(std::size_t index) const { return *nodes_[index]; }
  std::size_t owner_index(const Hash128& key) const { return members_->placement.owner(key); }
  ClusterNode& owner(const Hash128& key) const { return node(owner_index(key)); }

 private:
  const MembersSnapshot members_;
  const std::vector<std::shared_ptr<ClusterNode>> nodes_;  // in the order of the members
};

// Follows the membership: calls that begin after a change go by the new members. A member that
// stays keeps its connection and what is known of it; one that has gone is let go of when the last
// call that may ask it has ended.
//
// Ownership  The transport's connections are closed by nobody else. It outlives this.
// Threads    Any.
class Nodes {
 public:
  Nodes(const Clock& clock, Transport& transport, Membership& membership,
        const CircuitBreaker::Options& breaker = {});
  ~Nodes();
  Nodes(const Nodes&) = delete;
  Nodes& operator=(const Nodes&) = delete;

  std::shared_ptr<const NodesView> view() const;

 private:
  void adopt(const MembersSnapshot& members);

  const Clock& clock_;
  Transport& transport_;
  Membership& membership_;
  const CircuitBreaker::Options breaker_;
  mutable std::mutex mutex_;  // guards the next two
  std::shared_ptr<const NodesView> view_;
  std::map<Address, std::weak_ptr<ClusterNode>> known_;  // also those that have gone, and are held
  std::uint64_t watch_ = 0;
};

}  // namespace icefield
