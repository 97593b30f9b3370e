// tests/support/value_cluster.h — some nodes and a client, over the loopback transport, on one
// thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache_node/node_server.h"
#include "client/context_store.h"
#include "client/value_store.h"
#include "storage/nvme_tier.h"
#include "tests/support/manual_clock.h"
#include "tests/support/run_task.h"
#include "transport/loopback/loopback_transport.h"

namespace icefield {

// A node that can be stopped (nobody listens) and started again with what its disk kept.
class TestNode {
 public:
  struct Options {
    std::int64_t dram_bytes = 64 << 20;
    std::string store;  // empty: memory only
    // Which value goes first must not depend on what a policy learns, but where that is tested.
    EvictionKind eviction = EvictionKind::kLru;
    // Memory is a region of the transport: clients read large values by themselves.
    bool shared = false;
  };
  TestNode(asio::io_context& io, const Clock& clock, Transport& transport, Options options)
      : io_(io),
        options_(std::move(options)),
        slab_(options_.shared ? run_task(io, transport.allocate_region(options_.dram_bytes)).value()
                              : Region()),
        memory_(DramTier::open({.capacity_bytes = options_.dram_bytes,
                                .eviction = options_.eviction,
                                .memory = slab_.bytes},
                               clock)
                    .value()),
        disk_(options_.store.empty() ? nullptr
                                     : NvmeTier::open({.path = options_.store}, clock).value()),
        node_(clock, *memory_, disk_.get()),
        server_(node_, clock, slab_) {
    ICE_CHECK(run_task(io_, node_.recover()).ok());
  }
  ~TestNode() { (void)run_task(io_, node_.stop()); }

  CacheNode& node() { return node_; }
  NodeValues& values() { return node_.values(); }
  DramTier& memory() { return *memory_; }
  NvmeTier* disk() { return disk_.get(); }
  Service& service() { return server_; }
  NodeServer& server() { return server_; }

 private:
  asio::io_context& io_;
  const Options options_;
  const Region slab_;
  std::unique_ptr<DramTier> memory_;
  std::unique_ptr<NvmeTier> disk_;
  CacheNode node_;
  NodeServer server_;
};

class ValueCluster {
 public:
  // `count` nodes alike; only one may have a store.
  ValueCluster(TestNode::Options node, std::size_t count, ValueStore::Options client = {})
      : options_(std::move(node)),
        started_(count),
        membership_(members(count)),
        nodes_(clock_, transport_, membership_),
        store_(clock_, rng_, nodes_, client),
        contexts_(nodes_) {
    for (std::size_t i = 0; i < count; ++i) start(i);
  }
  ValueCluster(const ValueCluster&) = delete;
  ~ValueCluster() {
    (void)run(transport_.shutdown());
    started_.clear();
  }

  template <class R>
  R run(asio::awaitable<R> task) {
    return run_task(io_, std::move(task));
  }
  void start(std::size_t i) {
    started_[i] = std::make_unique<TestNode>(io_, clock_, transport_, options_);
    ICE_CHECK(
        run(transport_.listen(name(i), io_.get_executor(), started_[i]->service())).has_value());
  }
  void stop(std::size_t i) {
    (void)run(transport_.stop(name(i)));
    started_[i].reset();
  }
  // The member that has this key now.
  std::size_t owner(std::string_view name_space, std::string_view key) {
    const std::uint64_t flushed = store_.flush_numbers().of(name_space);
    return nodes_.view()->owner_index(value_hash(name_space, flushed, key));
  }
  // A key that member `i` owns.
  std::string key_of(std::size_t i, int number = 0, std::string_view name_space = "") {
    for (int n = 0;; ++n) {
      const std::string key = "key " + std::to_string(n);
      if (owner(name_space, key) == i && number-- == 0) return key;
    }
  }

  TestNode& node(std::size_t i) { return *started_[i]; }
  ValueStore& store() { return store_; }
  ContextStore& contexts() { return contexts_; }
  Nodes& nodes() { return nodes_; }
  // What the client knows of it.
  ClusterNode& client_of(std::size_t i) { return nodes_.view()->node(i); }
  ManualClock& clock() { return clock_; }
  LoopbackTransport& transport() { return transport_; }
  asio::io_context& io() { return io_; }
  static std::string name(std::size_t i) { return "node " + std::to_string(i); }

 private:
  static std::vector<Member> members(std::size_t count) {
    std::vector<Member> members;
    for (std::size_t i = 0; i < count; ++i) members.push_back({.name = name(i)});
    return members;
  }

  asio::io_context io_;
  ManualClock clock_;
  SeededRng rng_{1};
  LoopbackTransport transport_;
  const TestNode::Options options_;
  std::vector<std::unique_ptr<TestNode>> started_;
  StaticMembership membership_;
  Nodes nodes_;
  ValueStore store_;
  ContextStore contexts_;
};

}  // namespace icefield
