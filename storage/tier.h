// storage/tier.h — a place that keeps objects: the interface of DRAM and NVMe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/task.h"

namespace icefield {

// How long an object is kept. Wall time, as Clock::unix_ms().
struct Retention {
  static constexpr std::int64_t kForever = INT64_MAX;

  std::int64_t expires_at_ms = 0;    // from then on a miss, pinned or not; 0: does not expire
  std::int64_t pinned_until_ms = 0;  // not evicted before; kForever: until removed
  friend bool operator==(const Retention&, const Retention&) = default;
};

struct ObjectInfo {
  std::int64_t bytes = 0;      // below 4 GiB
  std::uint64_t checksum = 0;  // object_checksum() of common/ids.h
  Retention retention;
  // The same bytes; how long they are kept is no part of what they are.
  friend bool operator==(const ObjectInfo& a, const ObjectInfo& b) {
    return a.bytes == b.bytes && a.checksum == b.checksum;
  }
};

// A lease on the bytes of a stored object: they stay in place and unchanged while it lives.
class ObjectBytes {
 public:
  // `owner` keeps the memory of `pieces`; destroying it gives the memory back.
  ObjectBytes(std::vector<ConstByteSpan> pieces, std::shared_ptr<const void> owner)
      : pieces_(std::move(pieces)), owner_(std::move(owner)) {}
  ObjectBytes(ObjectBytes&&) = default;
  ObjectBytes& operator=(ObjectBytes&&) = default;

  std::span<const ConstByteSpan> pieces() const { return pieces_; }
  std::int64_t size() const;
  // Where `count` bytes from `offset` on are, when they stand in one piece; else null.
  const std::byte* find(std::int64_t offset, std::int64_t count) const;
  Bytes copy() const;
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  std::vector<ConstByteSpan> pieces_;
  std::shared_ptr<const void> owner_;
};

enum class PutOutcome { kStored, kAlreadyThere };

// Who checks the bytes of a get: the tier against the stored checksum, or the caller, who holds
// checks of its own (a worker has one per row).
enum class Verify { kByTier, kByCaller };

struct TierUsage {
  std::string name;
  std::int64_t object_count = 0;
  std::int64_t used_bytes = 0;
  std::int64_t capacity_bytes = 0;  // 0: not limited
};

// Objects are immutable: a second put of a key changes nothing. A tier that does not copy to stable
// storage calls flush() a success.
//
// Threads  One shard: all calls and the ends of leases on its thread, unless a tier says more.
// Errors   put: kResourceExhausted when there is no room and nothing may be evicted, or the device
//          cannot keep up; kInvalidArgument for 4 GiB and more; kInternal from the device. get:
//          kNotFound (never stored; expired; evicted, when the tier remembers), kDataLoss when the
//          bytes do not have the stored checksum: the object is then dropped.
class Tier {
 public:
  virtual ~Tier() = default;

  // Stores a copy of `pieces`, which together are info.bytes long.
  virtual Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) = 0;
  virtual Task<ObjectBytes> get(ObjectKey key, Verify verify) = 0;
  // Ok also when the object was not there.
  virtual Task<> remove(ObjectKey key) = 0;
  // Everything put before is synced and survives a kill once this returns ok. No test cuts the
  // power.
  virtual Task<> flush() = 0;
  // From now on `key` is kept like this. kNotFound when it is not there.
  virtual Task<> retain(ObjectKey key, Retention retention) = 0;

  // What has expired is not found.
  virtual std::optional<ObjectInfo> find(const ObjectKey& key) const = 0;
  // In no particular order; `visit` must not change the tier.
  virtual void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const = 0;
  virtual TierUsage usage() const = 0;
};

// kInvalidArgument when `info` cannot describe an object.
Status check_info(const ObjectInfo& info);

// Ok when the bytes have the checksum that `key` and `info` ask for, else kDataLoss.
Status verify_object(const ObjectKey& key, const ObjectInfo& info,
                     std::span<const ConstByteSpan> pieces);

// The operating system's, for tiers that were given no other.
const Clock& system_clock();

}  // namespace icefield
