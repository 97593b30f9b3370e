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

#include "common/ids.h"
#include "common/task.h"

namespace icefield {

struct ObjectInfo {
  std::int64_t bytes = 0;
  std::uint64_t checksum = 0;  // object_checksum() of common/ids.h
  friend bool operator==(const ObjectInfo&, const ObjectInfo&) = default;
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
// Errors   put: kResourceExhausted when there is no room and nothing may be evicted; kInternal from
//          the device. get: kNotFound (never stored, or evicted when the tier remembers),
//          kDataLoss when the bytes do not have the stored checksum: the object is then dropped.
class Tier {
 public:
  virtual ~Tier() = default;

  // Stores a copy of `pieces`, which together are info.bytes long.
  virtual Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) = 0;
  virtual Task<ObjectBytes> get(ObjectKey key, Verify verify) = 0;
  // Ok also when the object was not there.
  virtual Task<> remove(ObjectKey key) = 0;
  // Everything put before survives a kill and a power cut once this returns ok.
  virtual Task<> flush() = 0;

  virtual std::optional<ObjectInfo> find(const ObjectKey& key) const = 0;
  // In no particular order; `visit` must not change the tier.
  virtual void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const = 0;
  virtual TierUsage usage() const = 0;
};

// Ok when the bytes have the checksum that `key` and `info` ask for, else kDataLoss.
Status verify_object(const ObjectKey& key, const ObjectInfo& info,
                     std::span<const ConstByteSpan> pieces);

}  // namespace icefield
