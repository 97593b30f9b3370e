// tools/session.h — everything that answering questions about a document needs: model, engine,
// worker, and the cache node in this process or a cluster of them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "client/cluster_client.h"
#include "engine/chat.h"
#include "engine/decoder.h"
#include "tools/embedded_node.h"
#include "worker/worker.h"

namespace icefield {

class Session {
 public:
  struct Options {
    std::string model_path;
    std::optional<ClusterClient::Options> cluster;  // absent: a node in this process
    std::string store;                              // of that node; empty: memory only
    std::string name_space = "default";
    std::int64_t dram_bytes = 0;
    std::int64_t pool_bytes = 0;  // 0: room for 4 × pool_budget rows of every layer and head
    std::int64_t pool_budget = 64;
    std::int32_t page_rows = 1;
    std::string device = "cpu";  // that attends: cpu or cuda
    std::int32_t threads = 0;    // 0: one per core
    // Makes what attends instead of the device; empty: the device.
    std::function<std::unique_ptr<LayerAttention>(const AttentionShape&, ThreadPool&)> attention;
    std::chrono::milliseconds fetch_timeout = Worker::Options().fetch_timeout;
  };

  static Result<std::unique_ptr<Session>> open(Options options);

  const Model& model() const { return *model_; }
  ContextStore& store() { return node_ != nullptr ? node_->store() : cluster_->contexts(); }
  // Of store(): tasks of it are waited for with this.
  asio::any_io_executor executor() {
    return node_ != nullptr ? node_->executor() : cluster_->executor();
  }
  Worker& worker() { return *worker_; }
  Decoder& decoder() { return *decoder_; }

  // Where the tokens of a context came from, and how long that took.
  struct Opened {
    Context context;
    std::int64_t attached_tokens = 0;
    std::int64_t prefill_tokens = 0;
    double attach_ms = 0;
    double prefill_ms = 0;
    double seal_ms = 0;
    Status miss;  // why nothing was attached
  };

  // The context of `tokens`: attached as far as the store has them, the rest computed, sealed and
  // stored. What is left to compute after an attach goes through clustered steps when it is at most
  // `dense_suffix_tokens`; a longer rest loads all rows and is computed densely.
  Result<Opened> open_document(std::span<const TokenId> tokens, std::int64_t dense_suffix_tokens,
                               const AttendOptions& attend);

 private:
  Session() = default;

  SystemClock clock_;
  SystemRng rng_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<EmbeddedNode> node_;      // one of the two
  std::unique_ptr<ClusterClient> cluster_;  // or the other
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<Decoder> decoder_;
};

// Room for 4 × `budget` rows of every layer and head: about what the last 16 tokens used
// (docs/benchmarks.md). Never less than 1 MiB, never more than the model's longest context.
std::int64_t default_pool_bytes(const ModelConfig& config, std::int64_t budget,
                                std::int32_t page_rows);

// Milliseconds since `begin`.
double ms_since(std::chrono::steady_clock::time_point begin);

}  // namespace icefield
