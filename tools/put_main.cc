// icefield put — stores a value.
#include <gflags/gflags.h>

#include <fstream>
#include <iostream>
#include <iterator>

#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_string(cluster, "", "the nodes: host:port,host:port*weight");
DEFINE_string(token_file, "", "holds the token that the nodes want");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_string(key, "", "of the value, 1 to 1024 bytes");
DEFINE_string(file, "", "what to store; empty: standard input");
DEFINE_string(namespace, "", "whose value it is");
DEFINE_int64(ttl_s, 0, "seconds until it expires; 0: when it is evicted");
DEFINE_string(level, "memory", "memory, or durable: survives a restart of the node");
DEFINE_bool(pin, false, "never evict it; counts against the node's quota");
DEFINE_int64(deadline_ms, 5000, "of the whole call");
DEFINE_bool(json, false, "print one JSON object");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield put — stores a value in a cluster; a key that is there already stays as it is

  echo hello | icefield put --cluster=127.0.0.1:7070 --key=greeting
  icefield put --cluster=127.0.0.1:7070,127.0.0.1:7071 --key=block/42 --file=block.bin
      --namespace=llama --ttl_s=3600 --level=durable
)";

Result<std::string> read_value() {
  if (!FLAGS_file.empty()) return read_file(FLAGS_file);
  return std::string((std::istreambuf_iterator<char>(std::cin)), {});
}

Status run() {
  if (FLAGS_level != "memory" && FLAGS_level != "durable") {
    return Status(Code::kInvalidArgument,
                  "--level=" + FLAGS_level + ": expected memory or durable");
  }
  ICE_TRY(validate_value_key(FLAGS_key).with_context("--key"));
  ICE_TRY(const auto client, open_cluster(FLAGS_cluster, FLAGS_token_file, FLAGS_lanes));
  ICE_TRY(const std::string value, read_value());
  ICE_TRY(const Deadline deadline, deadline_from_now(FLAGS_deadline_ms));
  const PutOptions how{
      .level = FLAGS_level == "durable" ? WriteLevel::kDurable : WriteLevel::kMemory,
      .ttl_ms = FLAGS_ttl_s * 1000,
      .pin = FLAGS_pin ? PinKind::kHard : PinKind::kNone};
  const ValueCall call{.name_space = FLAGS_namespace, .deadline = deadline};
  auto putting = client->values().put(FLAGS_key, as_bytes(value), how, call);
  ICE_TRY(const PutOutcome outcome, sync_wait(client->executor(), std::move(putting)));
  const char* said = outcome == PutOutcome::kStored ? "stored" : "already there";
  if (!FLAGS_json) {
    std::cout << FLAGS_key << ": " << said << ", " << bytes_text(static_cast<double>(value.size()))
              << "\n";
    return Status();
  }
  Report report("put");
  report.add({.name = "put_bytes",
              .params = {{"key", FLAGS_key}, {"level", FLAGS_level}, {"outcome", said}},
              .value = static_cast<double>(value.size()),
              .unit = "bytes"});
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
