// cache_node/node_values.h — the values that a node holds: what they are called, how long they
// stay, and why those that are gone are gone.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cache_node/miss_memory.h"
#include "cache_node/value_messages.h"
#include "cache_node/value_records.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/task_scope.h"
#include "storage/dram_tier.h"

namespace icefield {

// Bytes of a batch of gets, in place: `payload` lies in slots that `leases` hold.
struct ValueReads : ValueFacts {
  std::vector<ConstByteSpan> payload;
  std::int64_t payload_bytes = 0;
  std::vector<std::shared_ptr<const void>> leases;
  std::int64_t leased_bytes = 0;  // whole slots of whole chunks

  void reserve(std::size_t values);
  void append(ValueReads&& more);
};

// A chunk of a put, whose bytes come before the put itself.
struct IncomingChunk {
  ObjectKey key;
  std::int64_t bytes = 0;
  std::optional<DramTier::Reservation> slots;  // none: see NodeValues::reserve(), or no room
  std::span<const ConstByteSpan> parts;        // where it is: in the slots, else anywhere
  std::uint64_t checksum = 0;                  // of the bytes that came
};

// A value is a set of chunks in the tiers and one entry here. It counts from the moment all of its
// chunks are stored and is dropped as a whole: nothing is kept that cannot be used. Values live in
// memory; they go to disk when they are put durably, or on evidence of reuse: once they have been
// read often enough (Options::disk_after_hits), or when they are put again after they were evicted.
// Such values are copied in the background as soon as memory is half full, the longest known first,
// a few at a time, so that what is evicted is on disk already and eviction never waits for it. On
// disk the name of a value is its commit, so a restart reads the catalog only, and names when they
// are first needed.
//
// What is left of values that are gone is removed in the background: nobody waits for the disk to
// let go of what others dropped. Who puts or removes a key waits for what is left under that key.
//
// How long a value is kept goes with its objects into the tiers, which evict accordingly and keep
// it in the catalog of the disk. Here it says when to forget a value, and which soft pin is first.
//
// Ownership  Borrows its tiers. stop() before the destructor.
// Threads    The tiers' shard.
// Errors     Per item. put: kInvalidArgument, kResourceExhausted (no room, pin quota),
//            kUnavailable (another client is writing it), kDataLoss (damaged on the way),
//            kFailedPrecondition (durable without a disk). Reads: kNotFound with the reason.
class NodeValues {
 public:
  static constexpr std::int16_t kManyHits = INT16_MAX;
  struct Options {
    std::int64_t hard_pin_bytes = 0;                // quota
    std::int32_t disk_after_hits = 1;               // at most kManyHits: no more are counted
    std::chrono::milliseconds upload_idle{10'000};  // then others may put the value
  };

  NodeValues(DramTier& memory, Tier* disk, const Clock& clock, Options options);

  // What the disk holds. Once, before anything else.
  Task<> recover();
  // Waits for what is under way in the background, for removals no longer than a second; nothing
  // may be asked afterwards.
  Task<> stop();

  // Room for the chunks of `request`, in order, before their bytes come: neither parts nor
  // checksum are set. A value counts only once put() says so. What put() would refuse, or has
  // already, gets none, so that nothing is evicted for it. Nor does what is put durably, where
  // clients may write into memory: the disk must get the bytes that were verified.
  std::vector<IncomingChunk> reserve(const PutValues& request);
  // The same, where their sender has put them already: each from the start of a slot on. Slots that
  // are left come back. kInvalidArgument when there are too few.
  static Result<std::vector<IncomingChunk>> adopt(const PutValues& request,
                                                  DramTier::Reservation slots);
  // Slots for that, before anybody knows of what. Errors as DramTier's. Then start_removing().
  Result<DramTier::Reservation> reserve_slots(std::int64_t bytes) {
    return memory_.reserve_slots(memory_.slots_of(bytes));
  }
  // That so many bytes take.
  std::int64_t slots_bytes(std::int64_t bytes) const {
    return memory_.slots_of(bytes) * memory_.slot_bytes();
  }
  // Takes the slots of chunks that came as they were sent. The parts of the request are not looked
  // at: what counts are those of `chunks`.
  Task<PutValuesReply> put(const PutValues& request, std::span<IncomingChunk> chunks);
  // Appends to `reads` in the order of the request.
  Task<ValueHead> get(const GetValues& request, ValueReads& reads);
  Task<FoundValues> find(ValueScope scope, std::span<const std::string_view> keys);
  // Ok for keys that were not there, too.
  Task<ValueHead> remove(ValueScope scope, std::span<const std::string_view> keys);
  Task<ListedValues> list(ValueScope scope, std::string_view prefix, std::string_view after,
                          std::int64_t limit);
  // Every request that knows a higher flush number than we do drops the namespace; this one must,
  // or is kAborted. Gives back how many values were dropped.
  Task<std::int64_t> flush(ValueScope scope, ValueHead& head);

