// icefield stat — what the nodes of a cluster hold.
#include <gflags/gflags.h>

#include <iostream>

#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_string(cluster, "", "the nodes: host:port,host:port*weight");
DEFINE_string(token_file, "", "holds the token that the nodes want");
DEFINE_string(lanes, "auto", "auto, tcp or shared_memory");
DEFINE_int64(deadline_ms, 3000, "of the call to each node");
DEFINE_bool(json, false, "print one JSON object instead of tables");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield stat — shows tiers, namespaces and counters of every node

The exit code is 1 when one does not answer. Tiers and counters are shown to a token for every
namespace (*); another one sees its own namespaces.

  icefield stat --cluster=127.0.0.1:7070,127.0.0.1:7071
)";

struct NodeRow {
  std::string address;
  Result<NodeStats> stats;
};

std::string count_text(std::int64_t count) { return std::to_string(count); }

void print_tables(const std::vector<NodeRow>& rows) {
  Table tiers({"node", "tier", "objects", "used", "capacity"});
  Table spaces({"node", "namespace", "flush number", "values", "stored"});
  Table counters({"node", "counter", "value"});
  for (const NodeRow& row : rows) {
    if (!row.stats.has_value()) {
      tiers.add({row.address, "no answer", "–", "–", "–"});
      continue;
    }
    for (const TierUsage& tier : row.stats->tiers) {
      const auto capacity = static_cast<double>(tier.capacity_bytes);
      tiers.add({row.address, tier.name, count_text(tier.object_count),
                 bytes_text(static_cast<double>(tier.used_bytes)),
                 capacity == 0 ? "–" : bytes_text(capacity)});
    }
    for (const NamespaceStats& space : row.stats->namespaces) {
      spaces.add({row.address, "'" + space.name_space + "'", std::to_string(space.flush_number),
                  count_text(space.value_count),
                  bytes_text(static_cast<double>(space.value_bytes))});
    }
    for (const NamedCount& counter : row.stats->counters) {
      if (counter.value != 0) {
        counters.add({row.address, counter.name, count_text(counter.value)});
      }
    }
  }
  std::cout << tiers.text() << "\n" << spaces.text() << "\n" << counters.text();
}

void print_json(const std::vector<NodeRow>& rows) {
  Report report("stat");
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (const NodeRow& row : rows) {
    nlohmann::ordered_json node = {{"node", row.address}, {"answers", row.stats.has_value()}};
    if (!row.stats.has_value()) {
      node["error"] = row.stats.error().to_string();
      nodes.push_back(std::move(node));
      continue;
    }
    for (const TierUsage& tier : row.stats->tiers) {
      report.add({.name = "used_bytes",
                  .params = {{"node", row.address}, {"tier", tier.name}},
                  .value = static_cast<double>(tier.used_bytes),
                  .unit = "bytes"});
      report.add({.name = "objects",
                  .params = {{"node", row.address}, {"tier", tier.name}},
                  .value = static_cast<double>(tier.object_count),
                  .unit = "objects"});
    }
    for (const NamespaceStats& space : row.stats->namespaces) {
      node["namespaces"].push_back({{"namespace", space.name_space},
                                    {"flush_number", space.flush_number},
                                    {"values", space.value_count},
                                    {"bytes", space.value_bytes}});
    }
    for (const NamedCount& counter : row.stats->counters) {
      node["counters"][counter.name] = counter.value;
    }
    nodes.push_back(std::move(node));
  }
  std::cout << report.json({{"nodes", nodes}});
}

Status run() {
  ICE_TRY(const auto client, open_cluster(FLAGS_cluster, FLAGS_token_file, FLAGS_lanes));
  std::vector<NodeRow> rows;
  Status failure;
  const auto nodes = client->nodes().view();
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    ValueStub& node = nodes->node(i).values();
    ICE_TRY(const Deadline deadline, deadline_from_now(FLAGS_deadline_ms));
    rows.push_back({node.address(), sync_wait(client->executor(), node.stats(deadline))});
    if (!rows.back().stats.has_value()) {
      failure = rows.back().stats.error().with_context("node " + node.address());
    }
  }
  FLAGS_json ? print_json(rows) : print_tables(rows);
  return failure;
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
