// tests/support/objects.h — objects with contents and checksums for tests of tiers and nodes.
#pragma once

#include "common/ids.h"
#include "common/rng.h"
#include "storage/tier.h"

namespace icefield {

inline Hash128 random_hash(Rng& rng) {
  Hash128 hash;
  store(hash.bytes.data(), rng.next());
  store(hash.bytes.data() + 8, rng.next());
  return hash;
}

inline ObjectKey random_key(Rng& rng, PartKind kind = PartKind::kExtent) {
  ObjectKey key;
  key.segment.bytes = random_hash(rng).bytes;
  key.build.bytes = random_hash(rng).bytes;
  key.part = {.kind = kind, .layer = 3, .kv_head = 1, .extent = 7};
  return key;
}

inline Bytes random_bytes(Rng& rng, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next());
  return bytes;
}

inline ObjectInfo info_of(const ObjectKey& key, ConstByteSpan bytes) {
  return {.bytes = static_cast<std::int64_t>(bytes.size()),
          .checksum = object_checksum(key, std::span(&bytes, 1))};
}

}  // namespace icefield
