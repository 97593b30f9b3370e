// transport/placing.h — writes the front of a request's payload into room in a region.
#pragma once

#include "common/run_writer.h"
#include "transport/transport.h"

namespace icefield {

// For transports to which the region is memory. A slice at a time, so that who looks at what leaves
// has it in a cache when it is copied, and others get their turn in between.
class Placing {
 public:
  static constexpr std::int64_t kSliceBytes = 32 << 10;

  // The request has room; `region` must stay while the copying goes on.
  Placing(Request& request, ByteSpan region) : request_(request), region_(region) {}

  // Once, first: then the room is ours. Errors as Transport::call() with room.
  Status begin();
  // Copies the next slice and gives back its size; 0 when all is there.
  std::int64_t step();
  bool done() const { return done_ == bytes_; }
  // When it is: the request keeps what is behind as its payload, and no departure: that knows all.
  void finish();

 private:
  Request& request_;
  const ByteSpan region_;
  std::vector<ByteSpan> runs_;
  RunWriter writer_;        // into them
  std::int64_t bytes_ = 0;  // of all runs
  std::int64_t done_ = 0;
  std::size_t span_ = 0;  // of the payload; what was copied of it is cut off
};

}  // namespace icefield
