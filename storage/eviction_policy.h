// storage/eviction_policy.h — which object leaves when a tier is full: LRU and ARC.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "common/status.h"

namespace icefield {

// A pure state machine: it knows objects by small ids that the tier chooses (dense, reused after
// evict() or erase()), does no I/O and never allocates per object but in pages. To store an object
// the tier says expect(), takes evict() until there is room, and then says insert().
//
// Threads  One.
class EvictionPolicy {
 public:
  using Id = std::uint32_t;
  static constexpr std::uint32_t kMaxWeight = (1u << 29) - 1;
  struct Object {
    std::uint64_t name = 0;    // a hash of its key: how the policy knows it again after eviction
    std::uint32_t weight = 1;  // what it takes of the tier, in the tier's unit: slots or blocks
  };

  virtual ~EvictionPolicy() = default;

  // `incoming` will be inserted: what was learned from its earlier life decides who makes room.
  virtual void expect(const Object& incoming) = 0;
  virtual void insert(Id id, const Object& object) = 0;
  virtual void touch(Id id) = 0;  // it was used
  virtual void erase(Id id) = 0;  // it was removed, which says nothing about its worth
  // Objects that are not evictable (read at the moment, pinned) are passed over. One that becomes
  // evictable again after it was passed over is the next to go.
  virtual void set_evictable(Id id, bool evictable) = 0;
  // Takes out the object that should go; none when nothing is evictable.
  virtual std::optional<Id> evict() = 0;
  // Whether an object of this name was evicted not long ago, as far as the policy knows.
  virtual bool remembers(std::uint64_t name) const = 0;
};

enum class EvictionKind { kLru, kArc };
std::string_view to_string(EvictionKind kind);  // "lru", "arc"
Result<EvictionKind> parse_eviction_kind(std::string_view text);

// LRU keeps one list. ARC (Megiddo & Modha, FAST '03) keeps objects used once and objects used
// again apart and remembers the names of about as many evicted ones ("ghosts"), from whose return
// it learns how much room either kind deserves; objects that are used once cannot flush those that
// are used again. It is generalized to weights: with unit weights it is ARC to the letter (integer
// steps). Per object LRU takes 16 bytes; ARC the same, and 26 to 29 per ghost, of which there are
// never more than there have been objects.
//
// `capacity` is the sum of weights that the tier holds.
std::unique_ptr<EvictionPolicy> make_eviction_policy(EvictionKind kind, std::int64_t capacity);

}  // namespace icefield
