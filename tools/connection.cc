#include "tools/connection.h"

#include "tools/report.h"

namespace icefield {

Task<PeerHealth> settled_health(std::function<Task<PeerHealth>()> ask) {
  SystemClock clock;
  const Deadline end = Deadline::after(clock, std::chrono::milliseconds(200));
  while (true) {
    ICE_CO_TRY(PeerHealth health, co_await ask());
    const bool measured = health.state != PeerState::kUp || health.bytes_per_second > 0;
    if (measured || end.passed(clock)) co_return health;
    (void)co_await clock.sleep_until(clock.now() + std::chrono::milliseconds(5));
  }
}

std::string lanes_text(const PeerHealth& health) {
  return health.lanes + (health.local ? " on this machine" : "");
}

std::string bandwidth_text(const PeerHealth& health) {
  if (health.bytes_per_second == 0) return "–";
  return bytes_text(static_cast<double>(health.bytes_per_second)) + "/s";
}

}  // namespace icefield
