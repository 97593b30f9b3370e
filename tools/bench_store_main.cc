// icefield bench store — values beside Redis, memcached and memcpy.
//
// Estimate: a get of 1 MB copies it twice (slots to shared memory, that to the target; each about
// 8 GB/s cold) and hashes it once in the cache (20 GB/s): 3 GB/s. Sockets copy twice, too, in the
// kernel and page by page; Redis copies once more into its reply. Up to 4 KB a round trip between
// two threads decides, on every path.
#include <gflags/gflags.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>

#include "common/rng.h"
#include "tools/child_node.h"
#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/connection.h"
#include "tools/peer_store.h"
#include "tools/progress.h"
#include "tools/report.h"

DEFINE_string(transports, "shared_memory,tcp", "shared_memory (peers: unix socket), tcp");
DEFINE_string(values, "64,4K,64K,1024K,64x16K", "sizes of the values, and batches of them");
DEFINE_string(modes, "event,poll",
              "event: both of our sides sleep until there is something; poll, over shared memory");
DEFINE_int32(rounds, 7, "of every case, all systems one after the other in each");
DEFINE_int64(working_set_bytes, 64 << 20, "of values per case and round");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench store — puts and gets of values: one client, one server thread, verified

Redis and memcached run beside it on the same path, in the same rounds (apt-get install
redis-server memcached). Our puts are of new values, into memory that is full (the least recently
used go, as with them); theirs overwrite.

  icefield bench store --transports=shared_memory --rounds=7
)";

struct Case {
  std::int64_t value_bytes = 0;
  std::int64_t batch = 1;

  std::int64_t bytes() const { return value_bytes * batch; }
  std::string name() const {
    const std::string size =
        value_bytes < 1024 ? std::to_string(value_bytes) : std::to_string(value_bytes >> 10) + "K";
    return (batch > 1 ? std::to_string(batch) + "x" : "") + size;
  }
};
constexpr Case kCases[] = {{64, 1}, {4 << 10, 1}, {64 << 10, 1}, {1 << 20, 1}, {16 << 10, 64}};

using Keys = std::vector<std::string>;

struct Measured {
  std::vector<double> gbps;  // per round
  std::vector<double> us;    // per operation
};

Keys keys_of(const Case& one, std::int64_t round, std::int64_t operation) {
  Keys keys;
  for (std::int64_t i = 0; i < one.batch; ++i) {
    keys.push_back(std::to_string(one.value_bytes) + "/" + std::to_string(round) + "/" +
                   std::to_string(operation) + "/" + std::to_string(i));
  }
  return keys;
}

template <class Operation>
Status measure(const Case& one, std::span<const Keys> keys, Operation operation,
               Measured& measured) {
  const SystemClock clock;
  const auto begin = clock.now();
  for (const Keys& some : keys) {
    const auto start = clock.now();
    ICE_TRY(operation(some));
    measured.us.push_back(std::chrono::duration<double, std::micro>(clock.now() - start).count());
  }
  const double ns = std::chrono::duration<double, std::nano>(clock.now() - begin).count();
  measured.gbps.push_back(static_cast<double>(one.bytes() * std::ssize(keys)) / ns);
  return Status();
}

// Which way the bytes go.
struct Path {
  std::string transport;
  bool poll = false;
};

// Ours. The whole loop runs on the client's own thread, as a framework's I/O thread would.
class Ours {
 public:
  static Result<std::unique_ptr<Ours>> start(const Path& path, std::int64_t memory_bytes) {
    // At least for two rounds of the most values, each in a slot of 16 KiB.
    constexpr std::int64_t kLeast = 2 * 4096 * (16 << 10);
    ICE_TRY(ChildNode node,
            ChildNode::start({"--dram_bytes=" + std::to_string(std::max(kLeast, memory_bytes)),
                              "--lanes=" + path.transport, "--eviction=lru",
                              path.poll ? "--poll" : "--nopoll"}));
    return std::unique_ptr<Ours>(new Ours(path, std::move(node)));
  }
  ~Ours() { node_.signal(SIGCONT); }

  // The node is frozen between rounds, and the client is there for the round only: when they poll,
  // the others would have no core of their own.
  Status round(const Case& one, std::span<const Keys> keys, ConstByteSpan value, Measured& put,
               Measured& get) {
    node_.signal(SIGCONT);
    ICE_TRY(ClusterClient::Options options, cluster_options(node_.address(), "", path_.transport));
    options.transport.poll = path_.poll;
    ICE_TRY(client_, ClusterClient::open(std::move(options)));
    ICE_TRY(sync_wait(client_->executor(), warm_up(one, value)));
    const Status status = sync_wait(client_->executor(), run(one, keys, value, put, get));
    client_ = nullptr;
    node_.signal(SIGSTOP);
    return status;
  }

