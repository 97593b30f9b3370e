// tools/nvme_restart.h — how fast a node serves after a start, and what its index takes.
#pragma once

#include <string>

#include "common/status.h"
#include "tools/report.h"

namespace icefield {

struct NvmeRestart {
  std::string path;  // of the store, made here
  std::int64_t values = 0;
  std::int64_t value_bytes = 0;  // at most one chunk
  std::int64_t write_buffer_bytes = 0;
};

// Fills a store with values as a node keeps them: a chunk and a name each. Then, each time with a
// cold page cache, opens the tier alone, and a node until it has served a value.
Status measure_restart(const NvmeRestart& restart, Report& report);

// Writes what is dirty, and empties the page cache where this process may.
void drop_page_cache();

}  // namespace icefield
