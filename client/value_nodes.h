// client/value_nodes.h — what a client knows of its nodes: who answers, how fast, and how often
// each namespace has been flushed.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <string>

#include "cache_node/value_stub.h"
#include "client/circuit_breaker.h"
#include "client/node_speed.h"
#include "client/nodes.h"

namespace icefield {

// Threads  Any.
class ValueNodes {
 public:
  ValueNodes(const Clock& clock, Nodes& nodes, const CircuitBreaker::Options& breaker);

  std::size_t size() const { return nodes_.size(); }
  std::size_t owner(const ValueHash& hash) const { return nodes_.placement().owner(hash); }
  ValueStub& stub(std::size_t node) { return nodes_.values(node); }

  // The highest number seen for a namespace; 0 for one that nobody said anything of.
  std::uint64_t flush_number(std::string_view name_space) const;
  void learn(std::string_view name_space, std::uint64_t flush_number);

  // kUnavailable at once while the node's breaker is open. Every ok is followed by a report().
  Status admit(std::size_t node);
  // How a call ended, and for reads how many bytes came in what time.
  void report(std::size_t node, const Status& status);
  void note_read(std::size_t node, std::int64_t bytes, NodeSpeed::Duration time);

  // Whether a read of so many bytes pays. Now and then a read goes out that would not, so that a
  // node that became faster is noticed.
  bool worth_it(std::size_t node, std::int64_t bytes, NodeSpeed::Duration recompute_estimate);

  CircuitBreaker::State state(std::size_t node) const;
  Clock::TimePoint now() const { return clock_.now(); }

 private:
  struct Peer {
    explicit Peer(const CircuitBreaker::Options& options) : breaker(options) {}
    CircuitBreaker breaker;
    NodeSpeed speed;
    std::uint32_t not_worth_it = 0;
  };

  const Clock& clock_;
  Nodes& nodes_;
  mutable std::mutex mutex_;  // guards the rest; never held across a call
  std::deque<Peer> peers_;
  std::map<std::string, std::uint64_t, std::less<>> flush_numbers_;
};

}  // namespace icefield
