// icefield bench trace — hit rates of the eviction policies on a trace of a real service.
#include <gflags/gflags.h>

#include <iostream>
#include <limits>
#include <set>
#include <unordered_map>

#include "storage/eviction_policy.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_string(file, "", "trace in Mooncake's format: JSON lines with hash_ids");
DEFINE_string(policies, "lru,arc,belady", "which policies; belady knows the future: a bound");
DEFINE_string(capacities, "2000,5000,10000,20000,50000", "blocks that the cache holds");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench trace — replays a trace of prompts through the eviction policies

A prompt hits with its leading blocks that are cached when it arrives; then all
of its blocks are used. Blocks count as objects of one size.

  icefield bench trace --file=bench/data/conversation_trace.jsonl --capacities=2000,10000
)";

struct Trace {
  std::vector<std::vector<std::uint64_t>> prompts;  // ids of blocks
  std::int64_t block_count = 0;
};

Result<Trace> read_trace(const std::string& path) {
  if (path.empty()) return Status(Code::kInvalidArgument, "no trace: give --file=TRACE.jsonl");
  ICE_TRY(const std::string text, read_file(path));
  Trace trace;
  std::size_t line_number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \r\t") == std::string_view::npos) continue;
    const auto request = nlohmann::json::parse(line, nullptr, false);
    bool right =
        request.is_object() && request.contains("hash_ids") && request["hash_ids"].is_array();
    if (right) {
      for (const auto& id : request["hash_ids"]) right = right && id.is_number_integer();
    }
    if (!right) {
      return Status(Code::kInvalidArgument, path + ":" + std::to_string(line_number) +
                                                ": expected a JSON object with a list of "
                                                "numbers \"hash_ids\"");
    }
    trace.prompts.push_back(request["hash_ids"].get<std::vector<std::uint64_t>>());
    trace.block_count += static_cast<std::int64_t>(trace.prompts.back().size());
  }
  if (trace.block_count == 0) {
    return Status(Code::kInvalidArgument, path + ": no blocks in this trace");
  }
  return trace;
}

// The share of blocks that were there, with the policy that the tiers use.
double replay(const Trace& trace, EvictionKind kind, std::int64_t capacity) {
  const auto policy = make_eviction_policy(kind, capacity);
  std::unordered_map<std::uint64_t, EvictionPolicy::Id> ids;
  std::vector<std::uint64_t> names;  // by id
  std::int64_t hits = 0;
  for (const std::vector<std::uint64_t>& prompt : trace.prompts) {
    for (const std::uint64_t block : prompt) {
      if (!ids.contains(block)) break;
      ++hits;
    }
    for (const std::uint64_t block : prompt) {
      const auto found = ids.find(block);
      if (found != ids.end()) {
        policy->touch(found->second);
        continue;
      }
      const EvictionPolicy::Object object{.name = block, .weight = 1};
      policy->expect(object);
      auto id = static_cast<EvictionPolicy::Id>(names.size());
      if (static_cast<std::int64_t>(ids.size()) == capacity) {
        id = policy->evict().value();
        ids.erase(names[id]);
        names[id] = block;
      } else {
        names.push_back(block);
      }
      ids.emplace(block, id);
      policy->insert(id, object);
    }
  }
  return static_cast<double>(hits) / static_cast<double>(trace.block_count);
}

// Belady's bound: what is used again last leaves first, and may leave before it came. It counts
// single blocks.
double replay_belady(const Trace& trace, std::int64_t capacity) {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  std::vector<std::uint64_t> blocks;
  for (const auto& prompt : trace.prompts)
    blocks.insert(blocks.end(), prompt.begin(), prompt.end());
  std::vector<std::int64_t> next(blocks.size(), kNever);
  std::unordered_map<std::uint64_t, std::int64_t> later;
  for (std::size_t at = blocks.size(); at-- > 0;) {
    if (const auto seen = later.find(blocks[at]); seen != later.end()) next[at] = seen->second;
    later[blocks[at]] = static_cast<std::int64_t>(at);
  }
  std::set<std::int64_t> cached;  // by the time of the next use, which names the block
  std::int64_t hits = 0;
  for (std::size_t at = 0; at < blocks.size(); ++at) {
    if (cached.erase(static_cast<std::int64_t>(at)) > 0) ++hits;
    if (next[at] == kNever) continue;
    cached.insert(next[at]);
    if (static_cast<std::int64_t>(cached.size()) > capacity) cached.erase(std::prev(cached.end()));
  }
  return static_cast<double>(hits) / static_cast<double>(blocks.size());
}

Status run() {
  ICE_TRY(const Trace trace, read_trace(FLAGS_file));
  ICE_TRY(const std::vector<std::int64_t> capacities,
          parse_numbers("capacities", FLAGS_capacities, 1));
  const std::vector<std::string> policies = split_list(FLAGS_policies);
  for (const std::string& policy : policies) {
    if (policy != "belady") ICE_TRY(parse_eviction_kind(policy));
  }
  Report report("bench trace");
  std::vector<std::string> header = {"capacity"};
  header.insert(header.end(), policies.begin(), policies.end());
  Table table(header);
  for (const std::int64_t capacity : capacities) {
    if (capacity == kAllNumber) {
      return Status(Code::kInvalidArgument, "--capacities: expected numbers of blocks");
    }
    std::vector<std::string> row = {std::to_string(capacity)};
    for (const std::string& policy : policies) {
      const double rate = policy == "belady"
                              ? replay_belady(trace, capacity)
                              : replay(trace, parse_eviction_kind(policy).value(), capacity);
      report.add({.name = "hit_rate",
                  .params = {{"policy", policy}, {"capacity", capacity}},
                  .value = rate,
                  .unit = "share"});
      row.push_back(percent_text(rate));
    }
    table.add(row);
  }
  if (FLAGS_json) {
    std::cout << report.json({{"requests", trace.prompts.size()}, {"blocks", trace.block_count}});
    return Status();
  }
  std::cout << trace.prompts.size() << " prompts, " << trace.block_count << " blocks\n\n"
            << table.text();
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
