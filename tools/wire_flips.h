// tools/wire_flips.h — values through a wire that flips bits.
#pragma once

#include <cstdint>

#include "common/status.h"

namespace icefield {

struct FlipOutcome {
  std::int64_t detected = 0;
  std::int64_t returned = 0;  // by a read as right, or kept by a node
};

// Puts and gets values of a node in this process until `flips` payloads had one bit flipped on
// their way. Errors: of the set-up.
Result<FlipOutcome> flip_on_the_wire(std::int64_t flips, std::int64_t value_bytes,
                                     std::uint64_t seed);

}  // namespace icefield
