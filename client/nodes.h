// client/nodes.h — the nodes of a cluster as a client sees them.
#pragma once

#include <deque>
#include <vector>

#include "cache_node/node_stub.h"
#include "cache_node/value_stub.h"
#include "cluster_index/membership/placement.h"

namespace icefield {

// Stubs per member and the placement over them. Everything of a segment lives with the owner of
// the prefix hash at its end, a value with the owner of its key hash.
//
// Threads  Const; the stubs may be used from any executor.
class Nodes {
 public:
  Nodes(Transport& transport, std::vector<Member> members) : placement_(std::move(members)) {
    for (const Member& member : placement_.members()) {
      stubs_.emplace_back(transport, member.name);
      values_.emplace_back(transport, member.name);
    }
  }

  const Placement& placement() const { return placement_; }
  std::size_t size() const { return stubs_.size(); }
  NodeStub& stub(std::size_t member) { return stubs_[member]; }
  ValueStub& values(std::size_t member) { return values_[member]; }
  NodeStub& owner(const Hash128& key) { return stubs_[placement_.owner(key)]; }

 private:
  const Placement placement_;
  std::deque<NodeStub> stubs_;
  std::deque<ValueStub> values_;
};

}  // namespace icefield
