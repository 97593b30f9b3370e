// tests/support/node_values_fixture.h — values over a small memory and a disk that makes trouble.
#pragma once

#include <gtest/gtest.h>

#include "cache_node/chunk_sums.h"
#include "cache_node/node_values.h"
#include "common/run_writer.h"
#include "common/waiters.h"
#include "tests/support/manual_clock.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"

namespace icefield {

constexpr std::int64_t kMiB = 1 << 20;

// Memory that behaves like a disk in trouble.
class FakeDisk final : public Tier {
 public:
  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override {
    if (refusals > 0) {
      --refusals;
      co_return Status(Code::kResourceExhausted, "the disk cannot keep up");
    }
    while (info.bytes == held_bytes) co_await held.wait(Deadline::never());
    co_return co_await tier_->put(key, pieces, info);
  }
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override {
    while (hold_gets) co_await held.wait(Deadline::never());
    ICE_CO_TRY(ObjectBytes bytes, co_await tier_->get(key, verify));
    if (replacement.empty()) co_return bytes;
    const ConstByteSpan piece = replacement;
    ICE_CO_TRY(co_await tier_->remove(key));
    ICE_CO_TRY(co_await tier_->put(key, std::span(&piece, 1), info_of(key, piece)));
    co_return bytes;
  }
  Task<> remove(ObjectKey key) override {
    if (remove_refusals > 0) {
      --remove_refusals;
      co_return Status(Code::kResourceExhausted, "the disk cannot keep up");
    }
    const bool of_value = key.part.kind == PartKind::kValue;
    while (hold_removals && of_value) co_await held.wait(Deadline::never());
    co_return co_await tier_->remove(key);
  }
  void let_go() {
    held_bytes = -1;
    hold_gets = hold_removals = false;
    held.notify_all();
  }
  Task<> flush() override { return tier_->flush(); }
  Task<> retain(ObjectKey key, Retention retention) override {
    return tier_->retain(key, retention);
  }
  std::optional<ObjectInfo> find(const ObjectKey& key) const override { return tier_->find(key); }
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override {
    tier_->for_each(visit);
  }
  TierUsage usage() const override { return tier_->usage(); }

  int refusals = 0;  // of the next puts
  int remove_refusals = 0;
  std::int64_t held_bytes = -1;  // puts of objects this long wait
  bool hold_gets = false;
  bool hold_removals = false;  // of chunks
  Waiters held;
  Bytes replacement;  // put in the place of what is read, during the read

 private:
  std::unique_ptr<DramTier> tier_ = DramTier::open({.capacity_bytes = 64 * kMiB}).value();
};

// Disk, memory of 4 MiB, values. All values are zeros, and of one chunk unless they say more.
class NodeValuesTest : public testing::Test {
 protected:
  struct Item {
    std::string key;
    std::int64_t bytes = 0;
    std::int64_t value_bytes = bytes;  // more: its first chunk comes alone
  };
  // A request, and what it refers to.
  struct Asked {
    Asked(std::vector<Item> items_in, PutOptions options)
        : items(std::move(items_in)), parts(items.size()), checksums(items.size()) {
      request.options = options;
      for (std::size_t i = 0; i < items.size(); ++i) {
        parts[i] = ConstByteSpan(zeros).first(static_cast<std::size_t>(items[i].bytes));
        checksums[i] = object_checksum(chunk_of(items[i].key, items[i].value_bytes),
                                       std::span<const ConstByteSpan>(&parts[i], 1));
        request.values.push_back({.key = items[i].key,
                                  .value_bytes = items[i].value_bytes,
                                  .checksums = std::span(&checksums[i], 1)});
      }
    }
    Asked(const Asked&) = delete;

    const Bytes zeros = Bytes(kMiB);
    const std::vector<Item> items;
    std::vector<ConstByteSpan> parts;
    std::vector<std::uint64_t> checksums;
    PutValues request;
  };

  NodeValuesTest() {
    memory_->on_evict([this](const ObjectKey& key) { values_.note_evicted(key); });
  }
  ~NodeValuesTest() override { EXPECT_TRUE(run(values_.stop()).ok()); }