 private:
  Ours(const Path& path, ChildNode node) : path_(path), node_(std::move(node)) {}

  // Connects, which the others have done for good, lets what is measured then come to its end, and
  // touches the memory.
  Task<> warm_up(Case one, ConstByteSpan value) {
    const SystemClock clock;
    const auto nodes = client_->nodes().view();
    ValueStub& node = nodes->node(0).values();
    ICE_CO_TRY(co_await node.ping(Deadline::after(clock, std::chrono::seconds(5))));
    auto ask = [&node] { return node.health(); };
    ICE_CO_TRY(const PeerHealth health, co_await settled_health(std::move(ask)));
    if (!std::exchange(said_, true)) {
      note("lanes " + lanes_text(health) + ", " + bandwidth_text(health) +
           " at the first connection");
    }
    const Deadline end = Deadline::after(clock, std::chrono::milliseconds(100));
    while (!end.passed(clock)) {
      ICE_CO_TRY(co_await client_->values().put("warm up " + one.name(), value, {}, {}));
      Buffer into(one.value_bytes);
      ICE_CO_TRY(co_await client_->values().get("warm up " + one.name(), std::move(into), {}));
    }
    co_return Status();
  }

  Task<> run(Case one, std::span<const Keys> keys, ConstByteSpan value, Measured& put,
             Measured& get) {
    const SystemClock clock;
    const auto add = [&](Measured& to, Clock::TimePoint start) {
      to.us.push_back(std::chrono::duration<double, std::micro>(clock.now() - start).count());
    };
    const auto finish = [&](Measured& to, Clock::TimePoint begin) {
      const double ns = std::chrono::duration<double, std::nano>(clock.now() - begin).count();
      to.gbps.push_back(static_cast<double>(one.bytes() * std::ssize(keys)) / ns);
    };
    auto begin = clock.now();
    for (const Keys& some : keys) {
      const auto start = clock.now();
      ICE_CO_TRY(co_await put_all(some, value));
      add(put, start);
    }
    finish(put, begin);
    Buffer into(one.value_bytes);
    begin = clock.now();
    for (const Keys& some : keys) {
      const auto start = clock.now();
      if (some.size() == 1) {
        ICE_CO_TRY(into, co_await client_->values().get(some[0], std::move(into), {}));
        if (into.size() != one.value_bytes) co_return Status(Code::kInternal, "another size");
      } else {
        ICE_CO_TRY(co_await get_all(some, one.value_bytes));
      }
      add(get, start);
    }
    finish(get, begin);
    co_return Status();
  }

  Task<> put_all(const Keys& keys, ConstByteSpan value) {
    std::vector<ValueToPut> values;
    values.reserve(keys.size());
    for (const std::string& key : keys) {
      values.push_back({.key = key, .parts = std::span(&value, 1)});
    }
    ICE_CO_TRY(const auto outcomes,
               co_await client_->values().put_batch(std::move(values), {}, {}));
    for (const Result<PutOutcome>& outcome : outcomes) {
      ICE_CO_TRY(outcome.status());
      if (*outcome != PutOutcome::kStored) co_return Status(Code::kInternal, "not a new value");
    }
    co_return Status();
  }

  Task<> get_all(const Keys& keys, std::int64_t value_bytes) {
    std::vector<ValueToGet> items;
    items.reserve(keys.size());
    for (const std::string& key : keys) items.push_back({.key = key, .room = value_bytes});
    ICE_CO_TRY(const ValueBatch batch, co_await client_->values().get_batch(std::move(items), {}));
    for (const Result<ConstByteSpan>& value : batch.values) ICE_CO_TRY(value.status());
    co_return Status();
  }

  const Path path_;
  ChildNode node_;
  std::unique_ptr<ClusterClient> client_;
  bool said_ = false;  // what carries the bytes
};

// Copies out of, and into, memory as large as the working set.
class Memcpy {
 public:
  explicit Memcpy(std::int64_t bytes) : slab_(static_cast<std::size_t>(bytes)) {}

