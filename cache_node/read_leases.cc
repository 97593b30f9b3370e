#include "cache_node/read_leases.h"

#include "common/check.h"

namespace icefield {

std::uint64_t ReadLeases::add(std::uint64_t connection, std::int64_t bytes, Held held,
                              Clock::TimePoint now) {
  ICE_CHECK(has_room(bytes));
  leases_.push_back({.connection = connection,
                     .until = now + options_.time_limit,
                     .bytes = bytes,
                     .held = std::move(held)});
  bytes_ += bytes;
  ++count_;
  return first_number_ + leases_.size() - 1;
}

void ReadLeases::release(Lease& lease) {
  if (lease.over) return;
  lease.over = true;
  lease.held = Held();
  bytes_ -= lease.bytes;
  --count_;
}

// Those in front that are over.
void ReadLeases::drop_first() {
  while (!leases_.empty() && leases_.front().over) {
    leases_.pop_front();
    ++first_number_;
  }
}

void ReadLeases::end(std::uint64_t connection, std::uint64_t number) {
  const std::uint64_t index = number - first_number_;  // huge for those before
  if (index >= leases_.size()) return;
  Lease& lease = leases_[index];
  if (lease.connection != connection) return;
  release(lease);
  drop_first();
}

void ReadLeases::end_all(std::uint64_t connection) {
  for (Lease& lease : leases_) {
    if (lease.connection == connection) release(lease);
  }
  drop_first();
}

void ReadLeases::expire(Clock::TimePoint now) {
  for (Lease& lease : leases_) {
    if (lease.until > now) break;
    if (!lease.over) lapsed.add();
    release(lease);
  }
  drop_first();
}

}  // namespace icefield
