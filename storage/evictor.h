// storage/evictor.h — who leaves a tier next: what has expired, then whom the policy names; never
// what is in use, and no sooner than its pin ends.
#pragma once

#include <memory>

#include "storage/eviction_policy.h"
#include "storage/paged_vector.h"
#include "storage/tier.h"
#include "storage/time_queue.h"

namespace icefield {

// A pure state machine around a policy; ids and the order of calls as there. Every `now_ms` is
// Clock::unix_ms(). It takes 4 bytes an object beside the policy, about 40 more with a retention.
//
// Threads  One.
class Evictor {
 public:
  using Id = EvictionPolicy::Id;
  using Object = EvictionPolicy::Object;

  explicit Evictor(std::unique_ptr<EvictionPolicy> policy) : policy_(std::move(policy)) {}

  void expect(const Object& incoming) { policy_->expect(incoming); }
  void insert(Id id, const Object& object, const Retention& retention);
  void touch(Id id) { policy_->touch(id); }
  void erase(Id id);  // not in use
  void retain(Id id, const Retention& retention);
  // Also of one that was evicted or erased, until its id is used again.
  Retention retention(Id id) const { return retentions_.has(id) ? retentions_[id] : Retention(); }

  // Counted: in use from the first begin_use() to the last end_use().
  void begin_use(Id id);
  void end_use(Id id);
  bool in_use(Id id) const { return holds_[id].uses > 0; }

  // Takes out who should go; none when everything is in use or pinned.
  std::optional<Id> evict(std::int64_t now_ms);
  // Takes out one that has expired.
  std::optional<Id> evict_expired(std::int64_t now_ms);
  bool remembers(std::uint64_t name) const { return policy_->remembers(name); }

 private:
  struct Hold {
    std::uint32_t uses : 30 = 0;
    std::uint32_t pinned : 1 = false;
    std::uint32_t expired : 1 = false;  // its time came while it was in use
  };
  static_assert(sizeof(Hold) == 4);

  void update(Id id);

  const std::unique_ptr<EvictionPolicy> policy_;
  PagedVector<Hold> holds_;
  PagedVector<Retention> retentions_;  // has those that are something
  TimeQueue expiries_;
  TimeQueue pins_;  // those that end
};

}  // namespace icefield
