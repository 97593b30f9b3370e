// cluster_index/membership/placement.h — which members of a cluster own what.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/hash.h"
#include "common/status.h"

namespace icefield {

// A node of the cluster. Its name decides what it owns, so it stays the same over restarts.
struct Member {
  std::string name;  // the address to call, "host:port"
  std::int32_t weight = 1;

  friend bool operator==(const Member&, const Member&) = default;
};

constexpr std::int32_t kMaxMemberWeight = 64;

// "host:port,host:port*3": members separated by commas, each with an optional integer weight.
// kInvalidArgument for an empty list, a name twice or a weight outside 1 … 64.
Result<std::vector<Member>> parse_members(std::string_view text);

// Rendezvous hashing (Thaler, Ravishankar 1998): every member gets a score for a key, the highest
// owns it. A member of weight w enters with w names, so it owns w shares. When a member leaves,
// only what it owned moves. Immutable; the same members in any order give the same owners.
class Placement {
 public:
  // Not empty.
  explicit Placement(std::vector<Member> members);

  const std::vector<Member>& members() const { return members_; }
  // Index of the member that owns `key`.
  std::size_t owner(const Hash128& key) const;
  // The first `count` members for `key`, by falling score: the owner, then where copies go.
  std::vector<std::size_t> ranked(const Hash128& key, std::size_t count) const;

 private:
  struct Name {
    std::size_t member = 0;
    std::uint64_t seed = 0;
  };
  std::vector<std::uint64_t> scores(const Hash128& key) const;

  std::vector<Member> members_;
  std::vector<Name> names_;
};

}  // namespace icefield