  // Begins to remove what is left of values that are gone, unless that is under way. Whoever put
  // something into memory calls it. What the disk does not let go now is tried again with the next
  // call.
  void start_removing();
  // A chunk left memory. Calls no tier, and neither does the other.
  void note_evicted(const ObjectKey& chunk);
  // A chunk or name left the disk.
  void note_disk_evicted(const ObjectKey& key);
  void add_stats(NodeStats& stats) const;
  std::vector<const Counter*> counters() const;

  Counter puts{"icefield_cache_node_value_puts_total", "values stored"};
  Counter put_bytes{"icefield_cache_node_value_put_bytes_total", "bytes of values stored"};
  Counter already_there{"icefield_cache_node_value_already_there_total", "puts that were no-ops"};
  Counter hits{"icefield_cache_node_value_hits_total", "values read"};
  Counter hit_bytes{"icefield_cache_node_value_hit_bytes_total", "bytes of values read"};
  Counter misses{"icefield_cache_node_value_misses_total", "values asked for and not there"};
  Counter disk_reads{"icefield_cache_node_value_disk_reads_total", "chunks read from disk"};
  Counter copied_to_disk{"icefield_cache_node_value_copied_to_disk_total",
                         "values copied to disk because they were used again"};
  Counter copies_refused{"icefield_cache_node_value_copies_refused_total",
                         "copies given up: too many were waiting, or the disk could not keep up"};
  Counter copies_late{"icefield_cache_node_value_copies_late_total",
                      "values used again that left memory before their copy was made"};
  Counter evicted{"icefield_cache_node_value_evicted_total", "values lost to eviction"};
  Counter expired{"icefield_cache_node_value_expired_total", "values whose time was over"};
  Counter damaged{"icefield_cache_node_value_damaged_total", "values dropped: wrong checksum"};

 private:
  struct Namespace {
    explicit Namespace(std::string_view name_in)
        : name(name_in), seed(xxh3(as_bytes(name_in), 0)) {}

    const std::string name;
    std::uint64_t flush_number = 0;
    const std::uint64_t seed;  // of fingerprints in the miss memory
    std::int64_t value_count = 0;
    std::int64_t value_bytes = 0;
  };
  struct Name {
    Namespace* space = nullptr;
    std::string key;
  };
  struct Value {
    std::int32_t bytes = 0;
    std::int16_t hits = 0;  // up to kManyHits
    bool on_disk = false;   // all of it
    bool copying = false;   // or waiting for it
    Retention retention;    // its objects'
    std::uint64_t version = 0;
    std::unique_ptr<Name> name;  // null: on disk, not read yet
  };
  static_assert(sizeof(Value) == 40 && kMaxValueBytes <= INT32_MAX);
  using Values = std::unordered_map<ValueHash, Value, Hash128Hasher>;
  using Leases = std::vector<std::shared_ptr<const void>>;
  // A value whose chunks are still coming.
  struct Upload {
    std::uint64_t number = 0;
    std::int64_t bytes = 0;
    Retention retention;
    Clock::TimePoint used;
    std::vector<std::uint64_t> checksums;
    std::vector<bool> stored;  // per chunk
    std::int64_t missing = 0;  // chunks
    Leases leases;             // so that its chunks do not evict each other
  };
  // What is left of a value that is gone.
  struct Remains {
    std::int64_t chunk_count = 0;
    bool going = false;  // being removed
  };
  using ByTime = std::set<std::pair<std::int64_t, ValueHash>>;  // the first is due first

