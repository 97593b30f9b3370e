// icefield node — the cache-node daemon.
#include <gflags/gflags.h>
#include <glog/logging.h>

#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <iostream>

#include "cache_node/admin_http.h"
#include "cache_node/metrics_page.h"
#include "cache_node/node_host.h"
#include "common/shard.h"
#include "proto/layout.h"
#include "tools/command_line.h"
#include "tools/report.h"
#include "tools/transport_metrics.h"
#include "transport/ucx/ucx_transport.h"

DEFINE_string(listen, "127.0.0.1:7070", "host:port for clients; port 0: a free one");
DEFINE_string(admin_listen, "127.0.0.1:0",
              "loopback host:port for /health, /ready, /metrics, /config, /version; empty: none");
DEFINE_string(store, "", "directory of the NVMe tier; empty: memory only");
DEFINE_int64(dram_bytes, std::int64_t{1} << 30, "memory for objects");
DEFINE_int64(nvme_bytes, 0, "limit of the files in --store, eviction from 85 % on; 0: the disk's");
DEFINE_string(eviction, "arc", "arc or lru: which objects leave when a tier is full");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory: what may carry bulk bytes");
DEFINE_string(network, "",
              "devices for bulk bytes, as UCX names them (eth0, mlx5_0:1, all); empty: lo when "
              "--listen is loopback, else all");
DEFINE_string(token_file, "",
              "lines of \"token namespace[,namespace…]\", * for every one: who may connect");
DEFINE_bool(insecure_listen, false, "listen beyond this machine without tokens");
DEFINE_bool(poll, false, "poll all the time: for a node with a core of its own");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield node — keeps objects for clients, in memory and on NVMe, until it is told to stop

It prints one line when it serves. SIGTERM or Ctrl-C stops it: requests under way are answered,
and with --store everything acknowledged is there after the next start.

  icefield node --listen=127.0.0.1:7070 --store=/var/lib/icefield --dram_bytes=8000000000
)";

Result<UcxOptions> transport_options() {
  UcxOptions options{
      .network = FLAGS_network.empty() ? network_for({&FLAGS_listen, 1}) : FLAGS_network,
      .poll = FLAGS_poll,
      .insecure_listen = FLAGS_insecure_listen};
  ICE_TRY(options.lanes, parse_lanes(FLAGS_lanes));
  if (!FLAGS_token_file.empty()) {
    ICE_TRY(options.tokens, read_token_file(FLAGS_token_file));
  }
  if (FLAGS_insecure_listen) LOG(WARNING) << "everybody who reaches this node may use it";
  return options;
}

nlohmann::ordered_json effective_options() {
  return {{"listen", FLAGS_listen},
          {"admin_listen", FLAGS_admin_listen},
          {"store", FLAGS_store},
          {"dram_bytes", FLAGS_dram_bytes},
          {"nvme_bytes", FLAGS_nvme_bytes},
          {"eviction", FLAGS_eviction},
          {"network", FLAGS_network},
          {"token_file", FLAGS_token_file},
          {"insecure_listen", FLAGS_insecure_listen},
          {"lanes", FLAGS_lanes},
          {"poll", FLAGS_poll}};
}

AdminHttp::Page json_page(const nlohmann::ordered_json& json) {
  return {.type = "application/json", .body = json.dump(2) + "\n"};
}

// Everything below runs on one shard; the main thread waits.
class NodeProcess {
 public:
  NodeProcess() : admin_(shard_.executor()), signals_(shard_.executor(), SIGINT, SIGTERM) {}
  ~NodeProcess() {
    (void)sync_wait(shard_.executor(), stop());
    shard_.stop();
  }

