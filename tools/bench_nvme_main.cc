// icefield bench nvme — the NVMe tier beside fio on one file system, and how fast a node restarts.
#include <gflags/gflags.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "common/rng.h"
#include "common/task_scope.h"
#include "storage/nvme_tier.h"
#include "tools/command_line.h"
#include "tools/nvme_restart.h"
#include "tools/report.h"

DEFINE_string(dir, "", "directory on the device; the bench makes and removes its own below it");
DEFINE_string(value_bytes, "131072,16384", "sizes of values");
DEFINE_int64(total_bytes, std::int64_t{1} << 30, "bytes written per size and round");
DEFINE_int32(rounds, 3, "ours and fio alternate; medians are reported");
DEFINE_int32(seconds, 2, "of reading, twice per round");
DEFINE_int32(io_threads, 16, "ours and fio's: accesses to the device at a time");
DEFINE_int32(clients, 32, "readers and writers of ours; more than threads, so that none is idle");
DEFINE_int64(write_buffer_bytes, 64 << 20, "of the tier");
DEFINE_int64(restart_values, 0, "also: values of a node that is started with a cold page cache");
DEFINE_int64(restart_value_bytes, 16 << 10, "their size");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench nvme — measures the NVMe tier beside fio (apt-get install fio)

Reads are cold (direct I/O, no page cache) and verified; writes include the
flush. fio runs psync with direct I/O and as many I/O threads, each with one access
at a time.

  icefield bench nvme --dir=/tmp
  icefield bench nvme --dir=/tmp --rounds=0 --restart_values=1000000   (17 GB)
)";

using Seconds = std::chrono::duration<double>;

ObjectKey key_of(std::int64_t number) {
  SeededRng rng(static_cast<std::uint64_t>(number) + 1);
  ObjectKey key;
  store(key.segment.bytes.data(), rng.next());
  store(key.segment.bytes.data() + 8, rng.next());
  store(key.build.bytes.data(), rng.next());
  key.part = {.kind = PartKind::kExtent};
  return key;
}

// Values are windows of one random buffer, so making them costs nothing.
class Values {
 public:
  explicit Values(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
    SeededRng rng(1);
    buffer_.resize(bytes_ + kWindows * 64);
    for (std::size_t at = 0; at + 8 <= buffer_.size(); at += 8) {
      store(buffer_.data() + at, rng.next());
    }
  }
  ConstByteSpan of(std::int64_t number) const {
    return ConstByteSpan(buffer_).subspan(static_cast<std::size_t>(number % kWindows) * 64, bytes_);
  }

 private:
  static constexpr std::int64_t kWindows = 1021;
  std::size_t bytes_;
  Bytes buffer_;
};

// What the coroutines of one measurement share.
struct Job {
  NvmeTier& tier;
  const Values& values;
  std::int64_t count;  // objects
  Status status = {};
  std::int64_t next = 0;
  std::int64_t done = 0;
  Clock::TimePoint stop = Clock::TimePoint::max();
  SeededRng rng{7};
  std::vector<double> call_us;  // of every get or put
};

double microseconds_since(Clock::TimePoint begin) {
  return Seconds(std::chrono::steady_clock::now() - begin).count() * 1e6;
}

asio::awaitable<void> write_some(Job& job) {
  while (job.next < job.count && job.status.ok()) {
    const std::int64_t number = job.next++;
    const ObjectKey key = key_of(number);
    const std::array<ConstByteSpan, 1> pieces = {job.values.of(number)};
    const ObjectInfo info{.bytes = static_cast<std::int64_t>(pieces[0].size()),
                          .checksum = object_checksum(key, pieces)};
    const auto begin = std::chrono::steady_clock::now();
    while (true) {
      const Result<PutOutcome> result = co_await job.tier.put(key, pieces, info);
      if (result.has_value()) break;
      constexpr double kPatience = 10e6;
      if (result.error().code() == Code::kResourceExhausted &&
          microseconds_since(begin) < kPatience) {
        // The device is behind: a client tries again a little later.
        asio::steady_timer pause(co_await asio::this_coro::executor, std::chrono::milliseconds(1));
        boost::system::error_code ignored;
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        continue;
      }
      job.status = result.error();
      co_return;
    }
    job.call_us.push_back(microseconds_since(begin));
    ++job.done;
  }
}

