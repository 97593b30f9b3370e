// tools/transport_metrics.h — what the transport of a node counts, on the node's page.
#pragma once

#include "cache_node/metrics_page.h"
#include "transport/ucx/ucx_counters.h"

namespace icefield {

void collect(const UcxCounters& counters, MetricsPage& page);

}  // namespace icefield
