// cache_node/read_through.h — reads an object from memory, else from disk into memory.
#pragma once

#include "common/metrics.h"
#include "storage/dram_tier.h"

namespace icefield {

// `disk` may be null. What memory has no room for is served from the disk's copy; so is one
// that others replaced while it was read.
inline Task<ObjectBytes> read_through(DramTier& memory, Tier* disk, ObjectKey key, Verify verify,
                                      Counter& disk_reads) {
  Result<ObjectBytes> kept = memory.read(key, verify);
  if (kept.has_value() || disk == nullptr) co_return kept;
  const std::optional<ObjectInfo> wanted = disk->find(key);
  ICE_CO_TRY(ObjectBytes bytes, co_await disk->get(key, Verify::kByTier));
  disk_reads.add();
  const std::optional<ObjectInfo> info = disk->find(key);
  if (info.has_value() && info == wanted) (void)co_await memory.put(key, bytes.pieces(), *info);
  co_return bytes;
}

}  // namespace icefield
