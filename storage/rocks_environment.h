// storage/rocks_environment.h — what RocksDB runs in: files, and pauses.
#pragma once

#include <rocksdb/env.h>

#include <memory>

#include "storage/rocks_events.h"

namespace icefield {

// These files, and a clock whose pauses after errors of a broken store last until it is let go. Of
// two atomic flushes the second waits for the first, also for one that failed (7.8.3), and looks
// whether the store is being closed only when the work of another ends: that of the first must not
// have ended before.
std::unique_ptr<rocksdb::Env> rocks_environment(std::shared_ptr<rocksdb::FileSystem> files,
                                                std::shared_ptr<RocksEvents> events);

}  // namespace icefield
