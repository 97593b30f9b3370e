// icefield bench transport — bytes between two processes, beside ucx_perftest in the same run.
//
// Estimate: a get of 1 MB is copied twice, into a segment by the server and out of it by the
// client, side by side on two cores: the slower copy bounds it, at about the speed of memcpy.
// Verification reads the bytes once more, from the cache of the core that has just written them.
#include <gflags/gflags.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <optional>

#include "common/hash.h"
#include "common/shard.h"
#include "common/task_scope.h"
#include "tools/bench_transport_service.h"
#include "tools/child_process.h"
#include "tools/command_line.h"
#include "tools/connection.h"
#include "tools/perftest.h"
#include "tools/progress.h"
#include "tools/report.h"
#include "transport/ucx/ucx_transport.h"

DEFINE_string(lanes, "shared_memory,tcp", "shared_memory, tcp or both");
DEFINE_string(modes, "event,poll", "event: both sides sleep until there is something; poll; both");
DEFINE_string(ops, "get,put,read", "get, put, read (one-sided, over shared memory only)");
DEFINE_int32(rounds, 5, "alternations of ours and ucx_perftest, of which medians are shown");
DEFINE_int32(round_ms, 200, "of ours in each round");
DEFINE_int64(clients, 1, "calls side by side over one connection");
DEFINE_bool(perftest, true, "measure ucx_perftest too (Debian's ucx-utils)");
DEFINE_bool(json, false, "print one JSON object instead of a table");
DEFINE_bool(serve, false, "be the server: started by the program itself");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench transport — gets and puts between two processes, beside ucx_perftest

A server process holds the bytes; the client reads (get) or writes (put) them in calls of one value
or of a batch, and checks XXH3 of every 64 KB, or not. ucx_perftest runs in turn with ours, over the
same lanes with the same thresholds, segments and error handling: a stream of messages one way for
bandwidths, round trips for 64 bytes. One-sided reads (read) run beside memcpy, or memcpy and XXH3,
of as many bytes.

  icefield bench transport --lanes=shared_memory --modes=event --rounds=9
)";

using Ms = std::chrono::duration<double, std::milli>;
using Us = std::chrono::duration<double, std::micro>;

constexpr std::int64_t kSmallBytes = 64;  // measured as round trips
constexpr std::int64_t kMostBytes = 1 << 20;

struct Size {
  std::int64_t value_bytes;
  std::int64_t batch;
};
constexpr Size kSizes[] = {{64, 1}, {16 << 10, 1}, {128 << 10, 1}, {1 << 20, 1}, {16 << 10, 64}};

struct Side {
  std::string lanes;
  std::string mode;
  bool tcp() const { return lanes == "tcp"; }
  bool poll() const { return mode == "poll"; }
};

struct Case {
  Side side;
  std::string op;
  Size size;
  bool verify = true;
  bool latency() const { return size.value_bytes == kSmallBytes; }
  bool one_sided() const { return op == "read"; }
  // What it is measured beside.
  std::string yardstick() const {
    if (!one_sided()) return "ucx_perftest";
    return verify ? "memcpy + XXH3" : "memcpy";
  }
  std::int64_t bytes() const { return size.value_bytes * size.batch; }
};

// What one case gave, over all rounds.
struct Measured {
  std::vector<double> gbps;     // of each round
  std::vector<double> call_us;  // of each call
  std::vector<double> beside;   // GB/s or us of the yardstick
};

UcxOptions options_of(const Side& side) {
  UcxOptions options;
  options.lanes = side.tcp() ? UcxLanes::kTcp : UcxLanes::kSharedMemory;
  options.poll = side.poll();
  return options;
}

Result<std::unique_ptr<UcxTransport>> open_transport(Shard& shard, const Side& side) {
  auto make = [](asio::any_io_executor executor,
                 UcxOptions options) -> Task<std::unique_ptr<UcxTransport>> {
    co_return UcxTransport::create(std::move(executor), options);
  };
  return sync_wait(shard.executor(), make(shard.executor(), options_of(side)));
}

// Prints the address and answers until it is killed.
Status serve() {
  const Side side{FLAGS_lanes, FLAGS_modes};
  Shard shard;
  ICE_TRY(const auto transport, open_transport(shard, side));
  ICE_TRY(Region memory, sync_wait(shard.executor(), transport->allocate_region(kMostBytes)));
  BenchService service(std::move(memory));
  ICE_TRY(const Address address,
          sync_wait(shard.executor(), transport->listen("127.0.0.1:0", shard.executor(), service)));
  std::cout << address << std::endl;
  asio::io_context forever;
  const auto work = asio::make_work_guard(forever);
  forever.run();
  return Status();
}

