// storage/id_table.h — finds small ids by hash: open addressing over eight bytes an entry.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/check.h"

namespace icefield {

// Maps hashes to ids whose objects the caller keeps; the caller says which of the ids with the
// right hash is the one. Half of the hash stands beside the id, so a search touches an object only
// when it is (nearly always) the right one, and growing touches none.
class IdTable {
 public:
  using Id = std::uint32_t;

  template <class IsIt>
  std::optional<Id> find(std::uint64_t hash, IsIt&& is_it) const {
    if (slots_.empty()) return std::nullopt;
    const std::uint32_t tag = tag_of(hash);
    for (std::size_t at = tag & mask();; at = (at + 1) & mask()) {
      const Slot& slot = slots_[at];
      if (slot.id == kFree) return std::nullopt;
      if (slot.tag == tag && is_it(slot.id)) return slot.id;
    }
  }

  // Room for `count`, so that inserting them moves nothing.
  void reserve(std::size_t count) {
    const std::size_t wanted = std::bit_ceil(count * 5 / 4 + 1);
    if (wanted > std::max<std::size_t>(slots_.size(), 8)) grow_to(wanted);
  }

  // The id must not be there yet.
  void insert(std::uint64_t hash, Id id) {
    ICE_CHECK(id != kFree);
    if ((count_ + 1) * 5 > slots_.size() * 4) grow_to(slots_.empty() ? 16 : slots_.size() * 2);
    place({tag_of(hash), id});
    ++count_;
  }

  // The id must be there.
  void erase(std::uint64_t hash, Id id) {
    ICE_CHECK(!slots_.empty());
    std::size_t hole = tag_of(hash) & mask();
    while (slots_[hole].id != id) {
      ICE_CHECK(slots_[hole].id != kFree);
      hole = (hole + 1) & mask();
    }
    // Whoever was pushed behind the hole by it moves up: searches need no tombstones.
    for (std::size_t at = (hole + 1) & mask(); slots_[at].id != kFree; at = (at + 1) & mask()) {
      const std::size_t home = slots_[at].tag & mask();
      if (((at - home) & mask()) < ((at - hole) & mask())) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = Slot{};
    --count_;
  }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.id != kFree) visit(slot.id);
    }
  }
  std::size_t count() const { return count_; }

 private:
  static constexpr Id kFree = 0xffffffff;
  struct Slot {
    std::uint32_t tag = 0;
    Id id = kFree;
  };

  static std::uint32_t tag_of(std::uint64_t hash) {
    return static_cast<std::uint32_t>((hash * 0x9e3779b97f4a7c15u) >> 32);
  }
  std::size_t mask() const { return slots_.size() - 1; }
  void place(Slot slot) {
    std::size_t at = slot.tag & mask();
    while (slots_[at].id != kFree) at = (at + 1) & mask();
    slots_[at] = slot;
  }
  void grow_to(std::size_t size) {
    std::vector<Slot> old(size);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.id != kFree) place(slot);
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most four fifths full
  std::size_t count_ = 0;
};

}  // namespace icefield