asio::awaitable<void> read_some(Job& job) {
  while (std::chrono::steady_clock::now() < job.stop && job.status.ok()) {
    const auto number =
        static_cast<std::int64_t>(job.rng.below(static_cast<std::uint64_t>(job.count)));
    const auto begin = std::chrono::steady_clock::now();
    const Result<ObjectBytes> bytes = co_await job.tier.get(key_of(number), Verify::kByTier);
    if (!bytes.has_value()) job.status = bytes.error();
    job.call_us.push_back(microseconds_since(begin));
    ++job.done;
  }
}

// Runs `FLAGS_clients` of `some` side by side, then a flush when it is a write. Seconds.
Result<double> run_job(Job& job, asio::awaitable<void> (*some)(Job&), bool flush) {
  asio::io_context io;
  const auto begin = std::chrono::steady_clock::now();
  const auto all = [](Job& shared, asio::awaitable<void> (*one)(Job&),
                      bool flushes) -> asio::awaitable<void> {
    TaskScope scope(co_await asio::this_coro::executor);
    for (int i = 0; i < FLAGS_clients; ++i) scope.spawn(one(shared));
    co_await scope.join();
    if (flushes && shared.status.ok()) shared.status = co_await shared.tier.flush();
  };
  asio::co_spawn(io, all(job, some, flush), [](std::exception_ptr) {});
  io.run();
  ICE_TRY(job.status);
  return Seconds(std::chrono::steady_clock::now() - begin).count();
}

// Bytes a second of fio with these arguments; `side` is "read" or "write". kNotFound without fio.
Result<double> run_fio(const std::string& file, const std::string& arguments, const char* side) {
  const std::string command = "fio --name=x --filename='" + file +
                              "' --direct=1 --ioengine=psync --thread --group_reporting "
                              "--output-format=json --size=" +
                              std::to_string(FLAGS_total_bytes) + " " + arguments + " 2>/dev/null";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return Status(Code::kInternal, "fio cannot be started");
  std::string text;
  std::array<char, 65536> block;
  for (std::size_t got = 0; (got = std::fread(block.data(), 1, block.size(), pipe)) > 0;) {
    text.append(block.data(), got);
  }
  ::pclose(pipe);
  const auto json =
      nlohmann::json::parse(text.substr(std::min(text.find('{'), text.size())), nullptr, false);
  if (!json.is_object() || !json.contains("jobs") || json["jobs"].empty()) {
    return Status(Code::kNotFound, "no fio here: apt-get install fio");
  }
  return json["jobs"][0][side]["bw_bytes"].get<double>();
}

// Adds what fio did; once it turns out that there is none, a note is all.
Status add_fio(std::vector<double>& into, const std::string& file, const std::string& arguments,
               const char* side) {
  static bool missing = false;
  if (missing) return Status();
  const Result<double> speed = run_fio(file, arguments, side);
  missing = speed.status().code() == Code::kNotFound;
  if (missing) {
    note(speed.error().message() + "; figures stand alone");
    return Status();
  }
  ICE_TRY(into.emplace_back(), speed);
  return Status();
}

struct Pair {
  std::vector<double> ours;  // bytes a second
  std::vector<double> fio;
  std::vector<double> call_us;  // ours

  void add(const Job& job, std::int64_t bytes, double seconds) {
    ours.push_back(static_cast<double>(bytes) / seconds);
    call_us.insert(call_us.end(), job.call_us.begin(), job.call_us.end());
  }
};

void add_pair(Report& report, Table& table, const std::string& op, std::int64_t value_bytes,
              const Pair& pair) {
  const double ours = quantile(pair.ours, 0.5);
  const std::array<double, 3> call_us = {quantile(pair.call_us, 0.5), quantile(pair.call_us, 0.99),
                                         quantile(pair.call_us, 0.999)};
  Figure figure{.name = op == "read" ? "get_gbps" : "put_gbps",
                .params = {{"op", op},
                           {"value_bytes", value_bytes},
                           {"tier", "nvme"},
                           {"io_threads", FLAGS_io_threads},
                           {"clients", FLAGS_clients},
                           {"p50_us", call_us[0]},
                           {"p99_us", call_us[1]},
                           {"p99_9_us", call_us[2]}},
                .value = ours / 1e9,
                .unit = "GB/s",
                .better = "higher"};
  std::vector<std::string> row = {op, std::to_string(value_bytes), bytes_text(ours) + "/s"};
  if (pair.fio.empty()) {
    row.insert(row.end(), {"–", "–"});
  } else {
    const double fio = quantile(pair.fio, 0.5);
    figure.against = "fio";
    figure.ratio = ours / fio;
    row.insert(row.end(), {bytes_text(fio) + "/s", percent_text(figure.ratio)});
  }
  for (const double us : call_us) row.push_back(number_text(us, 0));
  report.add(std::move(figure));
  table.add(std::move(row));
}

