// icefield metrics — the metrics that a node serves, as the page of the documentation.
#include <gflags/gflags.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "cache_node/metrics_page.h"
#include "cache_node/node_host.h"
#include "common/shard.h"
#include "tools/command_line.h"
#include "tools/transport_metrics.h"

DEFINE_bool(markdown, false, "print the table of docs/metrics.md instead of an idle node's page");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield metrics — lists the metrics that a node serves under /metrics

Starts an empty node in a scratch directory, asks it and stops it. For a running node, ask itself:
curl http://ADMIN/metrics, with the address that it prints when it starts.

  icefield metrics --markdown > docs/metrics.md
)";

Status print(const std::string& directory) {
  Shard shard;
  ICE_TRY(const auto host,
          NodeHost::open({.dram_bytes = 1 << 20, .store = directory}, shard.executor()));
  MetricsPage page;
  host->collect(page);
  collect(UcxCounters(), page);
  if (FLAGS_markdown) {
    std::cout << "# Metrics of a node\n\nServed under `/metrics` of `--admin_listen` in "
                 "Prometheus' text format. This page is printed by\n`icefield metrics "
                 "--markdown`.\n\n"
              << page.markdown();
  } else {
    std::cout << page.text();
  }
  return Status();
}

Status run() {
  std::string directory = (std::filesystem::temp_directory_path() / "icefield-XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) {
    return Status(Code::kInvalidArgument, "no scratch directory " + directory);
  }
  const Status status = print(directory);
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return status;
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
