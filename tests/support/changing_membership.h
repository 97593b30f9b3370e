// tests/support/changing_membership.h — members that a test changes.
#pragma once

#include <map>
#include <mutex>

#include "cluster_index/membership/membership.h"

namespace icefield {

class ChangingMembership final : public Membership {
 public:
  explicit ChangingMembership(std::vector<Member> members)
      : members_(std::make_shared<const Members>(1, std::move(members))) {}

  // From any thread; returns when all watchers know.
  void set(std::vector<Member> members) {
    const std::lock_guard lock(mutex_);
    members_ = std::make_shared<const Members>(members_->revision + 1, std::move(members));
    for (const auto& [number, changed] : watchers_) changed(members_);
  }
  std::size_t watcher_count() const {
    const std::lock_guard lock(mutex_);
    return watchers_.size();
  }

  MembersSnapshot current() const override {
    const std::lock_guard lock(mutex_);
    return members_;
  }
  std::uint64_t watch(Watcher changed) override {
    const std::lock_guard lock(mutex_);
    watchers_.emplace(++last_, std::move(changed));
    return last_;
  }
  void unwatch(std::uint64_t number) override {
    const std::lock_guard lock(mutex_);
    watchers_.erase(number);
  }

 private:
  mutable std::mutex mutex_;  // guards the rest
  MembersSnapshot members_;
  std::map<std::uint64_t, Watcher> watchers_;
  std::uint64_t last_ = 0;
};

}  // namespace icefield
