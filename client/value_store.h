// client/value_store.h — values under keys of an inference framework's choosing: put, get, exists,
// remove, list, flush.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/cancel_token.h"
#include "client/flush_numbers.h"
#include "client/nodes.h"
#include "common/rng.h"

namespace icefield {

struct CheckedValue;

// What every call says.
struct ValueCall {
  std::string_view name_space;  // tenants never share values; may be empty
  Deadline deadline = Deadline::never();
  // Gets end with kCancelled at once. All others end before their next request: what is on its way
  // still reads the caller's memory, and a write that is on its way happens.
  const CancelToken* cancel = nullptr;
  // Of reads: a value that is likely to take longer than this is a miss (not_worth_it) without
  // being asked for. Zero: read whatever it takes.
  std::chrono::microseconds recompute_estimate{0};
};

struct ValueToPut {
  std::string_view key;                  // 1 to 1 024 bytes
  std::span<const ConstByteSpan> parts;  // gathered; together at most 1 GiB
};

// A whole value, which must fit into `room`, or of a range, of at most 1 GiB, as much as there is.
struct ValueToGet {
  std::string_view key;
  std::int64_t room = 0;
  std::optional<std::int64_t> range_begin = std::nullopt;  // then [range_begin, + room)
};
// The same, scattered into the caller's memory.
struct ValueInto {
  std::string_view key;
  ByteSpan into;
  std::optional<std::int64_t> range_begin = std::nullopt;
};

// The values of a batch, in memory that the batch owns.
struct ValueBatch {
  std::vector<Result<ConstByteSpan>> values;  // one per item
  std::vector<Buffer> memory;
};

// Values are immutable: whoever puts a key again learns that it is there already. A value lives
// with one node, by rendezvous hashing of its key hash; batches go to their nodes side by side.
//
// What is read has been hashed here, end to end, and is what was put; or it is kNotFound with a
// reason, and the caller recomputes. Nodes that do not answer are not asked for a while (a circuit
// breaker per node): then reads are misses (node_down) at once.
//
// Keys, parts and memory that a call points at must stay in place until it returns. Buffers are
// leases: a call that fails does not give its own back.
//
// Threads  Any executor; calls may run side by side. The executor outlives calls that were
//          cancelled.
// Errors   kInvalidArgument: keys, values, targets of wrong sizes. kDeadlineExceeded, kCancelled.
//          Reads: kNotFound otherwise. Writes: kResourceExhausted (no room, pin quota),
//          kUnavailable (node down, or another client is writing the value), kFailedPrecondition
//          (durable, and the node has no disk).
class ValueStore {
 public:
  struct Options {
    // Payload of one request; larger values and batches are split. Whole chunks, at most
    // kMaxRequestBytes.
    std::int64_t request_bytes = 16 << 20;
  };
  ValueStore(const Clock& clock, Rng& rng, Nodes& nodes, Options options);

  Task<PutOutcome> put(std::string_view key, ConstByteSpan value, PutOptions options,
                       ValueCall call);
  // One outcome per value.
  Task<std::vector<Result<PutOutcome>>> put_batch(std::vector<ValueToPut> values,
                                                  PutOptions options, ValueCall call);

  // The whole value in `into`, whose capacity must hold it.
  Task<Buffer> get(std::string_view key, Buffer into, ValueCall call);
  // As much of [begin, begin + length) as there is.
  Task<Buffer> get_range(std::string_view key, std::int64_t begin, std::int64_t length,
                         ValueCall call);
  Task<ValueBatch> get_batch(std::vector<ValueToGet> items, ValueCall call);
  // Gives back how many bytes of each came.
  Task<std::vector<Result<std::int64_t>>> get_into(std::vector<ValueInto> items, ValueCall call);

  // The size of each value that is there, or why it is not.
  Task<std::vector<Result<std::int64_t>>> exists(std::vector<std::string_view> keys,
                                                 ValueCall call);
  // One status per key; ok for keys that were not there, too.
  Task<std::vector<Status>> remove(std::vector<std::string_view> keys, ValueCall call);

  // All keys of a namespace that start with `prefix`, sorted, at most `limit`. The first error when
  // a node does not answer.
  Task<std::vector<ListedValue>> list(std::string prefix, std::int64_t limit, ValueCall call);
  // Makes every value of the namespace unreachable, everywhere: from the first node that answers
  // on, as each node learns of it from whoever asks next. Gives back the new flush number.
  Task<std::uint64_t> flush(ValueCall call);

  const FlushNumbers& flush_numbers() const { return flush_numbers_; }

 private:
  struct Fetch;
  struct KeyPart;
  struct Puts;
  struct PutProgress;
  struct PutPart;

  // Reading (value_store_read.cc).
  asio::awaitable<void> fetch(Fetch& fetch);
  asio::awaitable<void> fetch_from(Fetch& fetch, std::size_t node);
  asio::awaitable<void> fetch_part(Fetch& fetch, std::size_t node, std::vector<std::size_t> items,
                                   bool scrub);
  static Task<GetValuesReply> ask(ClusterNode& node, GetValues request, Buffer into,
                                  std::shared_ptr<ValueArrival> arrival, ValueCall call);
  Task<Buffer> read_run(std::shared_ptr<const NodesView> nodes, ValueToGet item, Buffer into,
                        ValueCall call);
  Task<> read_rest(std::shared_ptr<const NodesView> nodes, ValueToGet item, std::int64_t have,
                   CheckedValue first, Buffer& into, ValueCall call);

  // Writing.
  asio::awaitable<void> put_to(Puts& puts, std::size_t node);
  void plan_part(const Puts& puts, std::size_t node, PutProgress& progress, PutPart& part) const;
  asio::awaitable<void> put_part(Puts& puts, std::size_t node, PutProgress& progress);

  // Small requests: keys by node, as many as a request names.
  std::vector<KeyPart> parts_of(const NodesView& nodes, std::span<const std::string_view> keys,
                                const ValueCall& call) const;
  template <class Ask>
  asio::awaitable<void> ask_owners(std::span<const std::string_view> keys, const ValueCall& call,
                                   Ask ask);
  asio::awaitable<void> find_part(ClusterNode& node, KeyPart part, const ValueCall& call,
                                  std::vector<Result<std::int64_t>>& sizes, bool& stale);
  asio::awaitable<void> remove_part(ClusterNode& node, KeyPart part, const ValueCall& call,
                                    std::vector<Status>& statuses, bool& stale);
  ValueScope scope_of(const ValueCall& call) const;
  // Whether `head` says that the flush number was behind; it is known now.
  bool was_stale(const ValueHead& head, const ValueCall& call);

  const Options options_;
  const Clock& clock_;
  Nodes& nodes_;
  FlushNumbers flush_numbers_;
  std::atomic<std::uint64_t> next_upload_;  // starts at random: clients never share one
};

}  // namespace icefield
