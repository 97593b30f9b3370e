#include "storage/evictor.h"

#include "common/check.h"

namespace icefield {

void Evictor::insert(Id id, const Object& object, const Retention& retention) {
  holds_.reach(id);
  holds_[id] = {};
  policy_->insert(id, object);
  retain(id, retention);
}

void Evictor::erase(Id id) {
  ICE_CHECK(holds_[id].uses == 0);
  policy_->erase(id);
  expiries_.erase(id);
  pins_.erase(id);
}

void Evictor::retain(Id id, const Retention& retention) {
  expiries_.erase(id);
  pins_.erase(id);
  if (retention != Retention()) retentions_.reach(id);
  if (retentions_.has(id)) retentions_[id] = retention;
  if (retention.expires_at_ms != 0) expiries_.set(id, retention.expires_at_ms);
  const std::int64_t until = retention.pinned_until_ms;
  if (until != 0 && until != Retention::kForever) pins_.set(id, until);
  holds_[id].pinned = until != 0;
  holds_[id].expired = false;
  update(id);
}

void Evictor::begin_use(Id id) {
  if (++holds_[id].uses == 1) update(id);
}

void Evictor::end_use(Id id) {
  Hold& hold = holds_[id];
  ICE_CHECK(hold.uses > 0);
  if (--hold.uses > 0) return;
  if (hold.expired) expiries_.set(id, 0);
  update(id);
}

void Evictor::update(Id id) {
  policy_->set_evictable(id, holds_[id].uses == 0 && !holds_[id].pinned);
}

std::optional<Evictor::Id> Evictor::evict_expired(std::int64_t now_ms) {
  while (!expiries_.empty() && expiries_.front().when <= now_ms) {
    const Id id = expiries_.front().id;
    if (holds_[id].uses == 0) {
      erase(id);
      return id;
    }
    expiries_.erase(id);
    holds_[id].expired = true;
  }
  return std::nullopt;
}

std::optional<Evictor::Id> Evictor::evict(std::int64_t now_ms) {
  if (const std::optional<Id> expired = evict_expired(now_ms); expired.has_value()) return expired;
  while (!pins_.empty() && pins_.front().when <= now_ms) {
    const Id id = pins_.front().id;
    pins_.erase(id);
    holds_[id].pinned = false;
    update(id);
  }
  const std::optional<Id> id = policy_->evict();
  if (id.has_value()) {
    expiries_.erase(*id);
    pins_.erase(*id);
  }
  return id;
}

}  // namespace icefield