// The client's process and its server's, over one kind of lanes.
class Pair {
 public:
  static Result<std::unique_ptr<Pair>> open(const Side& side) {
    ChildProcess::Options options;
    options.arguments = {verb_program("bench-transport"), "--serve", "--lanes=" + side.lanes,
                         "--modes=" + side.mode};
    ICE_TRY(ChildProcess server, ChildProcess::start(std::move(options)));
    std::unique_ptr<Pair> pair(new Pair(std::move(server)));
    pair->address_ = pair->server_.read_line();
    if (pair->address_.empty()) return Status(Code::kUnavailable, "the server did not start");
    ICE_TRY(pair->transport_, open_transport(pair->shard_, side));
    ICE_TRY(pair->connection_, sync_wait(pair->shard_.executor(), pair->connect()));
    return pair;
  }
  ~Pair() {
    if (transport_ != nullptr) (void)sync_wait(shard_.executor(), transport_->shutdown());
    shard_.stop();
  }

  const PeerHealth& connection() const { return connection_; }

  // Calls for `duration` with FLAGS_clients side by side.
  Status measure(const Case& what, Ms duration, Measured& into) {
    return sync_wait(shard_.executor(), run_clients(what, duration, into));
  }

 private:
  explicit Pair(ChildProcess server) : server_(std::move(server)) {}

  // What is measured of a new connection is not to be in the way of anything here.
  Task<PeerHealth> connect() {
    const BenchRequest ask{kSmallBytes, 1, 0};
    Request request(static_cast<MethodId>(BenchMethod::kGet),
                    std::string(as_text(std::as_bytes(std::span(&ask, 1)))));
    ICE_CO_TRY(
        co_await transport_->call(address_, std::move(request), Buffer(kSmallBytes), deadline()));
    auto health = [this] { return transport_->health(address_); };
    co_return co_await settled_health(std::move(health));
  }

  Task<> run_clients(const Case& what, Ms duration, Measured& into) {
    ICE_CO_TRY(co_await run(what, Ms(0), into));  // connects and warms up
    into.call_us.clear();
    const auto begin = clock_.now();
    const std::size_t before = into.call_us.size();
    TaskScope scope(shard_.executor());
    std::vector<Status> ends(static_cast<std::size_t>(FLAGS_clients));
    auto client = [this, &what, duration, &into](Status& end) -> asio::awaitable<void> {
      end = co_await run(what, duration, into);
    };
    for (Status& end : ends) scope.spawn(client(end));
    co_await scope.join();
    for (const Status& end : ends) ICE_CO_TRY(end);
    const std::chrono::duration<double> took = clock_.now() - begin;
    const auto calls = static_cast<double>(into.call_us.size() - before);
    into.gbps.push_back(calls * static_cast<double>(what.bytes()) / took.count() / 1e9);
    co_return Status();
  }

  Task<> run(const Case& what, Ms duration, Measured& into) {
    return what.one_sided() ? run_reads(what, duration, into) : run_calls(what, duration, into);
  }

  Task<> run_reads(const Case& what, Ms duration, Measured& into) {
    const BenchRequest ask{what.size.value_bytes, 1, 1};
    Request locate(static_cast<MethodId>(BenchMethod::kLocate),
                   std::string(as_text(std::as_bytes(std::span(&ask, 1)))));
    ICE_CO_TRY(const Reply located,
               co_await transport_->call(address_, std::move(locate), Buffer(0), deadline()));
    const auto pieces = static_cast<std::size_t>(ceil_div(what.bytes(), kBenchPieceBytes));
    const std::string checksums = located.header.substr(0, pieces * sizeof(std::uint64_t));
    const RegionRuns runs{.key = located.header.substr(checksums.size()),
                          .runs = {{.bytes = what.bytes()}}};
    Buffer buffer(what.bytes());
    const auto end = clock_.now() + duration;
    do {
      const auto begin = clock_.now();
      PieceChecker checker(what.size.value_bytes, checksums);
      ICE_CO_TRY(buffer, co_await transport_->read(address_, runs, std::move(buffer),
                                                   what.verify ? &checker : nullptr, deadline()));
      if (what.verify && !checker.intact()) {
        co_return Status(Code::kDataLoss, "checksum mismatch on arrival");
      }
      into.call_us.push_back(Us(clock_.now() - begin).count());
    } while (clock_.now() < end);
    co_return Status();
  }

