#include "storage/eviction_policy.h"

#include <algorithm>
#include <string>

#include "storage/id_table.h"
#include "storage/paged_vector.h"

namespace icefield {
namespace {

using Id = EvictionPolicy::Id;
constexpr Id kNone = 0xffffffff;

struct Node {
  std::uint32_t name = 0;  // half of the object's
  Id previous = kNone;
  Id next = kNone;
  std::uint32_t weight : 29 = 0;
  std::uint32_t list : 1 = 0;
  std::uint32_t evictable : 1 = true;
  std::uint32_t aside : 1 = false;  // in the list by weight, but not linked: evict() came across it
};
static_assert(sizeof(Node) == 16);
static_assert(EvictionPolicy::kMaxWeight < 1u << 29);

// Two objects of which half the name is the same are one to the ghost lists: one in four thousand
// newcomers among a million ghosts is taken for one of them, and treated as if it came back.
std::uint32_t half(std::uint64_t name) {
  return static_cast<std::uint32_t>((name * 0x9e3779b97f4a7c15u) >> 32);
}

// Two lists of nodes, the oldest first.
class NodeLists {
 public:
  Node& operator[](Id id) { return nodes_[id]; }
  const Node& operator[](Id id) const { return nodes_[id]; }

  void enter(int list, Id id, std::uint32_t name, std::uint32_t weight) {
    ICE_CHECK(weight <= EvictionPolicy::kMaxWeight);
    nodes_.reach(id);
    nodes_[id] = {.name = name, .weight = weight & 0x1fffffff, .list = list != 0};
    lists_[list].weight += weight;
    link_newest(id);
  }
  void leave(Id id) {
    unlink(id);
    lists_[nodes_[id].list].weight -= nodes_[id].weight;
  }
  // To the new end of `list`.
  void move(int list, Id id) {
    Node& node = nodes_[id];
    unlink(id);
    lists_[node.list].weight -= node.weight;
    node.list = list != 0;
    lists_[list].weight += node.weight;
    link_newest(id);
  }
  void set_evictable(Id id, bool evictable) {
    Node& node = nodes_[id];
    node.evictable = evictable;
    if (!evictable || !node.aside) return;
    node.aside = false;
    List& list = lists_[node.list];
    node.previous = kNone;
    node.next = list.oldest;
    (list.oldest == kNone ? list.newest : nodes_[list.oldest].previous) = id;
    list.oldest = id;
  }
  // The oldest that is evictable, or kNone. Those in its way are set aside: each is looked at once.
  Id oldest(int list) {
    while (lists_[list].oldest != kNone) {
      const Id id = lists_[list].oldest;
      if (nodes_[id].evictable) return id;
      unlink(id);
      nodes_[id].aside = true;
    }
    return kNone;
  }
  std::int64_t weight(int list) const { return lists_[list].weight; }

 private:
  struct List {
    Id oldest = kNone;
    Id newest = kNone;
    std::int64_t weight = 0;
  };

  void link_newest(Id id) {
    List& list = lists_[nodes_[id].list];
    nodes_[id].next = kNone;
    nodes_[id].previous = list.newest;
    (list.newest == kNone ? list.oldest : nodes_[list.newest].next) = id;
    list.newest = id;
  }
  void unlink(Id id) {
    Node& node = nodes_[id];
    if (node.aside) {
      node.aside = false;
      return;
    }
    List& list = lists_[node.list];
    (node.previous == kNone ? list.oldest : nodes_[node.previous].next) = node.next;
    (node.next == kNone ? list.newest : nodes_[node.next].previous) = node.previous;
  }

  PagedVector<Node> nodes_;
  List lists_[2];
};

class LruPolicy final : public EvictionPolicy {
 public:
  void expect(const Object&) override {}
  void insert(Id id, const Object& object) override {
    objects_.enter(0, id, half(object.name), object.weight);
  }
  void touch(Id id) override { objects_.move(0, id); }
  void erase(Id id) override { objects_.leave(id); }
  void set_evictable(Id id, bool evictable) override { objects_.set_evictable(id, evictable); }
  std::optional<Id> evict() override {
    const Id id = objects_.oldest(0);
    if (id == kNone) return std::nullopt;
    objects_.leave(id);
    return id;
  }
  bool remembers(std::uint64_t) const override { return false; }

 private:
  NodeLists objects_;
};

// In the paper's words: the lists kOnce and kAgain are T1 and T2 of objects, B1 and B2 of ghosts.
class ArcPolicy final : public EvictionPolicy {
 public:
  explicit ArcPolicy(std::int64_t capacity) : capacity_(capacity) {}

