// cache_node/read_leases.h — what clients read by themselves stays in place until they have.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/clock.h"
#include "common/metrics.h"

namespace icefield {

// A lease holds the slots of one reply. It ends when its client says so, with the client's
// connection, or at its time limit, and never sooner: whoever goes on reading afterwards reads what
// others put there, which the checksums tell. Leases are bounded, so that clients which never end
// theirs do not keep memory from those that put.
//
// A pure state machine: time is an argument. Nothing happens between two calls; what has lapsed
// holds its slots until expire(). Threads: the node's shard.
class ReadLeases {
 public:
  using Held = std::vector<std::shared_ptr<const void>>;
  struct Options {
    std::int64_t max_bytes = 0;  // of all leases together
    std::int64_t max_count = 4096;
    std::chrono::milliseconds time_limit{1000};
    std::uint64_t first_number = 1;  // at random: those of a node that was there before say nothing
  };
  explicit ReadLeases(Options options) : options_(options), first_number_(options.first_number) {}

  // Whether one more of so many bytes is within the bounds.
  bool has_room(std::int64_t bytes) const {
    return bytes_ + bytes <= options_.max_bytes && count_ < options_.max_count &&
           std::ssize(leases_) < kMostKept * options_.max_count;
  }
  // The number of a lease that holds `held` for a connection. There must be room.
  std::uint64_t add(std::uint64_t connection, std::int64_t bytes, Held held, Clock::TimePoint now);
  // Nothing happens when the connection has no such lease (any more).
  void end(std::uint64_t connection, std::uint64_t number);
  void end_all(std::uint64_t connection);
  void expire(Clock::TimePoint now);

  std::int64_t bytes() const { return bytes_; }  // that leases hold
  std::int64_t count() const { return count_; }

  Counter lapsed{"icefield_cache_node_read_leases_lapsed_total",
                 "leases of one-sided reads that ended at their time limit"};

 private:
  // Times max_count: those that are over stay behind one that is not.
  static constexpr std::int64_t kMostKept = 64;
  struct Lease {
    std::uint64_t connection = 0;
    Clock::TimePoint until;
    std::int64_t bytes = 0;
    Held held;
    bool over = false;
  };
  void release(Lease& lease);
  void drop_first();

  const Options options_;
  std::deque<Lease> leases_;        // by number, and so by time; those that are over among them
  std::uint64_t first_number_;      // of leases_
  std::int64_t bytes_ = 0;
  std::int64_t count_ = 0;  // that are not over
};

}  // namespace icefield
