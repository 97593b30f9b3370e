// storage/id_table.h — finds small ids by hash: open addressing over eight bytes an entry.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/check.h"

namespace icefield {

// Maps hashes to ids whose objects the caller keeps; the caller says which of the ids with the
// right hash is the one. Half of the hash stands beside the id, so a search touches an object only
// when it is (nearly always) the right one, and growing touches none.
//
// The table is cut into parts that grow by a quarter each on its own: an entry takes 10 to 13
// bytes at any count, and an insert never moves more than a 64th of the table.
class IdTable {
 public:
  using Id = std::uint32_t;

  template <class IsIt>
  std::optional<Id> find(std::uint64_t hash, IsIt&& is_it) const {
    const std::uint32_t tag = tag_of(hash);
    const Part& part = parts_[part_of(tag)];
    if (part.slots.empty()) return std::nullopt;
    for (std::size_t at = part.home(tag);; at = part.after(at)) {
      const Slot& slot = part.slots[at];
      if (slot.id == kFree) return std::nullopt;
      if (slot.tag == tag && is_it(slot.id)) return slot.id;
    }
  }

  // The id must not be there yet.
  void insert(std::uint64_t hash, Id id) {
    ICE_CHECK(id != kFree);
    const std::uint32_t tag = tag_of(hash);
    Part& part = parts_[part_of(tag)];
    const std::size_t size = part.slots.size();
    if ((part.count + 1) * 5 > size * 4) part.grow_to(size + size / 4 + 4);
    part.place({tag, id});
    ++part.count;
    ++count_;
  }

  // The id must be there.
  void erase(std::uint64_t hash, Id id) {
    const std::uint32_t tag = tag_of(hash);
    Part& part = parts_[part_of(tag)];
    ICE_CHECK(!part.slots.empty());
    std::size_t hole = part.home(tag);
    while (part.slots[hole].id != id) {
      ICE_CHECK(part.slots[hole].id != kFree);
      hole = part.after(hole);
    }
    part.empty_slot(hole);
    --part.count;
    --count_;
  }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Part& part : parts_) {
      for (const Slot& slot : part.slots) {
        if (slot.id != kFree) visit(slot.id);
      }
    }
  }
  std::size_t count() const { return count_; }

 private:
  static constexpr Id kFree = 0xffffffff;
  static constexpr int kPartBits = 6;
  static constexpr std::size_t kParts = std::size_t{1} << kPartBits;
  struct Slot {
    std::uint32_t tag = 0;
    Id id = kFree;
  };

  static std::uint32_t tag_of(std::uint64_t hash) {
    return static_cast<std::uint32_t>((hash * 0x9e3779b97f4a7c15u) >> 32);
  }
  static std::size_t part_of(std::uint32_t tag) { return tag >> (32 - kPartBits); }

  struct Part {
    std::vector<Slot> slots;  // at most four fifths full
    std::size_t count = 0;

    std::size_t home(std::uint32_t tag) const {
      return (static_cast<std::uint64_t>(tag << kPartBits) * slots.size()) >> 32;
    }
    std::size_t after(std::size_t at) const { return at + 1 == slots.size() ? 0 : at + 1; }
    std::size_t distance(std::size_t from, std::size_t to) const {
      return to >= from ? to - from : to + slots.size() - from;
    }
    void place(Slot slot) {
      std::size_t at = home(slot.tag);
      while (slots[at].id != kFree) at = after(at);
      slots[at] = slot;
    }
    // Whoever was pushed behind the hole by it moves up: searches need no tombstones.
    void empty_slot(std::size_t hole) {
      for (std::size_t at = after(hole); slots[at].id != kFree; at = after(at)) {
        if (distance(home(slots[at].tag), at) < distance(hole, at)) continue;
        slots[hole] = slots[at];
        hole = at;
      }
      slots[hole] = Slot{};
    }
    void grow_to(std::size_t size) {
      std::vector<Slot> old(size);
      old.swap(slots);
      for (const Slot& slot : old) {
        if (slot.id != kFree) place(slot);
      }
    }
  };

  std::array<Part, kParts> parts_;
  std::size_t count_ = 0;
};

}  // namespace icefield
