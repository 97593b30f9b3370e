// storage/time_queue.h — ids by due time: a heap that can also take an id out of its middle.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "storage/paged_vector.h"

namespace icefield {

// Costs nothing for ids that never had a time, 20 bytes for others.
class TimeQueue {
 public:
  using Id = std::uint32_t;
  struct Due {
    std::int64_t when = 0;
    Id id = 0;
  };

  bool empty() const { return heap_.empty(); }
  const Due& front() const { return heap_.front(); }

  // In the queue once, at its newest time.
  void set(Id id, std::int64_t when) {
    erase(id);
    positions_.reach(id);
    heap_.push_back({when, id});
    sift_up(heap_.size() - 1);
  }
  // Nothing happens when it is not in the queue.
  void erase(Id id) {
    if (!positions_.has(id) || positions_[id] == 0) return;
    const std::size_t hole = positions_[id] - 1;
    positions_[id] = 0;
    const Due last = heap_.back();
    heap_.pop_back();
    if (hole == heap_.size()) return;
    heap_[hole] = last;
    sift_down(sift_up(hole));
  }

 private:
  void put(std::size_t at, const Due& due) {
    heap_[at] = due;
    positions_[due.id] = static_cast<std::uint32_t>(at + 1);
  }
  std::size_t sift_up(std::size_t at) {
    const Due due = heap_[at];
    for (; at > 0 && heap_[(at - 1) / 2].when > due.when; at = (at - 1) / 2) {
      put(at, heap_[(at - 1) / 2]);
    }
    put(at, due);
    return at;
  }
  void sift_down(std::size_t at) {
    const Due due = heap_[at];
    while (true) {
      std::size_t child = 2 * at + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1].when < heap_[child].when) ++child;
      if (heap_[child].when >= due.when) break;
      put(at, heap_[child]);
      at = child;
    }
    put(at, due);
  }

  std::vector<Due> heap_;
  PagedVector<std::uint32_t> positions_;  // in heap_, from 1; 0: not there
};

}  // namespace icefield
