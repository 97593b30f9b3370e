// icefield get — reads a value.
#include <gflags/gflags.h>

#include <charconv>
#include <fstream>
#include <iostream>
#include <optional>

#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_string(cluster, "", "the nodes: host:port,host:port*weight");
DEFINE_string(token_file, "", "holds the token that the nodes want");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_string(key, "", "of the value");
DEFINE_string(file, "", "where to write it; empty: standard output");
DEFINE_string(namespace, "", "whose value it is");
DEFINE_string(range, "", "begin:length in bytes; empty: all of it");
DEFINE_int64(deadline_ms, 5000, "of the whole call");
DEFINE_bool(json, false, "print one JSON object; the value goes to --file or nowhere");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield get — reads a value and verifies it; exit code 1 and the reason when it is not there

  icefield get --cluster=127.0.0.1:7070 --key=greeting
  icefield get --cluster=127.0.0.1:7070 --key=block/42 --range=65536:1000 --file=part.bin
)";

struct Range {
  std::int64_t begin = 0;
  std::int64_t length = 0;
};

Result<Range> parse_range(const std::string& text) {
  Range range;
  const char* const end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, range.begin);
  bool ok = first.ec == std::errc() && first.ptr != end && *first.ptr == ':';
  if (ok) {
    const auto second = std::from_chars(first.ptr + 1, end, range.length);
    ok = second.ec == std::errc() && second.ptr == end;
  }
  if (ok && range.begin >= 0 && range.length >= 0) return range;
  return Status(Code::kInvalidArgument, "--range=" + text + ": expected begin:length in bytes");
}

Result<Buffer> read_value(ClusterClient& client, const ValueCall& call) {
  ValueStore& values = client.values();
  if (!FLAGS_range.empty()) {
    ICE_TRY(const Range range, parse_range(FLAGS_range));
    auto reading = values.get_range(FLAGS_key, range.begin, range.length, call);
    return sync_wait(client.executor(), std::move(reading));
  }
  std::vector<std::string_view> keys = {FLAGS_key};
  ICE_TRY(const auto sizes, sync_wait(client.executor(), values.exists(std::move(keys), call)));
  ICE_TRY(sizes.front().status());
  return sync_wait(client.executor(), values.get(FLAGS_key, Buffer(*sizes.front()), call));
}

Status run() {
  ICE_TRY(validate_value_key(FLAGS_key).with_context("--key"));
  if (!FLAGS_range.empty()) ICE_TRY(parse_range(FLAGS_range).status());
  ICE_TRY(const auto client, open_cluster(FLAGS_cluster, FLAGS_token_file, FLAGS_lanes));
  ICE_TRY(const Deadline deadline, deadline_from_now(FLAGS_deadline_ms));
  const SystemClock clock;
  const ValueCall call{.name_space = FLAGS_namespace, .deadline = deadline};
  const auto start = clock.now();
  Result<Buffer> read = read_value(*client, call);
  if (read.status().code() == Code::kNotFound) {
    const std::string why = read.error().message();
    return Status::miss(read.error().reason(),
                        "no value '" + FLAGS_key + "'" + (why.empty() ? "" : ": " + why));
  }
  ICE_TRY(read.status());
  const double us = std::chrono::duration<double, std::micro>(clock.now() - start).count();
  const std::string_view value = as_text(std::as_const(*read).bytes());
  if (!FLAGS_file.empty()) {
    std::ofstream out(FLAGS_file, std::ios::binary);
    out << value;
    out.close();
    if (!out) return Status(Code::kInvalidArgument, "file " + FLAGS_file + " cannot be written");
  } else if (!FLAGS_json) {
    std::cout << value << std::flush;
  }
  if (!FLAGS_json) return Status();
  Report report("get");
  report.add({.name = "get_latency_us",
              .params = {{"key", FLAGS_key}, {"value_bytes", value.size()}},
              .value = us,
              .unit = "us"});
  std::cout << report.json();
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
