// storage/object_table.h — the entries of a tier's objects, found by key, named by small ids.
#pragma once

#include "common/ids.h"
#include "storage/id_table.h"
#include "storage/paged_vector.h"

namespace icefield {

// `Entry` has a member `key`. Ids are dense and reused; entries keep their place. Beside the entry
// an object costs 10 to 20 bytes.
//
// Threads  One at a time.
template <class Entry>
class ObjectTable {
 public:
  using Id = IdTable::Id;

  // A hash of the key, for find() and insert(): computed once per operation.
  static std::uint64_t name_of(const ObjectKey& key) { return ObjectKeyHasher()(key); }

  std::optional<Id> find(const ObjectKey& key, std::uint64_t name) const {
    return ids_.find(name, [&](Id id) { return entries_[id].key == key; });
  }
  Entry& operator[](Id id) { return entries_[id]; }
  const Entry& operator[](Id id) const { return entries_[id]; }

  Id insert(const Entry& entry, std::uint64_t name) {
    Id id = end_;
    if (free_.empty()) {
      entries_.reach(end_++);
    } else {
      id = free_.back();
      free_.pop_back();
    }
    entries_[id] = entry;
    ids_.insert(name, id);
    return id;
  }
  // It is found no more, but its id stays taken until reuse().
  void hide(Id id, std::uint64_t name) { ids_.erase(name, id); }
  void reuse(Id id) { free_.push_back(id); }

  // Hidden ones are not visited.
  template <class Visit>
  void for_each(Visit&& visit) const {
    ids_.for_each([&](Id id) { visit(id, entries_[id]); });
  }
  std::int64_t count() const { return static_cast<std::int64_t>(ids_.count()); }

 private:
  PagedVector<Entry> entries_;
  std::vector<Id> free_;
  IdTable ids_;
  Id end_ = 0;
};

}  // namespace icefield
