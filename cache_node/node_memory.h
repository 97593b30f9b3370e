// cache_node/node_memory.h — what a client knows of the memory of a node that it may reach by
// itself.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cache_node/value_messages.h"
#include "transport/transport.h"

namespace icefield {

namespace proto {
class GetValuesRequest;
class PutRoom;
class PutValuesRequest;
class ValueScope;
}  // namespace proto

// The region, whether it is in reach, the rooms that were granted for puts to come (decision 0008),
// and what the node has not been told yet. It decides what goes one-sided and talks to nobody.
//
// Threads  Any.
class NodeMemory {
 public:
  // What was known of a node before it was started again is another region.
  struct KnownRegion {
    std::string key;
    std::uint64_t hash = 0;  // 0: none
  };
  using Known = std::shared_ptr<const KnownRegion>;
  // Granted for a put to come.
  struct Room {
    std::uint64_t number = 0;
    Known region;
    std::vector<RegionRun> runs;  // whole slots
    std::int64_t bytes = 0;       // of all runs
    std::int64_t slot_bytes = 0;
  };

  // The leases and rooms that have ended: any request tells the node.
  void tell(proto::ValueScope& out);
  // Nobody has answered the request that told those.
  void take_back(const proto::ValueScope& scope);

  // Says whether and where the node may leave the payload of a get; the region that it names.
  Known start_get(proto::GetValuesRequest& message);
  // The region that a reply names.
  Known region_of(const std::string& key);
  // The payload of a get was read, or could not be.
  void was_read(std::uint64_t lease, const Known& region, bool out_of_reach);

  // Asks for room and takes what there is for the put; none: it goes by message. `known` is the
  // region that the message names.
  std::optional<Room> start_put(const PutValues& request, proto::PutValuesRequest& message,
                                Known& known);
  // Where the payload of the put goes in its room.
  static RegionRoom place_of(Room& room, const PutValues& request);
  // A reply to a request that named the region `known` brings room.
  void keep_room(const proto::PutRoom& granted, Known known);
  // Of a put that goes by message after all: the node has taken the room back (kAborted), or it is
  // out of reach.
  void lose_room(const Room& room, Code why, proto::PutValuesRequest& message, Known& known);
  // Of a put that failed: nothing is written there any more.
  void give_up(const Room& room);

 private:
  // All of them with mutex_.
  Known learn_region(const std::string& key);
  void name_region(proto::PutValuesRequest& message, Known& known);
  void end_room(const Room& room);
  // How much the next put may want, this one wanted so much.
  std::int64_t room_wanted(std::int64_t bytes);

  std::mutex mutex_;  // guards the rest
  Known region_ = std::make_shared<const KnownRegion>();
  int unreachable_ = 0;                      // so many more calls until the region is tried again
  std::vector<std::uint64_t> ended_leases_;  // not told yet
  std::vector<std::uint64_t> ended_rooms_;   // as well: few, the node grants no more until it knows
  std::vector<Room> rooms_;                  // the newest last; few
  std::int64_t room_puts_ = 0;               // those that had room, or would have liked it
  std::int64_t largest_put_ = 0;             // of them, since they were a multiple of kRecentPuts
  std::int64_t largest_before_ = 0;          // of as many before
  std::int64_t slot_bytes_ = 1;              // of the last room
};

}  // namespace icefield
