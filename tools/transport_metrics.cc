#include "tools/transport_metrics.h"

namespace icefield {

void collect(const UcxCounters& counters, MetricsPage& page) {
  page.add(counters.stray_fragments);
  page.add(counters.stuck_queues);
  for (std::size_t i = 0; i < counters.by_reason.size(); ++i) {
    page.add(counters.by_reason[i], {{"reason", kHandshakeFailureNames[i]}});
  }
  page.add_gauge("icefield_transport_connections", "connections of clients",
                 static_cast<double>(counters.connections.load(std::memory_order_relaxed)));
}

}  // namespace icefield
