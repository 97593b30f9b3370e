// storage/dram_tier.h — objects in host memory: slots of one slab, evicted by a policy.
#pragma once

#include <unordered_set>
#include <vector>

#include "common/metrics.h"
#include "storage/evictor.h"
#include "storage/object_table.h"
#include "storage/tier.h"

namespace icefield {

// The slab is mapped once, in open(), and touched by the operating system as it is used; or it is
// somebody else's, a transport's region. An object is a chain of slots, so memory never fragments
// and any object can take the place of any other; slots that follow each other in the slab are one
// piece, and mostly they do: those of an object come back in the order in which they were taken,
// and what came back first is taken first. A row may cross the end of a slot (of 384 bytes every
// 43rd). Beyond its slots an object costs about 120 bytes, and finding, storing and evicting one
// cost the same in a tier of any size.
//
// Ownership  The tier owns the slab unless it was given one; an ObjectBytes pins its object. The
//            tier must outlive its leases (checked in the destructor).
// Threads    One shard.
class DramTier final : public Tier {
 public:
  struct Options {
    std::int64_t capacity_bytes = 0;      // rounded down to whole slots
    std::int64_t slot_bytes = 16 * 1024;  // multiple of 4096
    EvictionKind eviction = EvictionKind::kArc;
    // The slab, when it is not the tier's own: then capacity_bytes is not asked for. It must
    // outlive the tier.
    ByteSpan memory = {};

    Status validate() const;
  };

  // Room for an object that is on its way: the memory is the holder's until store() takes it, or
  // comes back with the reservation. The tier must outlive it.
  class Reservation;

  static Result<std::unique_ptr<DramTier>> open(Options options,
                                                const Clock& clock = system_clock());
  ~DramTier() override;

  // `notify` is called after an object was evicted to make room. It must not call the tier.
  void on_evict(std::function<void(const ObjectKey&)> notify) { on_evict_ = std::move(notify); }

  // Errors as put(), which is reserve(), a copy and store(); and kResourceExhausted, with nothing
  // evicted, when all reservations together would hold more than a quarter of the tier.
  Result<Reservation> reserve(const ObjectKey& key, std::int64_t bytes);
  // Of so many slots, for objects that are not known yet: Reservation::split() gives them theirs.
  Result<Reservation> reserve_slots(std::int64_t slots);
  // The bytes are in place. kAlreadyThere when somebody else was faster.
  Result<PutOutcome> store(Reservation reserved, const ObjectInfo& info);
  // As get() and remove(), at once. Whether the object was there.
  Result<ObjectBytes> read(const ObjectKey& key, Verify verify);
  bool erase(const ObjectKey& key);

  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override;
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override { co_return read(key, verify); }
  Task<> remove(ObjectKey key) override;
  Task<> flush() override;
  Task<> retain(ObjectKey key, Retention retention) override;
  std::optional<ObjectInfo> find(const ObjectKey& key) const override;
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override;
  TierUsage usage() const override;

  // The bytes of an object, kept in place, which is no use of it; none when it is not there.
  std::optional<ObjectBytes> lease(const ObjectKey& key);

  // The slab is a region: others may write there, whatever stands in it.
  bool shared() const { return !options_.memory.empty(); }
  // What an object takes at least, and a multiple of.
  std::int64_t slot_bytes() const { return options_.slot_bytes; }
  std::int64_t slots_of(std::int64_t bytes) const;
  // The slab, for registration with a transport, and for tests that damage it.
  ByteSpan memory() { return slab_; }

  Counter evicted{"icefield_storage_dram_evicted_objects_total", "objects evicted to make room"};
  Counter expired{"icefield_storage_dram_expired_objects_total", "objects dropped at their time"};
  Counter damaged{"icefield_storage_dram_damaged_objects_total", "objects dropped: wrong checksum"};

 private:
  using Id = Evictor::Id;
  static constexpr std::uint32_t kNoSlot = 0xffffffff;
  struct Entry {
    ObjectKey key;
    std::uint32_t bytes = 0;
    std::uint32_t first_slot = kNoSlot;
    std::uint64_t checksum = 0;
  };
  static_assert(sizeof(Entry) == 56);

  DramTier(Options options, const Clock& clock, ByteSpan slab);

  ByteSpan slot(std::uint32_t index) const;
  ObjectInfo info_of(Id id) const;
  bool alive(Id id) const;
  // Found and not expired.
  std::optional<Id> find_alive(const ObjectKey& key, std::uint64_t name) const;
  std::vector<ConstByteSpan> pieces_of(const Entry& entry) const;
  // The slots of an object of so many bytes, those in a row as one.
  template <class Span>
  void append_runs(std::uint32_t first_slot, std::int64_t bytes, std::vector<Span>& runs) const;
  bool drop_expired(const ObjectKey& key, std::uint64_t name);
  Status check_share(std::int64_t slots) const;
  Result<Reservation> take(const ObjectKey& key, std::int64_t bytes);
  ObjectBytes lease(Id id);
  Status make_room(std::int64_t slots);
  std::uint32_t take_slots(std::int64_t count);
  void drop(Id id);  // gives the slots back, now or with the last lease
  void give_slots_back(std::uint32_t first, std::int64_t count);
  void release(Id id);
  void end_lease(Id id);

  const Options options_;
  const Clock& clock_;
  std::function<void(const ObjectKey&)> on_evict_;
  const ByteSpan slab_;
  const std::int64_t slot_count_;
  ObjectTable<Entry> objects_;
  Evictor evictor_;
  std::unordered_set<Id> doomed_;         // removed while in use: they end with their last lease
  std::vector<std::uint32_t> next_slot_;  // of the object, or of the free ones
  std::uint32_t first_free_ = kNoSlot;
  std::uint32_t last_free_ = kNoSlot;  // of the chain that begins there
  std::int64_t free_count_ = 0;
  std::int64_t reserved_count_ = 0;  // slots
  int leases_ = 0;
};

class DramTier::Reservation {
 public:
  Reservation(Reservation&& other) noexcept
      : tier_(std::exchange(other.tier_, nullptr)),
        key_(other.key_),
        bytes_(other.bytes_),
        first_slot_(other.first_slot_) {}
  Reservation& operator=(Reservation&& other) noexcept {
    std::swap(tier_, other.tier_);
    std::swap(key_, other.key_);
    std::swap(bytes_, other.bytes_);
    std::swap(first_slot_, other.first_slot_);
    return *this;
  }
  ~Reservation();

  const ObjectKey& key() const { return key_; }
  std::int64_t slot_count() const { return tier_->slots_of(bytes_); }
  // Appends where the object goes: not initialised, together as long as it is.
  void append_runs(std::vector<ByteSpan>& runs) const;
  // The slots in front, for an object; none when there are too few. What is left is shorter.
  std::optional<Reservation> split(const ObjectKey& key, std::int64_t bytes);

 private:
  friend class DramTier;
  Reservation(DramTier& tier, const ObjectKey& key, std::int64_t bytes, std::uint32_t first_slot)
      : tier_(&tier), key_(key), bytes_(bytes), first_slot_(first_slot) {}

  DramTier* tier_;  // null: moved away, split, or stored
  ObjectKey key_;
  std::int64_t bytes_;
  std::uint32_t first_slot_;
};

}  // namespace icefield