  Status put(const Case& one, ConstByteSpan value) {
    for (std::int64_t i = 0; i < one.batch; ++i) {
      std::memcpy(next(value.size()), value.data(), value.size());
    }
    return Status();
  }
  Status get(const Case& one, std::byte* into) {
    for (std::int64_t i = 0; i < one.batch; ++i) {
      const auto bytes = static_cast<std::size_t>(one.value_bytes);
      std::memcpy(into + static_cast<std::size_t>(i) * bytes, next(bytes), bytes);
    }
    return Status();
  }

 private:
  std::byte* next(std::size_t bytes) {
    if (at_ + bytes > slab_.size()) at_ = 0;
    return slab_.data() + std::exchange(at_, at_ + bytes);
  }

  std::vector<std::byte> slab_;
  std::size_t at_ = 0;
};

struct Results {
  std::map<std::string, Measured> put;
  std::map<std::string, Measured> get;
};

constexpr std::pair<const char*, PeerStore::Kind> kPeers[] = {
    {"redis", PeerStore::Kind::kRedis}, {"memcached", PeerStore::Kind::kMemcached}};

// All systems on one path.
class Bench {
 public:
  static Result<std::unique_ptr<Bench>> start(const Path& path) {
    const std::int64_t memory = 2 * FLAGS_working_set_bytes;
    const bool tcp = path.transport == "tcp";
    const auto peers = tcp ? PeerStore::Path::kTcp : PeerStore::Path::kUnixSocket;
    auto bench = std::make_unique<Bench>();
    ICE_TRY(bench->ours_, Ours::start(path, memory));
    for (const auto& [name, kind] : kPeers) {
      Result<std::unique_ptr<PeerStore>> peer = PeerStore::start(kind, peers, 16 * memory);
      if (peer.status().code() == Code::kNotFound) {
        note(std::string("nothing beside ") + name + ": " + peer.error().message());
        continue;
      }
      ICE_TRY(bench->peers_[name], std::move(peer));
    }
    return bench;
  }

  Result<Results> run(const Case& one, Progress& progress, std::int64_t& done) {
    SeededRng rng(5);
    std::vector<std::byte> value(static_cast<std::size_t>(one.value_bytes));
    for (std::byte& b : value) b = static_cast<std::byte>(rng.next());
    const std::int64_t operations =
        std::clamp<std::int64_t>(FLAGS_working_set_bytes / one.bytes(), 1, 4096);
    std::vector<Keys> same;
    for (std::int64_t i = 0; i < operations; ++i) same.push_back(keys_of(one, 0, i));
    Results results;
    for (std::int64_t round = -2; round < FLAGS_rounds; ++round) {  // the first two fill memory
      std::vector<Keys> keys;
      for (std::int64_t i = 0; i < operations; ++i) keys.push_back(keys_of(one, round + 2, i));
      Results now;
      ICE_TRY(measure_round(one, keys, same, value, now));
      if (round >= 0) merge(now, results);
      progress.set(++done);
    }
    return results;
  }

 private:
  // `same` keys in every round: what the others overwrite. Ours are new ones, because a second put
  // of a key would be a no-op.
  Status measure_round(const Case& one, std::span<const Keys> keys, std::span<const Keys> same,
                       ConstByteSpan value, Results& out) {
    ICE_TRY(ours_->round(one, keys, value, out.put["icefield"], out.get["icefield"]));
    into_.resize(static_cast<std::size_t>(one.bytes()));
    const auto size = static_cast<std::size_t>(one.value_bytes);
    for (const auto& [name, peer] : peers_) {
      PeerStore& store = *peer;
      const auto put = [&](const Keys& some) { return store.put(some, value); };
      const auto get = [&](const Keys& some) { return store.get(some, size, into_.data()); };
      ICE_TRY(measure(one, same, put, out.put[name]));
      ICE_TRY(measure(one, same, get, out.get[name]));
    }
    const auto put = [&](const Keys&) { return memcpy_.put(one, value); };
    const auto get = [&](const Keys&) { return memcpy_.get(one, into_.data()); };
    ICE_TRY(measure(one, keys, put, out.put["memcpy"]));
    return measure(one, keys, get, out.get["memcpy"]);
  }

  static void merge(const Results& from, Results& to) {
    const auto add = [](const auto& some, auto& all) {
      for (const auto& [name, measured] : some) {
        Measured& sum = all[name];
        sum.gbps.insert(sum.gbps.end(), measured.gbps.begin(), measured.gbps.end());
        sum.us.insert(sum.us.end(), measured.us.begin(), measured.us.end());
      }
    };
    add(from.put, to.put);
    add(from.get, to.get);
  }

