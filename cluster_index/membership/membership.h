// cluster_index/membership/membership.h — who belongs to a cluster, now and later.
#pragma once

#include <functional>
#include <memory>

#include "cluster_index/membership/placement.h"

namespace icefield {

// The members at one revision, and what each of them owns. Immutable.
struct Members {
  Members(std::uint64_t revision_in, std::vector<Member> list)
      : revision(revision_in), placement(std::move(list)) {}

  const std::uint64_t revision;  // grows with every change
  const Placement placement;
};
using MembersSnapshot = std::shared_ptr<const Members>;

// Where members are known from. There is always a list, and it has members: what cannot be asked
// any more goes on with the last one it knew.
//
// Threads  Any.
class Membership {
 public:
  using Watcher = std::function<void(const MembersSnapshot&)>;

  virtual ~Membership() = default;
  virtual MembersSnapshot current() const = 0;
  // Calls `changed` with every later snapshot, in order, one at a time, from a thread that others
  // wait for: microseconds of work. Gives back a number for unwatch().
  virtual std::uint64_t watch(Watcher changed) = 0;
  // On return the watcher is not running and will not be called any more.
  virtual void unwatch(std::uint64_t number) = 0;
};

// A list that stays as it is.
class StaticMembership final : public Membership {
 public:
  explicit StaticMembership(std::vector<Member> members)
      : members_(std::make_shared<const Members>(1, std::move(members))) {}

  MembersSnapshot current() const override { return members_; }
  std::uint64_t watch(Watcher) override { return 0; }
  void unwatch(std::uint64_t) override {}

 private:
  const MembersSnapshot members_;
};

}  // namespace icefield
