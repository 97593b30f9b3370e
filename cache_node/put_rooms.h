// cache_node/put_rooms.h — room that clients write their puts to by themselves.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>

#include "common/clock.h"
#include "common/metrics.h"
#include "storage/dram_tier.h"
#include "transport/placing.h"

namespace icefield {

// A room is slots of the memory tier that were granted to a connection for one put to come. Its
// number is its ticket (transport.h): as long as that lies in its first bytes nobody writes there,
// and the room can be taken back; whoever takes it to write holds the room until its put is here,
// it gives the room up, or its connection ends. So no clock decides who writes where, but in one
// case: the client of a connection that has ended may live, in the middle of a copy, and what it
// held stays out of use for a while.
//
// Rooms are bounded, for each connection and all of them. Those that lie idle are taken back when
// somebody wants room and finds none, as many as it takes, and after a longer time anyway.
//
// A pure state machine: time is an argument. Threads: the node's shard.
class PutRooms {
 public:
  struct Options {
    std::int64_t max_bytes = 0;             // of all rooms together
    std::int64_t max_connection_bytes = 0;  // of one connection's
    std::int64_t max_count = 4096;
    std::chrono::milliseconds idle_limit{1000};    // then another may have it
    std::chrono::milliseconds time_limit{10'000};  // then nobody waits for it any more
    // Then a copy that broke off is over: the copying one has noticed.
    std::chrono::milliseconds quarantine_limit = 2 * Placing::kLongestPause;
    std::uint64_t first_number = 1;  // at random: those of a node that was there before say nothing
  };
  explicit PutRooms(Options options) : options_(options), next_number_(options.first_number) {
    ICE_CHECK(next_number_ > 0);
  }

  // Whether one more of so many bytes is within the bounds, once idle ones have been taken back if
  // need be.
  bool make_room(std::uint64_t connection, std::int64_t bytes, Clock::TimePoint now);
  // More is never within the bounds.
  std::int64_t largest() const { return options_.max_connection_bytes; }
  // The number of a room. It must be within the bounds, and its slots lie in a region.
  std::uint64_t add(std::uint64_t connection, DramTier::Reservation slots, Clock::TimePoint now);
  // What the put of a connection has written; none when it has no such room (any more).
  std::optional<DramTier::Reservation> take(std::uint64_t connection, std::uint64_t number);
  // Nothing is written there any more. As take() otherwise.
  void end(std::uint64_t connection, std::uint64_t number) { (void)take(connection, number); }
  void end_all(std::uint64_t connection, Clock::TimePoint now);
  void expire(Clock::TimePoint now);

  std::int64_t bytes() const { return bytes_; }  // in rooms, those out of use among them
  std::int64_t count() const { return std::ssize(idle_) + std::ssize(held_) + std::ssize(broken_); }

  Counter taken_back{"icefield_cache_node_put_rooms_taken_back_total",
                     "rooms for one-sided puts that lay idle"};

 private:
  struct Room {
    std::uint64_t connection = 0;
    Clock::TimePoint since;  // it was granted, or its connection has ended
    std::int64_t bytes = 0;
    std::byte* ticket = nullptr;
    DramTier::Reservation slots;
  };
  using Rooms = std::map<std::uint64_t, Room>;  // by number, and so by time

  // Of its connection.
  bool within_share(std::uint64_t connection, std::int64_t bytes) const;
  bool within_bounds(std::uint64_t connection, std::int64_t bytes) const;
  // Those that have been idle since then and that somebody wants.
  template <class Wanted>
  void take_back_older(Clock::TimePoint limit, Wanted wanted);
  // The room is its connection's no more; its bytes count until it goes.
  void leave(const Room& room);

  const Options options_;
  std::uint64_t next_number_;
  Rooms idle_;               // or held, and it was not looked at since
  Rooms held_;               // their tickets are gone
  std::deque<Room> broken_;  // held, when their connections ended
  std::unordered_map<std::uint64_t, std::int64_t> connection_bytes_;
  std::int64_t bytes_ = 0;
};

}  // namespace icefield
