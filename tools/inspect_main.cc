// icefield inspect — what a store holds.
#include <gflags/gflags.h>

#include <iostream>
#include <map>

#include "common/fingerprint.h"
#include "tools/command_line.h"
#include "tools/embedded_node.h"
#include "tools/report.h"

DEFINE_string(store, "", "directory of the store");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield inspect — shows which segments a store holds and what they take

  icefield inspect --store=/tmp/store
)";

// Chains: builds by the prefix they follow.
Status run() {
  if (FLAGS_store.empty()) return Status(Code::kInvalidArgument, "no store: give --store=DIR");
  constexpr std::int64_t kDram = 16 << 20;  // nothing is read but manifests
  ICE_TRY(std::unique_ptr<EmbeddedNode> node,
          EmbeddedNode::open({.dram_bytes = kDram, .store = FLAGS_store, .create = false}));
  ICE_TRY(ListBuildsReply listed,
          sync_wait(node->executor(), node->store().list_builds("", Deadline::never())));
  std::sort(listed.builds.begin(), listed.builds.end(),
            [](const StoredBuild& a, const StoredBuild& b) {
              return std::tuple(a.fingerprint, a.segment.first_token, a.segment.id(), a.build) <
                     std::tuple(b.fingerprint, b.segment.first_token, b.segment.id(), b.build);
            });
  if (!FLAGS_json) {
    Table table({"tokens", "segment", "build", "model", "origin", "layers", "KV heads", "stored"});
    for (const StoredBuild& build : listed.builds) {
      const SegmentName& segment = build.segment;
      table.add({std::to_string(segment.first_token) + " – " + std::to_string(segment.end_token()),
                 to_string(segment.id()).substr(0, 8), to_string(build.build).substr(0, 8),
                 to_string(build.fingerprint).substr(0, 8),
                 segment.origin.exact() ? "exact" : "approx",
                 std::to_string(build.slice.layer_count), std::to_string(build.slice.kv_head_count),
                 bytes_text(static_cast<double>(build.stored_bytes))});
    }
    std::cout << table.text() << "\n";
    for (const TierUsage& tier : listed.tiers) {
      if (tier.name == "dram") continue;  // this command's own, just opened
      std::cout << tier.name << ": " << tier.object_count << " objects, "
                << bytes_text(static_cast<double>(tier.used_bytes)) << "\n";
    }
    return Status();
  }
  Report report("inspect");
  std::int64_t tokens = 0;
  std::int64_t bytes = 0;
  nlohmann::ordered_json builds = nlohmann::ordered_json::array();
  for (const StoredBuild& build : listed.builds) {
    tokens += build.segment.token_count;
    bytes += build.stored_bytes;
    builds.push_back({{"segment", to_string(build.segment.id())},
                      {"build", to_string(build.build)},
                      {"fingerprint", to_string(build.fingerprint)},
                      {"first_token", build.segment.first_token},
                      {"token_count", build.segment.token_count},
                      {"origin", build.segment.origin.exact() ? "exact" : "approx"},
                      {"first_layer", build.slice.first_layer},
                      {"layer_count", build.slice.layer_count},
                      {"first_kv_head", build.slice.first_kv_head},
                      {"kv_head_count", build.slice.kv_head_count},
                      {"stored_bytes", build.stored_bytes}});
  }
  const auto add = [&](const char* name, std::int64_t value, const char* unit) {
    report.add({.name = name, .value = static_cast<double>(value), .unit = unit});
  };
  add("segments", static_cast<std::int64_t>(listed.builds.size()), "segments");
  add("tokens", tokens, "tokens");
  add("stored_bytes", bytes, "bytes");
  for (const TierUsage& tier : listed.tiers) {
    if (tier.name == "dram") continue;
    report.add({.name = "objects",
                .params = {{"tier", tier.name}},
                .value = static_cast<double>(tier.object_count),
                .unit = "objects"});
    report.add({.name = "used_bytes",
                .params = {{"tier", tier.name}},
                .value = static_cast<double>(tier.used_bytes),
                .unit = "bytes"});
  }
  std::cout << report.json({{"builds", builds}});
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
