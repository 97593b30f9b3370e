// icefield bench integrity — flips bits of stored objects and counts the flips that a get missed.
#include <gflags/gflags.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "common/rng.h"
#include "common/shard.h"
#include "storage/dram_tier.h"
#include "storage/nvme_tier.h"
#include "tools/command_line.h"
#include "tools/report.h"
#include "tools/wire_flips.h"

DEFINE_int64(flips, 10000000, "bits to flip, each in an object that is then read");
DEFINE_int64(wire_flips, 1000000, "bits to flip, each in what a put sends or a get receives");
DEFINE_string(dir, "", "also: flips on disk, in a store made and removed below this directory");
DEFINE_int64(disk_flips, 100000, "with --dir: bits to flip, each in an object of its own");
DEFINE_int64(value_bytes, 700, "size of objects");
DEFINE_uint64(seed, 1, "of contents and places");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench integrity — flips bits in both tiers and on the wire: none may get through

  icefield bench integrity --flips=1000000 --wire_flips=1000000 --dir=/tmp
)";

Task<FlipOutcome> flip_bits(DramTier& tier) {
  SeededRng rng(FLAGS_seed);
  ObjectKey key;
  store(key.segment.bytes.data(), rng.next());
  Bytes bytes(static_cast<std::size_t>(FLAGS_value_bytes));
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next());
  const std::vector<ConstByteSpan> pieces = {bytes};
  const ObjectInfo info{.bytes = FLAGS_value_bytes, .checksum = xxh3(bytes, checksum_seed(key))};
  FlipOutcome outcome;
  for (std::int64_t flip = 0; flip < FLAGS_flips; ++flip) {
    ICE_CO_TRY(co_await tier.put(key, pieces, info));
    // The only object takes the front of the slab.
    tier.memory()[rng.below(bytes.size())] ^= static_cast<std::byte>(1 << rng.below(8));
    const Result<ObjectBytes> got = co_await tier.get(key, Verify::kByTier);
    ++(got.has_value() ? outcome.returned : outcome.detected);
    if (got.has_value()) ICE_CO_TRY(co_await tier.remove(key));
  }
  co_return outcome;
}

ObjectKey key_of(std::int64_t number) {
  ObjectKey key;
  store(key.segment.bytes.data(), static_cast<std::uint64_t>(number));
  return key;
}

Bytes value_of(std::int64_t number) {
  SeededRng rng(FLAGS_seed + static_cast<std::uint64_t>(number));
  Bytes bytes(static_cast<std::size_t>(FLAGS_value_bytes));
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next());
  return bytes;
}

Task<> put_all(NvmeTier& tier) {
  for (std::int64_t i = 0; i < FLAGS_disk_flips; ++i) {
    const ObjectKey key = key_of(i);
    const Bytes bytes = value_of(i);
    const std::vector<ConstByteSpan> pieces = {bytes};
    const ObjectInfo info{.bytes = FLAGS_value_bytes, .checksum = xxh3(bytes, checksum_seed(key))};
    ICE_CO_TRY(co_await tier.put(key, pieces, info));
  }
  co_return co_await tier.flush();
}

Task<FlipOutcome> get_all(NvmeTier& tier) {
  FlipOutcome outcome;
  for (std::int64_t i = 0; i < FLAGS_disk_flips; ++i) {
    const Result<ObjectBytes> got = co_await tier.get(key_of(i), Verify::kByTier);
    if (!got.has_value() && got.error().code() != Code::kDataLoss) co_return got.error();
    ++(got.has_value() ? outcome.returned : outcome.detected);
  }
  co_return outcome;
}

// One bit of every value in the blob files: a record is 40 bytes (header and key) and the value,
// after the file's 30.
void flip_values(const std::string& store_path) {
  SeededRng rng(FLAGS_seed);
  const auto value = static_cast<std::size_t>(FLAGS_value_bytes);
  for (const auto& entry : std::filesystem::directory_iterator(store_path)) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string text(std::filesystem::file_size(entry.path()), '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    for (std::size_t at = 30 + 40; at + value <= text.size(); at += 40 + value) {
      text[at + rng.below(value)] ^= static_cast<char>(1 << rng.below(8));
    }
    file.seekp(0);
    file.write(text.data(), static_cast<std::streamsize>(text.size()));
  }
}

Result<FlipOutcome> flip_on_disk(const std::string& store_path) {
  Shard shard;
  {
    ICE_TRY(const auto tier, NvmeTier::open({.path = store_path}));
    ICE_TRY(sync_wait(shard.executor(), put_all(*tier)));
  }
  flip_values(store_path);
  ICE_TRY(const auto tier, NvmeTier::open({.path = store_path}));
  return sync_wait(shard.executor(), get_all(*tier));
}

Result<FlipOutcome> flip_below(const std::string& parent) {
  std::string dir = parent + "/icefield-bench-XXXXXX";
  if (::mkdtemp(dir.data()) == nullptr) {
    return Status(Code::kInvalidArgument, "no directory can be made in " + parent);
  }
  Result<FlipOutcome> outcome = flip_on_disk(dir + "/store");
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  return outcome;
}

Result<FlipOutcome> flip_in_memory() {
  ICE_TRY(const auto tier, DramTier::open({.capacity_bytes = 1 << 20, .slot_bytes = 4096}));
  Shard shard;
  return sync_wait(shard.executor(), flip_bits(*tier));
}

void add_outcome(Report& report, const char* where, std::int64_t flips,
                 const FlipOutcome& outcome) {
  const nlohmann::ordered_json params = {{"where", where}, {"flips", flips}};
  for (const auto& [name, count] : {std::pair("flips_detected", outcome.detected),
                                    std::pair("flips_returned", outcome.returned)}) {
    report.add(
        {.name = name, .params = params, .value = static_cast<double>(count), .unit = "flips"});
  }
  if (FLAGS_json) return;
  std::cout << where << ": " << flips << " bits flipped, " << outcome.detected << " detected, "
            << outcome.returned << " returned\n";
}

Status run() {
  if (FLAGS_flips < 1 || FLAGS_wire_flips < 1 || FLAGS_disk_flips < 1 || FLAGS_value_bytes < 1 ||
      FLAGS_value_bytes > 4096) {
    return Status(Code::kInvalidArgument, "flips from 1 on, --value_bytes from 1 to 4096");
  }
  if (!FLAGS_dir.empty() && FLAGS_value_bytes < 512) {
    return Status(Code::kInvalidArgument,
                  "on disk --value_bytes from 512 on: blob files have them");
  }
  Report report("bench integrity");
  ICE_TRY(const FlipOutcome memory, flip_in_memory());
  add_outcome(report, "dram", FLAGS_flips, memory);
  ICE_TRY(const FlipOutcome wire,
          flip_on_the_wire(FLAGS_wire_flips, FLAGS_value_bytes, FLAGS_seed));
  add_outcome(report, "wire", FLAGS_wire_flips, wire);
  std::int64_t wrong = memory.returned + wire.returned;
  if (!FLAGS_dir.empty()) {
    ICE_TRY(const FlipOutcome disk, flip_below(FLAGS_dir));
    add_outcome(report, "nvme", FLAGS_disk_flips, disk);
    wrong += disk.returned;
  }
  if (FLAGS_json) std::cout << report.json();
  if (wrong == 0) return Status();
  return Status(Code::kDataLoss, std::to_string(wrong) + " wrong objects returned");
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