  std::unique_ptr<Ours> ours_;
  std::map<std::string, std::unique_ptr<PeerStore>> peers_;  // those that are installed
  Memcpy memcpy_{2 * FLAGS_working_set_bytes};
  std::vector<std::byte> into_;
};

// Median throughput and latency quantiles of ours, against each of the others.
void report_case(const Case& one, const Path& path, const char* op,
                 const std::map<std::string, Measured>& measured, Report& report, Table& table) {
  const nlohmann::ordered_json params = {{"op", op},
                                         {"value_bytes", one.value_bytes},
                                         {"batch", one.batch},
                                         {"transport", path.transport},
                                         {"mode", path.poll ? "poll" : "event"},
                                         {"tier", "dram"},
                                         {"clients", 1}};
  const Measured& ours = measured.at("icefield");
  const double gbps = quantile(ours.gbps, 0.5);
  std::vector<std::string> row = {path.transport, path.poll ? "poll" : "event", op, one.name(),
                                  number_text(gbps, one.value_bytes < 1024 ? 4 : 2)};
  for (const char* other : {"redis", "memcached", "memcpy"}) {
    if (!measured.contains(other)) {
      row.emplace_back("–");
      continue;
    }
    const double ratio = gbps / quantile(measured.at(other).gbps, 0.5);
    report.add({.name = std::string(op) + "_gbps",
                .params = params,
                .value = gbps,
                .unit = "GB/s",
                .against = other,
                .ratio = ratio,
                .better = "higher"});
    row.push_back(number_text(ratio, 2) + "x");
  }
  for (const double share : {0.5, 0.99, 0.999}) {
    const double us = quantile(ours.us, share);
    nlohmann::ordered_json with = params;
    with["quantile"] = share;
    Figure figure{.name = std::string(op) + "_latency_us",
                  .params = with,
                  .value = us,
                  .unit = "us",
                  .better = "lower"};
    bool alone = true;
    for (const auto& [name, kind] : kPeers) {
      if (!measured.contains(name)) continue;
      alone = false;
      figure.against = name;
      figure.ratio = us / quantile(measured.at(name).us, share);
      report.add(figure);
    }
    if (alone) report.add(figure);
    row.push_back(number_text(us, 0));
  }
  for (const auto& [name, kind] : kPeers) {
    const auto other = measured.find(name);
    row.push_back(other == measured.end() ? "–" : number_text(quantile(other->second.us, 0.99), 0));
  }
  table.add(std::move(row));
}

Status run() {
  if (FLAGS_rounds < 1 || FLAGS_rounds > 1000 || FLAGS_working_set_bytes < (4 << 20) ||
      FLAGS_working_set_bytes > (std::int64_t{4} << 30)) {
    return Status(Code::kInvalidArgument,
                  "--rounds: 1 to 1000; --working_set_bytes: 4 MiB to 4 GiB");
  }
  std::vector<Path> paths;
  for (const char* name : {"shared_memory", "tcp"}) {
    if (FLAGS_transports.find(name) == std::string::npos) continue;
    if (FLAGS_modes.find("event") != std::string::npos) paths.push_back({name, false});
    const bool poll = FLAGS_modes.find("poll") != std::string::npos;
    if (poll && std::string_view(name) != "tcp") paths.push_back({name, true});
  }
  if (paths.empty()) {
    return Status(Code::kInvalidArgument,
                  "--transports: shared_memory, tcp or both; --modes: event, poll or both, poll "
                  "over shared memory only");
  }
  Report report("bench store");
  Table table({"path", "mode", "op", "value", "GB/s", "redis", "memcached", "memcpy", "p50 us",
               "p99", "p99.9", "redis p99", "memcached p99"});
  const auto steps =
      static_cast<std::int64_t>(paths.size() * std::size(kCases)) * (FLAGS_rounds + 2);
  Progress progress("bench store", steps);
  std::int64_t done = 0;
  for (const Path& path : paths) {
    ICE_TRY(const auto bench, Bench::start(path));
    for (const Case& one : kCases) {
      if (("," + FLAGS_values + ",").find("," + one.name() + ",") == std::string::npos) continue;
      ICE_TRY(const Results results, bench->run(one, progress, done));
      report_case(one, path, "put", results.put, report, table);
      report_case(one, path, "get", results.get, report, table);
    }
  }
  std::cout << (FLAGS_json ? report.json() : table.text());
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
