// transport/placing.h — writes the front of a request's payload into room in a region.
#pragma once

#include <chrono>

#include "common/run_writer.h"
#include "transport/transport.h"

namespace icefield {

// For transports to which the region is memory. A slice at a time, so that who looks at what leaves
// has it in a cache when it is copied, and others get their turn in between.
class Placing {
 public:
  static constexpr std::int64_t kSliceBytes = 32 << 10;
  // Whoever was held up for longer between two slices writes no more: the owner of the region may
  // have ended the connection, and has no use for the room for twice as long.
  static constexpr std::chrono::seconds kLongestPause{5};

  // The request has room; `region` must stay while the copying goes on.
  Placing(Request& request, ByteSpan region, const Clock& clock)
      : request_(request), region_(region), clock_(clock) {}

  // Once, first: then the room is ours. Errors as Reply::unplaced.
  Status begin();
  // Whether that is why placing failed, and not what came later.
  static bool unplaced(const Status& placed);
  // Copies the next slice and gives back its size; 0 when all is there. kUnavailable after a pause.
  Result<std::int64_t> step();
  bool done() const { return done_ == bytes_; }
  // When it is: the request keeps what is behind as its payload, and no departure: that knows all.
  void finish();

 private:
  Request& request_;
  const ByteSpan region_;
  const Clock& clock_;
  Clock::TimePoint latest_;  // of begin() and steps
  std::vector<ByteSpan> runs_;
  RunWriter writer_;        // into them
  std::int64_t bytes_ = 0;  // of all runs
  std::int64_t done_ = 0;
  std::size_t span_ = 0;  // of the payload; what was copied of it is cut off
};

}  // namespace icefield
