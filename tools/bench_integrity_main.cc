// icefield bench integrity — flips bits of stored objects and counts the flips that a get missed.
#include <gflags/gflags.h>

#include <chrono>
#include <iostream>

#include "common/rng.h"
#include "common/shard.h"
#include "storage/dram_tier.h"
#include "tools/command_line.h"
#include "tools/report.h"

DEFINE_int64(flips, 10000000, "bits to flip, each in an object that is then read");
DEFINE_int64(value_bytes, 700, "size of objects");
DEFINE_uint64(seed, 1, "of contents and places");
DEFINE_bool(json, false, "print one JSON object instead of a table");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield bench integrity — flips bits in the DRAM tier and reads: none may get through

  icefield bench integrity --flips=1000000
)";

struct Outcome {
  std::int64_t detected = 0;
  std::int64_t returned = 0;
};

Task<Outcome> flip_bits(DramTier& tier) {
  SeededRng rng(FLAGS_seed);
  ObjectKey key;
  store(key.segment.bytes.data(), rng.next());
  Bytes bytes(static_cast<std::size_t>(FLAGS_value_bytes));
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next());
  const std::vector<ConstByteSpan> pieces = {bytes};
  const ObjectInfo info{.bytes = FLAGS_value_bytes, .checksum = xxh3(bytes, checksum_seed(key))};
  Outcome outcome;
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

Status run() {
  if (FLAGS_flips < 1 || FLAGS_value_bytes < 1 || FLAGS_value_bytes > 4096) {
    return Status(Code::kInvalidArgument, "--flips from 1 on, --value_bytes from 1 to 4096");
  }
  ICE_TRY(const auto tier, DramTier::open({.capacity_bytes = 1 << 20, .slot_bytes = 4096}));
  Shard shard;
  const auto begin = std::chrono::steady_clock::now();
  ICE_TRY(const Outcome outcome, sync_wait(shard.executor(), flip_bits(*tier)));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  Report report("bench integrity");
  const nlohmann::ordered_json params = {{"tier", "dram"}, {"flips", FLAGS_flips}};
  report.add({.name = "flips_detected",
              .params = params,
              .value = static_cast<double>(outcome.detected),
              .unit = "flips"});
  report.add({.name = "flips_returned",
              .params = params,
              .value = static_cast<double>(outcome.returned),
              .unit = "flips"});
  if (FLAGS_json) {
    std::cout << report.json();
  } else {
    std::cout << FLAGS_flips << " bits flipped in " << number_text(seconds, 1)
              << " s: " << outcome.detected << " detected, " << outcome.returned << " returned\n";
  }
  if (outcome.returned == 0) return Status();
  return Status(Code::kDataLoss, std::to_string(outcome.returned) + " wrong objects returned");
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