  // Namespaces and flush numbers. enter() gives null when `head.status` says why.
  asio::awaitable<Namespace*> enter(ValueScope scope, ValueHead& head);
  static ValueHead behind(std::uint64_t asked, const Namespace& space);
  static Status check_flush_number(std::uint64_t asked, std::uint64_t known);
  // The same for requests that put nothing: a namespace that nobody has put into or flushed is not
  // made for them. They get `nobody`, which holds nothing and is theirs.
  asio::awaitable<const Namespace*> enter_to_read(ValueScope scope, ValueHead& head,
                                                  Namespace& nobody);
  Result<Namespace*> space_of(std::string_view name);
  Task<> raise(Namespace& space, std::uint64_t flush_number);
  Task<> store_namespace(NamespaceRecord record, std::uint64_t before);
  std::uint64_t fingerprint(const Namespace& space, std::string_view key) const;

  // What runs in the background runs where the first request does.
  void settle_in(const asio::any_io_executor& executor);

  // Putting.
  bool over_quota(std::int64_t value_bytes, const PutOptions& options) const;
  bool hopeless(const PutValues& request) const;
  bool worth_room(const ValueHash& hash, const PutValue& item, const PutValues& request) const;
  static std::vector<IncomingChunk> chunks_of(const PutValues& request);
  // What one request has put: leased until all of it is, so that the values of a batch do not evict
  // each other, as long as what all batches lease together is a small part of memory.
  struct Batch {
    Leases leases;
    std::int64_t bytes = 0;
  };
  Task<PutOutcome> put_one(Namespace& space, const PutValue& item, const PutValues& request,
                           std::span<IncomingChunk> chunks, Batch& batch);
  Task<bool> is_there(const Namespace& space, std::string_view key, const ValueHash& hash,
                      bool durable);
  Task<PutOutcome> put_new(Namespace& space, const ValueHash& hash, const PutValue& item,
                           const PutValues& request, std::span<IncomingChunk> chunks, Batch& batch);
  Task<> store_chunks(const ValueHash& hash, const PutValue& item, const PutValues& request,
                      std::span<IncomingChunk> chunks);
  Task<> store_late(IncomingChunk& chunk, ObjectInfo info, WriteLevel level);
  Result<Upload*> upload_of(const ValueHash& hash, const PutValue& item, const PutValues& request);
  void complete(Namespace& space, const ValueHash& hash, std::string_view key, WriteLevel level,
                Batch& batch);
  void note_retention(const ValueHash& hash, const Value& value);
  void forget_retention(const ValueHash& hash, const Value& value);
  bool is_over(const Value& value) const;  // expired
  // Whether something gave way to what has no room in memory.
  Task<bool> free_memory();
  Task<bool> release_soft_pin();
  bool drop_idle_upload();

  // Reading. What is in memory is read at once; a coroutine per step is what a batch of small
  // values would otherwise spend its time with.
  struct Wanted {
    GetValue item;
    ValueHash hash;
    bool scrub = false;
  };
  // A run of a value: [item.offset, end) in the chunks [first, stop).
  struct Run {
    std::int64_t value_bytes = 0;
    std::uint64_t version = 0;
    std::int64_t end = 0;
    std::int64_t first = 0;
    std::int64_t stop = 0;
  };
  bool in_memory(const Wanted& wanted) const;
  // Gives back how much work it was, in bytes that were looked at.
  std::int64_t read_now(const Namespace& space, const Wanted& wanted, ValueReads& reads);
  // `reply_bytes` are the whole reply's.
  asio::awaitable<void> read_later(const Namespace& space, const Wanted& wanted,
                                   std::int64_t& reply_bytes, ValueReads& reads);
  Status read_from_memory(const Wanted& wanted, const Run& run, std::vector<ObjectBytes>& chunks);
  Task<> read_from_tiers(Wanted wanted, Run run, std::vector<ObjectBytes>& chunks);
  static Result<Run> run_of(const Value& value, const Wanted& wanted, std::int64_t reply_bytes);
  void finish_read(const Namespace& space, const Wanted& wanted, const Run& run, Status read,
                   std::span<const ObjectBytes> chunks, ValueReads& reads);
  void append_chunks(const Wanted& wanted, const Run& run, std::span<const ObjectBytes> chunks,
                     ValueReads& reads) const;
  bool mixed(const ValueHash& hash, const Run& run) const;
  void fail_read(Status status, ValueReads& reads);
  // Known, with its name, and not over. live_now() only where the name needs no disk.
  Task<Value*> live(const Namespace& space, std::string_view key, const ValueHash& hash);
  Result<Value*> live_now(const Namespace& space, std::string_view key, const ValueHash& hash);
  bool nameless(const ValueHash& hash) const;