  void expect(const Object& incoming) override {
    returning_again_ = false;
    const Id ghost = find_ghost(half(incoming.name));
    if (ghost == kNone) return;
    const std::int64_t once = ghosts_.weight(kOnce);
    const std::int64_t again = ghosts_.weight(kAgain);
    const auto weight = static_cast<std::int64_t>(incoming.weight);
    if (ghosts_[ghost].list == kOnce) {
      target_ = std::min(capacity_, target_ + weight * std::max<std::int64_t>(again / once, 1));
    } else {
      target_ =
          std::max<std::int64_t>(0, target_ - weight * std::max<std::int64_t>(once / again, 1));
      returning_again_ = true;
    }
  }

  void insert(Id id, const Object& object) override {
    const std::uint32_t name = half(object.name);
    const Id ghost = find_ghost(name);
    if (ghost != kNone) drop_ghost(ghost);
    objects_.enter(ghost == kNone ? kOnce : kAgain, id, name, object.weight);
    most_objects_ = std::max(most_objects_, ++object_count_);
    returning_again_ = false;
    trim_ghosts();
  }

  void touch(Id id) override { objects_.move(kAgain, id); }
  void erase(Id id) override {
    objects_.leave(id);
    --object_count_;
  }
  void set_evictable(Id id, bool evictable) override { objects_.set_evictable(id, evictable); }

  std::optional<Id> evict() override {
    const std::int64_t once = objects_.weight(kOnce);
    const int preferred =
        once > 0 && (once > target_ || (returning_again_ && once == target_)) ? kOnce : kAgain;
    Id id = objects_.oldest(preferred);
    if (id == kNone) id = objects_.oldest(kOnce + kAgain - preferred);
    if (id == kNone) return std::nullopt;
    const Node gone = objects_[id];
    objects_.leave(id);
    --object_count_;
    add_ghost(gone);
    return id;
  }

  bool remembers(std::uint64_t name) const override { return find_ghost(half(name)) != kNone; }

 private:
  static constexpr int kOnce = 0;
  static constexpr int kAgain = 1;

  Id find_ghost(std::uint32_t name) const {
    return ghost_ids_.find(name, [&](Id id) { return ghosts_[id].name == name; }).value_or(kNone);
  }

  void add_ghost(const Node& gone) {
    if (gone.weight == 0 || find_ghost(gone.name) != kNone) return;
    Id id = free_ghost_;
    if (id == kNone) {
      id = ghost_end_++;
    } else {
      free_ghost_ = ghosts_[id].next;
    }
    ghosts_.enter(gone.list, id, gone.name, gone.weight);
    ghost_ids_.insert(gone.name, id);
  }

  void drop_ghost(Id id) {
    ghosts_.leave(id);
    ghost_ids_.erase(ghosts_[id].name, id);
    ghosts_[id].next = free_ghost_;
    free_ghost_ = id;
  }

  // |T1| + |B1| <= capacity, and all four together at most twice that. Ghosts of small objects must
  // not take more memory than the large objects that have come since: with unit weights the third
  // rule follows from the others.
  void trim_ghosts() {
    const auto drop_oldest = [this](int list) { drop_ghost(ghosts_.oldest(list)); };
    while (ghosts_.weight(kOnce) > 0 &&
           objects_.weight(kOnce) + ghosts_.weight(kOnce) > capacity_) {
      drop_oldest(kOnce);
    }
    const std::int64_t objects = objects_.weight(kOnce) + objects_.weight(kAgain);
    while (ghosts_.weight(kAgain) > 0 &&
           objects + ghosts_.weight(kOnce) + ghosts_.weight(kAgain) > 2 * capacity_) {
      drop_oldest(kAgain);
    }
    while (ghost_ids_.count() > most_objects_) {
      drop_oldest(ghosts_.weight(kOnce) > 0 ? kOnce : kAgain);
    }
  }

  const std::int64_t capacity_;
  std::int64_t target_ = 0;       // p: the weight that objects used once should have
  bool returning_again_ = false;  // the incoming object is a ghost of B2
  NodeLists objects_;
  NodeLists ghosts_;  // with ids of their own
  IdTable ghost_ids_;
  Id free_ghost_ = kNone;
  Id ghost_end_ = 0;
  std::size_t object_count_ = 0;
  std::size_t most_objects_ = 0;  // that there ever were
};

}  // namespace

std::string_view to_string(EvictionKind kind) { return kind == EvictionKind::kLru ? "lru" : "arc"; }

Result<EvictionKind> parse_eviction_kind(std::string_view text) {
  for (const EvictionKind kind : {EvictionKind::kLru, EvictionKind::kArc}) {
    if (text == to_string(kind)) return kind;
  }
  return Status(Code::kInvalidArgument,
                "eviction policy \"" + std::string(text) + "\", expected lru or arc");
}

std::unique_ptr<EvictionPolicy> make_eviction_policy(EvictionKind kind, std::int64_t capacity) {
  if (kind == EvictionKind::kLru) return std::make_unique<LruPolicy>();
  return std::make_unique<ArcPolicy>(capacity);
}

}  // namespace icefield
