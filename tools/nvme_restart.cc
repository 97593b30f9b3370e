#include "tools/nvme_restart.h"

#include <malloc.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "cache_node/node_host.h"
#include "cache_node/value_records.h"
#include "common/rng.h"
#include "common/shard.h"
#include "common/task_scope.h"

namespace icefield {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr char kNamespace[] = "bench";
constexpr int kWriters = 32;

std::string key_of(std::int64_t number) { return "value " + std::to_string(number); }

struct Filling {
  NvmeTier& tier;
  const Bytes value;
  std::int64_t count = 0;
  std::int64_t next = 0;
  Status status = {};
};

// Waits while the disk is behind.
Task<> put(Filling& filling, ObjectKey key, ConstByteSpan bytes) {
  const ObjectInfo info{.bytes = static_cast<std::int64_t>(bytes.size()),
                        .checksum = object_checksum(key, std::span(&bytes, 1))};
  constexpr int kTries = 10'000;
  Status status;
  for (int i = 0; i < kTries; ++i) {
    status = (co_await filling.tier.put(key, std::span(&bytes, 1), info)).status();
    if (status.code() != Code::kResourceExhausted) co_return status;
    asio::steady_timer pause(co_await asio::this_coro::executor, std::chrono::milliseconds(1));
    boost::system::error_code ignored;
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  co_return status;
}

asio::awaitable<void> fill_some(Filling& filling) {
  while (filling.next < filling.count && filling.status.ok()) {
    const std::string key = key_of(filling.next++);
    const ValueHash hash = value_hash(kNamespace, 0, key);
    Status status = co_await put(filling, value_chunk_key(hash, 1, 0), filling.value);
    if (status.ok()) {
      const Bytes name = ValueName{.name_space = kNamespace, .key = key}.encode();
      status = co_await put(filling, value_name_key(hash), name);
    }
    if (!status.ok()) filling.status = status;
  }
}

Status fill(const NvmeRestart& restart, Bytes value) {
  ICE_TRY(const auto tier,
          NvmeTier::open({.path = restart.path, .write_buffer_bytes = restart.write_buffer_bytes}));
  Filling filling{.tier = *tier, .value = std::move(value), .count = restart.values};
  asio::io_context io;
  const auto all = [](Filling& shared) -> asio::awaitable<void> {
    TaskScope scope(co_await asio::this_coro::executor);
    for (int i = 0; i < kWriters; ++i) scope.spawn(fill_some(shared));
    co_await scope.join();
    if (shared.status.ok()) shared.status = co_await shared.tier.flush();
  };
  asio::co_spawn(io, all(filling), [](std::exception_ptr) {});
  io.run();
  return filling.status;
}

std::int64_t resident_bytes() {
  ::malloc_trim(0);  // what was freed is not taken
  std::int64_t total = 0;
  std::int64_t resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r"); file != nullptr) {
    if (std::fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * ::sysconf(_SC_PAGESIZE);
}

// One start: how long it took, and what is resident since.
struct Start {
  double seconds = 0;
  double bytes_each = 0;
};

Status start_tier(const NvmeRestart& restart, Start& start) {
  drop_page_cache();
  const std::int64_t before = resident_bytes();
  const auto begin = std::chrono::steady_clock::now();
  ICE_TRY(const auto tier,
          NvmeTier::open({.path = restart.path, .write_buffer_bytes = restart.write_buffer_bytes}));
  start.seconds = Seconds(std::chrono::steady_clock::now() - begin).count();
  const std::int64_t objects = tier->usage().object_count;
  start.bytes_each = static_cast<double>(resident_bytes() - before) / static_cast<double>(objects);
  if (objects == 2 * restart.values) return Status();
  return Status(Code::kDataLoss, std::to_string(objects) + " objects after the restart, " +
                                     std::to_string(2 * restart.values) + " were stored");
}

Task<> read_value(NodeValues& values, std::int64_t number, const Bytes& expected) {
  const std::string key = key_of(number);
  GetValues request{.scope = {.name_space = kNamespace}};
  request.values.push_back({.key = key, .room = std::ssize(expected)});
  ValueReads reads;
  ICE_CO_TRY(const ValueHead head, co_await values.get(request, reads));
  ICE_CO_TRY(head.status);
  ICE_CO_TRY(reads.statuses.front());
  Bytes got;
  for (const ConstByteSpan piece : reads.payload) got.insert(got.end(), piece.begin(), piece.end());
  if (got == expected) co_return Status();
  co_return Status(Code::kDataLoss, key + " has other bytes after the restart");
}

Status start_node(const NvmeRestart& restart, const Bytes& value, Start& start) {
  drop_page_cache();
  Shard shard;
  const std::int64_t before = resident_bytes();
  const auto begin = std::chrono::steady_clock::now();
  ICE_TRY(const auto host, NodeHost::open({.store = restart.path}, shard.executor()));
  NodeValues& values = host->node().values();
  Status status = sync_wait(shard.executor(), read_value(values, restart.values / 2, value));
  start.seconds = Seconds(std::chrono::steady_clock::now() - begin).count();
  const std::int64_t taken = resident_bytes() - before;
  start.bytes_each = static_cast<double>(taken) / static_cast<double>(restart.values);
  const Status stopped = sync_wait(shard.executor(), host->stop());
  shard.stop();
  return status.ok() ? stopped : status;
}

}  // namespace

Status measure_restart(const NvmeRestart& restart, Report& report) {
  if (restart.value_bytes > kValueChunkBytes) {
    return Status(Code::kInvalidArgument,
                  "--restart_value_bytes: at most " + std::to_string(kValueChunkBytes));
  }
  Bytes value(static_cast<std::size_t>(restart.value_bytes));
  SeededRng rng(1);
  for (std::byte& byte : value) byte = static_cast<std::byte>(rng.next());
  ICE_TRY(fill(restart, value));
  Start tier;
  Start node;
  ICE_TRY(start_tier(restart, tier));
  ICE_TRY(start_node(restart, value, node));
  const auto add = [&](const char* name, double figure, const char* unit) {
    report.add({.name = name,
                .params = {{"values", restart.values},
                           {"value_bytes", restart.value_bytes},
                           {"tier", "nvme"}},
                .value = figure,
                .unit = unit,
                .better = "lower"});
  };
  add("restart_seconds", node.seconds, "s");
  add("open_seconds", tier.seconds, "s");
  add("memory_per_object_bytes", tier.bytes_each, "bytes");
  add("node_memory_per_value_bytes", node.bytes_each, "bytes");
  return Status();
}

void drop_page_cache() {
  ::sync();
  if (std::FILE* file = std::fopen("/proc/sys/vm/drop_caches", "w"); file != nullptr) {
    std::fputs("3\n", file);
    std::fclose(file);
  }
}

}  // namespace icefield