  // Disk.
  void note_use(const ValueHash& hash, Value& value);
  void start_copies();
  bool memory_fills() const;
  asio::awaitable<void> make_copies();
  // A stay in to_disk_. Whoever ends one looks whether the value is still there, or dooms what has
  // arrived.
  class ToDisk {
   public:
    ToDisk(NodeValues& values, const ValueHash& hash) : values_(values), hash_(hash) {
      if (values_.disk_ != nullptr) values_.to_disk_.insert(hash_);
    }
    ~ToDisk() {
      if (values_.disk_ != nullptr) values_.to_disk_.erase(values_.to_disk_.find(hash_));
    }
    ToDisk(const ToDisk&) = delete;

   private:
    NodeValues& values_;
    const ValueHash hash_;
  };
  Task<> copy_to_disk(ValueHash hash);
  Task<> copy_chunks(const ValueHash& hash, std::int64_t chunk_count);
  Task<> store_name(ValueHash hash);
  Task<> load_name(ValueHash hash);
  Task<> load_names();
  std::optional<Value> value_on_disk(const ValueHash& hash, std::int64_t chunk_count) const;
  Task<> recover_namespaces(std::vector<ObjectKey> records);

  // Dropping: the entry at once, its chunks later. unlist() when none is left.
  void drop(Values::iterator value, MissReason reason);
  void unlist(Values::iterator value, MissReason reason);
  void drop_upload(const ValueHash& hash);
  void doom(const ValueHash& hash, std::int64_t chunk_count);
  asio::awaitable<void> remove_doomed();
  Task<> remove_first(std::deque<ValueHash>& from);
  // But for what another removes right now. Errors: the disk's.
  Task<> remove_remains(ValueHash hash);
  Task<> remove_chunks(ValueHash hash, std::int64_t chunk_count);
  bool erase_from_memory(const ValueHash& hash, std::int64_t chunk_count);
  bool out_of_time() const { return stop_at_.has_value() && clock_.now() >= *stop_at_; }
  void expire_due();

  std::optional<ObjectInfo> find_chunk(const ObjectKey& key) const;
  Status miss(const Namespace& space, std::string_view key) const;

  DramTier& memory_;
  Tier* const disk_;
  const Clock& clock_;
  const Options options_;
  std::map<std::string, std::unique_ptr<Namespace>, std::less<>> spaces_;
  Values values_;
  std::unordered_map<ValueHash, Upload, Hash128Hasher> uploads_;
  std::int64_t hard_pinned_bytes_ = 0;
  std::int64_t batched_bytes_ = 0;  // of all batches
  ByTime soft_pins_;
  ByTime expiries_;
  std::unordered_multimap<ValueHash, Remains, Hash128Hasher> remains_;
  std::deque<ValueHash> doomed_;  // with remains, or there were some
  std::deque<ValueHash> stuck_;   // those that the disk did not remove when it was asked
  // Bytes of them are on their way to disk, for a value that may be gone before they arrive: nobody
  // begins another under its key until then.
  std::unordered_multiset<ValueHash, Hash128Hasher> to_disk_;
  std::int64_t nameless_count_ = 0;
  MissMemory missed_;
  std::deque<ValueHash> to_copy_;  // to disk; bounded
  // Under way.
  std::optional<TaskScope> copies_;
  std::optional<TaskScope> removal_;
  std::optional<Clock::TimePoint> stop_at_;  // then nothing more is removed
};

}  // namespace icefield
