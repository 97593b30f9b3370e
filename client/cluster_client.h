// client/cluster_client.h — a client of a cluster of nodes, over UCX.
#pragma once

#include <memory>
#include <string>

#include "client/context_store.h"
#include "client/value_store.h"
#include "common/shard.h"
#include "transport/ucx/ucx_transport.h"

namespace icefield {

// Connects to a node when it first has something to ask it, and again after a failure: nodes may be
// absent at the start and come back.
//
// Ownership  Owns its transport and the one thread that runs it.
// Threads    open() and the destructor block; everything else from any thread but executor()'s.
class ClusterClient {
 public:
  struct Options {
    std::string members;                     // "host:port,host:port*weight"
    UcxOptions transport = {.network = ""};  // empty: as the members need it, those at the start
    ValueStore::Options values;
    CircuitBreaker::Options breaker;
  };
  // kInvalidArgument for a member list that makes no sense, kInternal when UCX cannot be set up.
  static Result<std::unique_ptr<ClusterClient>> open(const Options& options);
  // The members are those of `membership`.
  static Result<std::unique_ptr<ClusterClient>> open(std::unique_ptr<Membership> membership,
                                                     Options options);
  ~ClusterClient();

  ContextStore& contexts() { return contexts_; }
  ValueStore& values() { return values_; }
  Nodes& nodes() { return nodes_; }
  asio::any_io_executor executor() { return shard_->executor(); }

 private:
  ClusterClient(std::unique_ptr<Shard> shard, std::unique_ptr<UcxTransport> transport,
                std::unique_ptr<Membership> membership, const Options& options);

  SystemClock clock_;
  SystemRng rng_;
  const std::unique_ptr<Shard> shard_;
  const std::unique_ptr<UcxTransport> transport_;
  const std::unique_ptr<Membership> membership_;
  Nodes nodes_;
  ContextStore contexts_;
  ValueStore values_;
};

}  // namespace icefield
