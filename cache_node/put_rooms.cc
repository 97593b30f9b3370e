#include "cache_node/put_rooms.h"

#include <vector>

#include "transport/transport.h"

namespace icefield {

bool PutRooms::within_share(std::uint64_t connection, std::int64_t bytes) const {
  const auto mine = connection_bytes_.find(connection);
  const std::int64_t have = mine == connection_bytes_.end() ? 0 : mine->second;
  return have + bytes <= options_.max_connection_bytes;
}

bool PutRooms::within_bounds(std::uint64_t connection, std::int64_t bytes) const {
  return within_share(connection, bytes) && bytes_ + bytes <= options_.max_bytes &&
         count() < options_.max_count;
}

bool PutRooms::make_room(std::uint64_t connection, std::int64_t bytes, Clock::TimePoint now) {
  if (within_bounds(connection, bytes)) return true;
  if (bytes > largest()) return false;
  const Clock::TimePoint limit = now - options_.idle_limit;
  take_back_older(limit, [&](const Room& room) {
    return room.connection == connection && !within_share(connection, bytes);
  });
  if (!within_share(connection, bytes)) return false;  // others' would be no help
  take_back_older(limit, [&](const Room&) { return !within_bounds(connection, bytes); });
  return within_bounds(connection, bytes);
}

std::uint64_t PutRooms::add(std::uint64_t connection, DramTier::Reservation slots,
                            Clock::TimePoint now) {
  std::vector<ByteSpan> runs;
  slots.append_runs(runs);
  const std::uint64_t number = next_number_++;
  Room room{.connection = connection,
            .since = now,
            .ticket = runs.front().data(),
            .slots = std::move(slots)};
  for (const ByteSpan run : runs) room.bytes += std::ssize(run);
  ICE_CHECK(within_bounds(connection, room.bytes));
  put_ticket(room.ticket, number);
  bytes_ += room.bytes;
  connection_bytes_[connection] += room.bytes;
  idle_.emplace(number, std::move(room));
  return number;
}

void PutRooms::leave(const Room& room) {
  const auto mine = connection_bytes_.find(room.connection);
  mine->second -= room.bytes;
  if (mine->second == 0) connection_bytes_.erase(mine);
}

std::optional<DramTier::Reservation> PutRooms::take(std::uint64_t connection,
                                                    std::uint64_t number) {
  for (Rooms* const rooms : {&idle_, &held_}) {
    const auto found = rooms->find(number);
    if (found == rooms->end() || found->second.connection != connection) continue;
    Room room = std::move(found->second);
    rooms->erase(found);
    leave(room);
    bytes_ -= room.bytes;
    return std::move(room.slots);
  }
  return std::nullopt;
}

void PutRooms::end_all(std::uint64_t connection, Clock::TimePoint now) {
  for (Rooms* const rooms : {&idle_, &held_}) {
    for (auto at = rooms->begin(); at != rooms->end();) {
      const auto next = std::next(at);
      const auto& [number, room] = *at;
      if (room.connection == connection) {
        leave(room);
        if (rooms == &idle_ && take_ticket(room.ticket, number)) {
          bytes_ -= room.bytes;
        } else {
          broken_.push_back(std::move(at->second));
          broken_.back().since = now;
        }
        rooms->erase(at);
      }
      at = next;
    }
  }
}

template <class Wanted>
void PutRooms::take_back_older(Clock::TimePoint limit, Wanted wanted) {
  for (auto at = idle_.begin(); at != idle_.end() && at->second.since <= limit;) {
    const auto next = std::next(at);
    if (wanted(at->second)) {
      auto taken = idle_.extract(at);
      const Room& room = taken.mapped();
      if (take_ticket(room.ticket, taken.key())) {
        leave(room);
        bytes_ -= room.bytes;
        taken_back.add();
      } else {
        held_.insert(std::move(taken));
      }
    }
    at = next;
  }
}

void PutRooms::expire(Clock::TimePoint now) {
  take_back_older(now - options_.time_limit, [](const Room&) { return true; });
  while (!broken_.empty() && broken_.front().since <= now - options_.quarantine_limit) {
    bytes_ -= broken_.front().bytes;
    broken_.pop_front();
  }
}

}  // namespace icefield
