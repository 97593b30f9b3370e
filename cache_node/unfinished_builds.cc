#include "cache_node/unfinished_builds.h"

#include <ranges>

#include "common/check.h"

namespace icefield {

const UnfinishedBuilds::Owner* UnfinishedBuilds::find(const BuildKey& key) const {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? nullptr : &found->second->owner;
}

void UnfinishedBuilds::touch(std::list<Build>::iterator build, Clock::TimePoint now) {
  build->used = now;
  builds_.splice(builds_.end(), builds_, build);
}

void UnfinishedBuilds::begin(const BuildKey& key, const Owner& owner, Clock::TimePoint now) {
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    return touch(found->second, now);
  }
  if (builds_.size() == options_.max_count) give_up(builds_.front().key);
  builds_.push_back({.key = key, .owner = owner, .parts = {}, .used = now});
  by_key_.emplace(key, std::prev(builds_.end()));
}

void UnfinishedBuilds::add(const BuildKey& key, const PartId& part) {
  const auto found = by_key_.find(key);
  ICE_CHECK(found != by_key_.end());
  found->second->parts.insert(part);
}

void UnfinishedBuilds::remove(const BuildKey& key, const PartId& part, Clock::TimePoint now) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  found->second->parts.erase(part);
  if (found->second->parts.empty()) return end(key);
  touch(found->second, now);
}

void UnfinishedBuilds::end(const BuildKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  builds_.erase(found->second);
  by_key_.erase(found);
}

void UnfinishedBuilds::give_up(const BuildKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  const std::set<PartId>& parts = found->second->parts;
  for (const PartId& part : std::views::reverse(parts)) {  // the last one is removed first
    given_up_.push_back({.segment = key.segment, .build = key.build, .part = part});
  }
  if (!parts.empty()) leaving_[key] += parts.size();
  end(key);
}

std::optional<ObjectKey> UnfinishedBuilds::take_given_up() {
  if (given_up_.empty()) return std::nullopt;
  const ObjectKey part = given_up_.back();
  given_up_.pop_back();
  return part;
}

void UnfinishedBuilds::removed(const ObjectKey& part) {
  const auto build = leaving_.find({part.segment, part.build});
  ICE_CHECK(build != leaving_.end());
  if (--build->second == 0) leaving_.erase(build);
}

void UnfinishedBuilds::expire(Clock::TimePoint now) {
  while (!builds_.empty() && now - builds_.front().used >= options_.idle_limit) {
    give_up(builds_.front().key);
  }
}

}  // namespace icefield