  // From nothing to a node that serves.
  Status start() {
    ICE_TRY(const UcxOptions options, transport_options());
    add_pages();
    if (!FLAGS_admin_listen.empty()) {
      ICE_TRY(admin_address_, sync_wait(shard_.executor(), admin_.listen(FLAGS_admin_listen)));
    }
    ICE_TRY(const EvictionKind eviction, parse_eviction_kind(FLAGS_eviction));
    ICE_TRY(transport_, UcxTransport::create(shard_.executor(), options));
    ICE_TRY(host_, NodeHost::open({.dram_bytes = FLAGS_dram_bytes,
                                   .slab = allocate_slab(options.lanes),
                                   .store = FLAGS_store,
                                   .nvme_bytes = FLAGS_nvme_bytes,
                                   .eviction = eviction},
                                  shard_.executor()));
    auto listening = transport_->listen(FLAGS_listen, shard_.executor(), host_->service());
    ICE_TRY(address_, sync_wait(shard_.executor(), std::move(listening)));
    (void)sync_wait(shard_.executor(), set_serving(true));
    return Status();
  }

  // Memory that clients of this machine read values from by themselves; none where it cannot be.
  Region allocate_slab(UcxLanes lanes) {
    if (lanes == UcxLanes::kTcp) return Region();
    Result<Region> slab =
        sync_wait(shard_.executor(), transport_->allocate_region(FLAGS_dram_bytes));
    if (slab.has_value()) return std::move(*slab);
    LOG(WARNING) << "memory for objects is not shared with clients: " << slab.error().to_string()
                 << "; they get values by messages, which is slower. A larger /dev/shm "
                    "(containers: --shm-size) or a smaller --dram_bytes helps";
    return Region();
  }

  void announce() const {
    std::cout << "node " << address_ << " serves";
    if (!admin_address_.empty()) std::cout << ", admin http://" << admin_address_;
    std::cout << std::endl;
    show_log();
  }

  // Blocks until SIGINT or SIGTERM.
  void wait_for_signal() { (void)sync_wait(shard_.executor(), next_signal()); }

 private:
  Task<> set_serving(bool serving) {
    serving_ = serving;
    co_return Status();
  }

  Task<> next_signal() {
    boost::system::error_code error;
    const int signal =
        co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    LOG(INFO) << "signal " << signal << ": stopping";
    co_return Status();
  }

  Task<> stop() {
    serving_ = false;
    if (transport_ != nullptr) (void)co_await transport_->shutdown();
    Status flushed;
    if (host_ != nullptr) flushed = co_await host_->stop();
    if (!flushed.ok()) LOG(ERROR) << "flush at the end: " << flushed.to_string();
    co_return co_await admin_.stop();
  }

  // /ready turns to 503 first: whoever routes to this node stops before it stops answering.
  void add_pages() {
    admin_.add("/health", [] { return AdminHttp::Page{.body = "alive\n"}; });
    admin_.add("/ready", [this] {
      return serving_ ? AdminHttp::Page{.body = "serving\n"}
                      : AdminHttp::Page{.status = 503, .body = "starting or stopping\n"};
    });
    admin_.add("/metrics", [this] {
      MetricsPage page;
      if (serving_) {  // before that, the main thread is still at it
        host_->collect(page);
        collect(transport_->counters(), page);
      }
      return AdminHttp::Page{.type = "text/plain; version=0.0.4; charset=utf-8",
                             .body = page.text()};
    });
    admin_.add("/config", [] { return json_page(effective_options()); });
    admin_.add("/version", [] {
      return json_page({{"version", ICEFIELD_VERSION}, {"layout_version", kLayoutVersion}});
    });
  }

  Shard shard_;
  AdminHttp admin_;
  asio::signal_set signals_;
  std::unique_ptr<UcxTransport> transport_;
  std::unique_ptr<NodeHost> host_;  // its memory may be the transport's
  std::string address_;
  std::string admin_address_;
  bool serving_ = false;  // the shard's
};

Status run() {
  LOG(INFO) << "options " << effective_options().dump();
  NodeProcess node;
  ICE_TRY(node.start());
  node.announce();
  node.wait_for_signal();
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