  Task<> run_calls(const Case& what, Ms duration, Measured& into) {
    const bool get = what.op == "get";
    const BenchRequest ask{what.size.value_bytes, what.size.batch, what.verify ? 1 : 0};
    const std::string header(as_text(std::as_bytes(std::span(&ask, 1))));
    Buffer buffer(what.bytes());
    Buffer value(what.bytes());
    value.resize(what.bytes());
    std::ranges::fill(value.bytes(), std::byte{1});
    const auto end = clock_.now() + duration;
    do {
      const auto begin = clock_.now();
      Request request(static_cast<MethodId>(get ? BenchMethod::kGet : BenchMethod::kPut), header);
      PieceChecker checker(what.size.value_bytes);
      if (get && what.verify) request.arrival = &checker;
      if (!get) request.payload.push_back(std::as_const(value).bytes());
      if (!get && what.verify) request.header += piece_checksums(value.bytes());
      ICE_CO_TRY(Reply reply, co_await transport_->call(address_, std::move(request),
                                                        std::move(buffer), deadline()));
      if (get && what.verify && (reply.payload.size() != what.bytes() || !checker.intact())) {
        co_return Status(Code::kDataLoss, "checksum mismatch on arrival");
      }
      buffer = std::move(reply.payload);
      into.call_us.push_back(Us(clock_.now() - begin).count());
    } while (clock_.now() < end);
    co_return Status();
  }

  Deadline deadline() const { return Deadline::after(clock_, std::chrono::seconds(10)); }

  SystemClock clock_;
  ChildProcess server_;
  Shard shard_;
  std::unique_ptr<UcxTransport> transport_;
  Address address_;
  PeerHealth connection_;
};

Result<double> perftest(const Case& what) {
  // About as long as one round of ours.
  constexpr std::int64_t kBytes = 400 << 20;
  const PerftestPlan plan{
      .tcp = what.side.tcp(),
      .poll = what.side.poll(),
      .latency = what.latency(),
      .message_bytes = what.bytes(),
      .iterations =
          what.latency() ? 5000 : std::clamp<std::int64_t>(kBytes / what.bytes(), 50, 5000)};
  ICE_TRY(const PerftestResult result, run_perftest(plan));
  return what.latency() ? result.round_trip_us : result.gbps;
}

// GB/s of copying as many bytes, each piece hashed behind its copy when that is asked for.
double copy_speed(const Case& what, Ms duration) {
  const SystemClock clock;
  const auto bytes = static_cast<std::size_t>(what.bytes());
  Buffer from(what.bytes());
  Buffer to(what.bytes());
  from.resize(what.bytes());
  to.resize(what.bytes());
  std::ranges::fill(from.bytes(), std::byte{1});
  std::uint64_t hash = 0;
  std::int64_t rounds = 0;
  const auto begin = clock.now();
  for (; clock.now() < begin + duration; ++rounds) {
    for (std::size_t at = 0; at < bytes; at += kBenchPieceBytes) {
      const std::size_t size = std::min<std::size_t>(bytes - at, kBenchPieceBytes);
      std::memcpy(to.bytes().data() + at, from.bytes().data() + at, size);
      if (what.verify) hash ^= xxh3(std::as_const(to).bytes().subspan(at, size), hash);
    }
    from.bytes()[0] = static_cast<std::byte>(hash);  // or else it may be left out
  }
  const std::chrono::duration<double> took = clock.now() - begin;
  return static_cast<double>(rounds) * static_cast<double>(bytes) / took.count() / 1e9;
}

nlohmann::ordered_json params_of(const Case& what, const std::vector<double>& call_us) {
  return {{"op", what.op},
          {"value_bytes", what.size.value_bytes},
          {"batch", what.size.batch},
          {"transport", what.side.lanes},
          {"mode", what.side.mode},
          {"verify", what.verify},
          {"clients", FLAGS_clients},
          {"p50_us", quantile(call_us, 0.5)},
          {"p99_us", quantile(call_us, 0.99)},
          {"p99_9_us", quantile(call_us, 0.999)}};
}

Figure figure_of(const Case& what, const Measured& measured) {
  Figure figure;
  figure.name = what.latency() ? what.op + "_latency_us" : what.op + "_gbps";
  figure.params = params_of(what, measured.call_us);
  figure.value = what.latency() ? quantile(measured.call_us, 0.5) : quantile(measured.gbps, 0.5);
  figure.unit = what.latency() ? "us" : "GB/s";
  figure.better = what.latency() ? "lower" : "higher";
  if (!measured.beside.empty()) {
    figure.against = what.yardstick();
    figure.ratio = figure.value / quantile(measured.beside, 0.5);
  }
  return figure;
}

