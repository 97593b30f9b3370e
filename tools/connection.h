// tools/connection.h — what carries the bytes to a node, and how fast, for people.
#pragma once

#include <functional>
#include <string>

#include "transport/transport.h"

namespace icefield {

// The health that `ask` tells once the bandwidth is known, which is measured beside the first calls
// over a connection; after 0.2 s as it is.
Task<PeerHealth> settled_health(std::function<Task<PeerHealth>()> ask);

std::string lanes_text(const PeerHealth& health);      // "posix on this machine"
std::string bandwidth_text(const PeerHealth& health);  // "8.1 GB/s", "–" when it is not known

}  // namespace icefield