Status read_ours(NvmeTier& tier, const Values& values, std::int64_t count, Pair& reads) {
  Job read{.tier = tier, .values = values, .count = count};
  read.stop = std::chrono::steady_clock::now() + std::chrono::seconds(FLAGS_seconds);
  ICE_TRY(const double seconds, run_job(read, read_some, false));
  reads.add(read, read.done * std::ssize(values.of(0)), seconds);
  return Status();
}

Status read_fio(const std::string& file, std::int64_t value_bytes, Pair& reads) {
  return add_fio(
      reads.fio, file,
      "--rw=randread --time_based --norandommap --runtime=" + std::to_string(FLAGS_seconds) +
          " --bs=" + std::to_string(value_bytes) + " --numjobs=" + std::to_string(FLAGS_io_threads),
      "read");
}

Status measure_size(const std::string& dir, std::int64_t value_bytes, Report& report,
                    Table& table) {
  const Values values(value_bytes);
  const std::string fio_file = dir + "/fio";
  const std::string store = dir + "/store";
  const auto count = std::max<std::int64_t>(FLAGS_total_bytes / value_bytes, 1);
  Pair writes;
  Pair reads;
  for (int round = 0; round < FLAGS_rounds; ++round) {
    std::filesystem::remove_all(store);
    std::filesystem::remove(fio_file);
    drop_page_cache();
    ICE_TRY(const auto tier, NvmeTier::open({.path = store,
                                             .io_threads = FLAGS_io_threads,
                                             .write_buffer_bytes = FLAGS_write_buffer_bytes}));
    Job write{.tier = *tier, .values = values, .count = count};
    ICE_TRY(const double seconds, run_job(write, write_some, true));
    writes.add(write, count * value_bytes, seconds);
    ICE_TRY(add_fio(writes.fio, fio_file, "--rw=write --bs=1M --numjobs=1 --end_fsync=1", "write"));
    drop_page_cache();
    // Both sides have the middle of their reads at the same time: a device that others use, too, is
    // not the same from second to second.
    ICE_TRY(read_ours(*tier, values, count, reads));
    ICE_TRY(read_fio(fio_file, value_bytes, reads));
    ICE_TRY(read_fio(fio_file, value_bytes, reads));
    ICE_TRY(read_ours(*tier, values, count, reads));
  }
  add_pair(report, table, "write", value_bytes, writes);
  add_pair(report, table, "read", value_bytes, reads);
  return Status();
}

Status measure(const std::string& dir) {
  ICE_TRY(const std::vector<std::int64_t> sizes,
          parse_numbers("value_bytes", FLAGS_value_bytes, 1));
  Report report("bench nvme");
  Table table({"op", "value bytes", "icefield", "fio", "ratio", "p50 us", "p99", "p99.9"});
  if (FLAGS_rounds > 0) {
    for (const std::int64_t size : sizes) ICE_TRY(measure_size(dir, size, report, table));
  }
  if (FLAGS_restart_values > 0) {
    ICE_TRY(measure_restart({.path = dir + "/restart",
                             .values = FLAGS_restart_values,
                             .value_bytes = FLAGS_restart_value_bytes,
                             .write_buffer_bytes = FLAGS_write_buffer_bytes},
                            report));
  }
  if (FLAGS_json) {
    std::cout << report.json();
    return Status();
  }
  if (FLAGS_rounds > 0) std::cout << table.text();
  for (const Figure& figure : report.figures()) {
    if (figure.against.empty()) {
      std::cout << figure.name << " " << number_text(figure.value, 2) << " " << figure.unit << "\n";
    }
  }
  return Status();
}

Status run() {
  if (FLAGS_dir.empty()) return Status(Code::kInvalidArgument, "no directory: give --dir=DIR");
  if (FLAGS_io_threads < 1 || FLAGS_clients < 1 || FLAGS_total_bytes < 1 || FLAGS_seconds < 1 ||
      FLAGS_restart_value_bytes < 1) {
    return Status(Code::kInvalidArgument, "threads, clients, bytes and seconds must be at least 1");
  }
  std::string dir = FLAGS_dir + "/icefield-bench-XXXXXX";
  if (::mkdtemp(dir.data()) == nullptr) {
    return Status(Code::kInvalidArgument, "no directory can be made in " + FLAGS_dir);
  }
  const Status status = measure(dir);
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  return status;
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
