#include "cluster_index/membership/placement.h"

#include <algorithm>
#include <charconv>
#include <numeric>

namespace icefield {
namespace {

Result<Member> parse_member(std::string_view text) {
  const std::size_t star = text.find('*');
  Member member{.name = std::string(text.substr(0, star))};
  bool ok = !member.name.empty();
  if (ok && star != text.npos) {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + star + 1, end, member.weight);
    ok = error == std::errc() && stop == end && member.weight >= 1 &&
         member.weight <= kMaxMemberWeight;
  }
  if (!ok) {
    return Status(Code::kInvalidArgument, "member '" + std::string(text) +
                                              "': write host:port or host:port*weight, " +
                                              "weight 1 to " + std::to_string(kMaxMemberWeight));
  }
  return member;
}

}  // namespace

Result<std::vector<Member>> parse_members(std::string_view text) {
  std::vector<Member> members;
  while (true) {
    const std::size_t comma = text.find(',');
    ICE_TRY(Member member, parse_member(text.substr(0, comma)));
    const auto same = [&member](const Member& other) { return other.name == member.name; };
    if (std::any_of(members.begin(), members.end(), same)) {
      return Status(Code::kInvalidArgument, "member '" + member.name + "' stands there twice");
    }
    members.push_back(std::move(member));
    if (comma == text.npos) return members;
    text.remove_prefix(comma + 1);
  }
}

Placement::Placement(std::vector<Member> members) : members_(std::move(members)) {
  ICE_CHECK(!members_.empty());
  for (std::size_t member = 0; member < members_.size(); ++member) {
    for (std::int32_t i = 0; i < members_[member].weight; ++i) {
      const std::string name = members_[member].name + "#" + std::to_string(i);
      names_.push_back({.member = member, .seed = xxh3(as_bytes(name), 0)});
    }
  }
}

// The best score among each member's names.
std::vector<std::uint64_t> Placement::scores(const Hash128& key) const {
  std::vector<std::uint64_t> best(members_.size(), 0);
  for (const Name& name : names_) {
    best[name.member] = std::max(best[name.member], xxh3(key.span(), name.seed));
  }
  return best;
}

std::size_t Placement::owner(const Hash128& key) const { return ranked(key, 1).front(); }

std::vector<std::size_t> Placement::ranked(const Hash128& key, std::size_t count) const {
  const std::vector<std::uint64_t> best = scores(key);
  std::vector<std::size_t> order(members_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto before = [&](std::size_t a, std::size_t b) {
    return best[a] != best[b] ? best[a] > best[b] : members_[a].name < members_[b].name;
  };
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    before);
  order.resize(count);
  return order;
}

}  // namespace icefield
