#include "cache_node/node_memory.h"

#include <algorithm>

#include "cache_node/node_messages.h"
#include "common/hash.h"

namespace icefield {
namespace {

// Of those that no request has told; they are over after a second anyway.
constexpr std::size_t kMostEndedLeases = 4096;
// Calls by message before a region that could not be reached is tried again.
constexpr int kUnreachableCalls = 4096;
// Room is wanted for the largest put of the last ones, as many as this or twice as many.
constexpr std::int64_t kRecentPuts = 16;
// Kept for puts side by side.
constexpr std::size_t kMostRooms = 16;
// Of a room, and a slot of it: more makes no sense.
constexpr std::uint64_t kMostRoomBytes = std::uint64_t{1} << 40;

// Every chunk of a put, in order.
template <class Visit>
void for_each_chunk(const PutValues& request, Visit visit) {
  for (const PutValue& value : request.values) {
    const std::int64_t end = value.first_chunk + std::ssize(value.checksums);
    for (std::int64_t chunk = value.first_chunk; chunk < end; ++chunk) {
      visit(chunk_range(value.value_bytes, chunk, 0, value.value_bytes).chunk_bytes);
    }
  }
}

std::int64_t slots_bytes(std::int64_t chunk_bytes, std::int64_t slot_bytes) {
  return round_up(std::max<std::int64_t>(chunk_bytes, 1), slot_bytes);
}

}  // namespace

void NodeMemory::tell(proto::ValueScope& out) {
  const std::lock_guard lock(mutex_);
  out.mutable_ended_leases()->Add(ended_leases_.begin(), ended_leases_.end());
  ended_leases_.clear();
  out.mutable_ended_rooms()->Add(ended_rooms_.begin(), ended_rooms_.end());
  ended_rooms_.clear();
}

void NodeMemory::take_back(const proto::ValueScope& scope) {
  const std::lock_guard lock(mutex_);
  ended_leases_.insert(ended_leases_.end(), scope.ended_leases().begin(),
                       scope.ended_leases().end());
  if (ended_leases_.size() > kMostEndedLeases) ended_leases_.clear();
  ended_rooms_.insert(ended_rooms_.end(), scope.ended_rooms().begin(), scope.ended_rooms().end());
}

NodeMemory::Known NodeMemory::start_get(proto::GetValuesRequest& message) {
  const std::lock_guard lock(mutex_);
  message.set_region(region_->hash);
  message.set_unreachable(unreachable_ > 0);
  if (unreachable_ > 0) --unreachable_;
  return region_;
}

NodeMemory::Known NodeMemory::region_of(const std::string& key) {
  const std::lock_guard lock(mutex_);
  return learn_region(key);
}

void NodeMemory::was_read(std::uint64_t lease, const Known& region, bool out_of_reach) {
  const std::lock_guard lock(mutex_);
  ended_leases_.push_back(lease);
  if (out_of_reach && region_->hash == region->hash) unreachable_ = kUnreachableCalls;
}

NodeMemory::Known NodeMemory::learn_region(const std::string& key) {
  const std::uint64_t hash = xxh3(as_bytes(key), 0);
  if (region_->hash != hash) {
    unreachable_ = 0;
    region_ = std::make_shared<const KnownRegion>(KnownRegion{.key = key, .hash = hash});
    rooms_.clear();  // another node's
    ended_rooms_.clear();
  }
  return region_;
}

std::optional<NodeMemory::Room> NodeMemory::start_put(const PutValues& request,
                                                      proto::PutValuesRequest& message,
                                                      Known& known) {
  std::int64_t bytes = 0;
  std::int64_t chunks = 0;
  const auto count = [&](std::int64_t chunk_bytes) {
    bytes += chunk_bytes;
    ++chunks;
  };
  for_each_chunk(request, count);
  const bool large = bytes >= std::max(kPlacedBytes, chunks * kPlacedRunBytes);
  if (!large || request.options.level == WriteLevel::kDurable) return std::nullopt;
  const std::lock_guard lock(mutex_);
  std::int64_t wanted = 0;
  for_each_chunk(request, [&](std::int64_t size) { wanted += slots_bytes(size, slot_bytes_); });
  message.set_room_wanted(static_cast<std::uint64_t>(room_wanted(wanted)));
  name_region(message, known);
  if (unreachable_ > 0) {
    --unreachable_;
    return std::nullopt;
  }
  const auto fits = [&](const Room& room) {
    return room.bytes >= wanted && room.slot_bytes == slot_bytes_;
  };
  const auto newest = std::find_if(rooms_.rbegin(), rooms_.rend(), fits);
  if (newest == rooms_.rend()) return std::nullopt;
  std::optional<Room> room = std::move(*newest);
  rooms_.erase(std::next(newest).base());
  return room;
}

void NodeMemory::name_region(proto::PutValuesRequest& message, Known& known) {
  known = region_;
  message.set_region(known->hash);
  message.set_unreachable(unreachable_ > 0);
}

std::int64_t NodeMemory::room_wanted(std::int64_t bytes) {
  if (room_puts_++ % kRecentPuts == 0) largest_before_ = std::exchange(largest_put_, 0);
  largest_put_ = std::max(largest_put_, bytes);
  return std::max(largest_put_, largest_before_);
}

// Chunk by chunk, each from the start of a slot on.
RegionRoom NodeMemory::place_of(Room& room, const PutValues& request) {
  RegionRoom place{.to = {.key = room.region->key, .runs = {}},
                   .ticket_offset = room.runs.front().offset,
                   .ticket = room.number};
  std::vector<RegionRun>& out = place.to.runs;
  auto run = room.runs.begin();
  const auto add = [&](std::int64_t bytes) {
    std::int64_t slots = slots_bytes(bytes, room.slot_bytes);
    while (slots > 0) {
      const std::int64_t part = std::min(run->bytes, slots);
      const std::int64_t used = std::min(part, bytes);
      if (!out.empty() && out.back().offset + out.back().bytes == run->offset) {
        out.back().bytes += used;
      } else if (used > 0) {
        out.push_back({.offset = run->offset, .bytes = used});
      }
      run->offset += part;
      run->bytes -= part;
      slots -= part;
      bytes -= used;
      if (run->bytes == 0) ++run;
    }
  };
  for_each_chunk(request, add);
  return place;
}

void NodeMemory::keep_room(const proto::PutRoom& granted, Known known) {
  Room room{.number = granted.number(), .region = std::move(known)};
  const int count = std::min(granted.offsets_size(), granted.lengths_size());
  for (int i = 0; i < count; ++i) {
    if (granted.lengths(i) == 0 || granted.lengths(i) > kMostRoomBytes) return;
    room.runs.push_back({.offset = static_cast<std::int64_t>(granted.offsets(i)),
                         .bytes = static_cast<std::int64_t>(granted.lengths(i))});
    room.bytes += room.runs.back().bytes;
  }
  if (count == 0 || granted.slot_bytes() == 0 || granted.slot_bytes() > kMostRoomBytes) return;
  room.slot_bytes = static_cast<std::int64_t>(granted.slot_bytes());
  const std::lock_guard lock(mutex_);
  if (!granted.region_key().empty()) room.region = learn_region(granted.region_key());
  if (room.region != region_) return;  // it was not asked for, or that node has gone
  slot_bytes_ = room.slot_bytes;
  rooms_.push_back(std::move(room));
  if (rooms_.size() <= kMostRooms) return;
  end_room(rooms_.front());
  rooms_.erase(rooms_.begin());
}

// Where the node took back one, it has those that are older, too.
void NodeMemory::lose_room(const Room& room, Code why, proto::PutValuesRequest& message,
                           Known& known) {
  const std::lock_guard lock(mutex_);
  const bool unreachable = why != Code::kAborted;
  if (region_ == room.region) {
    if (unreachable) unreachable_ = kUnreachableCalls;
    const auto lost = [&](const Room& other) { return unreachable || other.number < room.number; };
    end_room(room);
    for (const Room& other : rooms_) {
      if (lost(other)) end_room(other);
    }
    std::erase_if(rooms_, lost);
  }
  name_region(message, known);
}

void NodeMemory::end_room(const Room& room) {
  if (room.region == region_) ended_rooms_.push_back(room.number);
}

void NodeMemory::give_up(const Room& room) {
  const std::lock_guard lock(mutex_);
  end_room(room);
}

}  // namespace icefield