  static ObjectKey chunk_of(std::string_view key, std::int64_t value_bytes) {
    return value_chunk_key(value_hash("", 0, key), value_chunk_count(value_bytes), 0);
  }
  template <class R>
  R run(asio::awaitable<R> task) {
    return run_task(io_, std::move(task));
  }
  // What goes on in the background.
  void settle() {
    io_.restart();
    io_.poll();
  }
  // All at once, as if they had arrived; the outcome is the last one's.
  Task<PutOutcome> put(std::vector<Item> items, PutOptions options) {
    Asked asked(std::move(items), options);
    std::vector<IncomingChunk> chunks = values_.reserve(asked.request);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      chunks[i].checksum = asked.checksums[i];
      chunks[i].parts = std::span(&asked.parts[i], 1);
      if (!chunks[i].slots.has_value()) continue;
      std::vector<ByteSpan> runs;
      chunks[i].slots->append_runs(runs);
      RunWriter(runs).put(asked.parts[i]);
    }
    ICE_CO_TRY(const PutValuesReply reply, co_await values_.put(asked.request, chunks));
    ICE_CO_TRY(reply.head.status);
    co_return reply.outcomes.back();
  }
  void store(const std::string& key, std::int64_t bytes, PutOptions options = {}) {
    ASSERT_TRUE(run(put({{.key = key, .bytes = bytes}}, options)).has_value()) << key;
  }
  // A durable batch: a large value, and a small one that the disk may hold up.
  asio::awaitable<void> put_behind_held(int i, int& stored) {
    std::vector<Item> items;
    items.push_back({.key = "large " + std::to_string(i), .bytes = 900'000});
    items.push_back({.key = "held " + std::to_string(i), .bytes = 10});
    const PutOptions options{.level = WriteLevel::kDurable};
    const Result<PutOutcome> outcome = co_await put(std::move(items), options);
    if (outcome.has_value()) ++stored;
  }
  Task<> get(std::string key) {
    GetValues request;
    request.values.push_back({.key = key, .room = kMiB});
    ValueReads reads;
    ICE_CO_TRY(const ValueHead head, co_await values_.get(request, reads));
    ICE_CO_TRY(head.status);
    co_return reads.statuses.back();
  }
  // A value of any bytes and number of chunks.
  Task<PutOutcome> put_bytes(std::string key, const Bytes& bytes, PutOptions options = {}) {
    const std::int64_t size = std::ssize(bytes);
    const std::int64_t count = value_chunk_count(size);
    const ValueHash hash = value_hash("", 0, key);
    std::vector<ConstByteSpan> parts;
    std::vector<std::uint64_t> checksums;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto chunk_bytes = static_cast<std::size_t>(chunk_range(size, i, 0, size).chunk_bytes);
      parts.push_back(ConstByteSpan(bytes).subspan(static_cast<std::size_t>(i * kValueChunkBytes),
                                                   chunk_bytes));
      checksums.push_back(object_checksum(value_chunk_key(hash, count, i), {&parts.back(), 1}));
    }
    PutValues request;
    request.options = options;
    request.values.push_back({.key = key, .value_bytes = size, .checksums = checksums});
    std::vector<IncomingChunk> chunks = values_.reserve(request);
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      chunks[i].checksum = checksums[i];
      chunks[i].parts = std::span(&parts[i], 1);
      if (!chunks[i].slots.has_value()) continue;
      std::vector<ByteSpan> runs;
      chunks[i].slots->append_runs(runs);
      RunWriter(runs).put(parts[i]);
    }
    ICE_CO_TRY(const PutValuesReply reply, co_await values_.put(request, chunks));
    ICE_CO_TRY(reply.head.status);
    co_return reply.outcomes.back();
  }
  // The whole value, as it is sent; kDataLoss where a client would see that it is none.
  Task<Bytes> bytes_of(std::string key, bool scrub = false) {
    GetValues request;
    request.scrub = scrub;
    request.values.push_back({.key = key, .room = 16 * kMiB});
    ValueReads reads;
    ICE_CO_TRY(const ValueHead head, co_await values_.get(request, reads));
    ICE_CO_TRY(head.status);
    ICE_CO_TRY(reads.statuses.back());
    if (value_version(reads.checksums) != reads.versions.back()) {
      co_return Status(Code::kDataLoss, "chunks of several values");
    }
    Bytes bytes;
    for (const ConstByteSpan part : reads.payload) {
      bytes.insert(bytes.end(), part.begin(), part.end());
    }
    co_return bytes;
  }
  Task<> remove(std::string_view key) {
    ICE_CO_TRY(const ValueHead head, co_await values_.remove({}, std::span(&key, 1)));
    co_return head.status;
  }
  void use(const std::string& key) { ASSERT_TRUE(run(get(key)).ok()) << key; }

  asio::io_context io_;
  ManualClock clock_;
  FakeDisk disk_;
  std::unique_ptr<DramTier> memory_ =
      DramTier::open({.capacity_bytes = 4 * kMiB, .eviction = EvictionKind::kLru}, clock_).value();
  NodeValues values_{*memory_, &disk_, clock_, {.hard_pin_bytes = 3 * kMiB}};
};

}  // namespace icefield