std::vector<Case> cases_of(const Side& side) {
  std::vector<Case> cases;
  for (const std::string& op : split_list(FLAGS_ops)) {
    if (op == "read" && side.tcp()) continue;
    for (const Size& size : kSizes) {
      if (op == "read" && (size.batch > 1 || size.value_bytes == kSmallBytes)) continue;
      for (const bool verify : {true, false}) cases.push_back({side, op, size, verify});
    }
  }
  return cases;
}

// The first case that ucx_perftest is measured beside in the same way: of the same size, whether
// verified or not, get or put.
std::size_t twin_of(const std::vector<Case>& cases, std::size_t i) {
  const auto same = [&](const Case& other) {
    return other.size.value_bytes == cases[i].size.value_bytes &&
           other.size.batch == cases[i].size.batch;
  };
  return static_cast<std::size_t>(std::ranges::find_if(cases, same) - cases.begin());
}

Status measure_side(const Side& side, Report& report) {
  const std::vector<Case> cases = cases_of(side);
  std::vector<Measured> results(cases.size());
  Progress progress("measuring " + side.lanes + ", " + side.mode, FLAGS_rounds);
  for (int round = 0; round < FLAGS_rounds; ++round) {
    progress.set(round);
    ICE_TRY(const auto pair, Pair::open(side));
    if (round == 0) {
      note(side.mode + ": lanes " + lanes_text(pair->connection()) + ", " +
           bandwidth_text(pair->connection()) + " at the first connection");
    }
    for (std::size_t i = 0; i < cases.size(); ++i) {
      std::vector<double> before = std::move(results[i].call_us);
      ICE_TRY(pair->measure(cases[i], Ms(FLAGS_round_ms), results[i]));
      results[i].call_us.insert(results[i].call_us.end(), before.begin(), before.end());
      if (cases[i].one_sided()) {
        results[i].beside.push_back(copy_speed(cases[i], Ms(FLAGS_round_ms)));
      } else if (const std::size_t twin = twin_of(cases, i); twin != i) {
        results[i].beside = results[twin].beside;
      } else if (FLAGS_perftest) {
        const Result<double> beside = perftest(cases[i]);
        FLAGS_perftest = beside.status().code() != Code::kNotFound;
        if (!FLAGS_perftest) {
          note(beside.error().message() + "; figures stand alone");
          continue;
        }
        ICE_TRY(results[i].beside.emplace_back(), beside);
      }
    }
  }
  for (std::size_t i = 0; i < cases.size(); ++i) report.add(figure_of(cases[i], results[i]));
  return Status();
}

void print(const Report& report) {
  Table table({"lanes", "mode", "op", "value", "batch", "verified", "GB/s", "p50 us", "p99 us",
               "beside", "ratio"});
  for (const Figure& figure : report.figures()) {
    const auto& params = figure.params;
    const bool latency = figure.unit == "us";
    table.add({params["transport"], params["mode"], params["op"], bytes_text(params["value_bytes"]),
               std::to_string(params["batch"].get<int>()),
               params["verify"].get<bool>() ? "yes" : "no",
               latency ? "" : number_text(figure.value, 2), number_text(params["p50_us"], 1),
               number_text(params["p99_us"], 1), figure.against,
               figure.against.empty() ? "" : number_text(figure.ratio, 2)});
  }
  std::cout << table.text();
}

Status run() {
  if (FLAGS_serve) return serve();
  if (FLAGS_rounds < 1 || FLAGS_clients < 1 || FLAGS_round_ms < 1) {
    return Status(Code::kInvalidArgument, "--rounds, --round_ms and --clients: 1 or more");
  }
  Report report("bench transport");
  for (const std::string& lanes : split_list(FLAGS_lanes)) {
    if (lanes != "tcp" && lanes != "shared_memory") {
      return Status(Code::kInvalidArgument, "--lanes=" + lanes + ": shared_memory or tcp");
    }
    for (const std::string& mode : split_list(FLAGS_modes)) {
      if (mode != "event" && mode != "poll") {
        return Status(Code::kInvalidArgument, "--modes=" + mode + ": event or poll");
      }
      ICE_TRY(measure_side({lanes, mode}, report));
    }
  }
  if (FLAGS_json)
    std::cout << report.json() << "\n";
  else
    print(report);
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
