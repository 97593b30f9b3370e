// storage/rocks_crc32c.h — RocksDB's CRC32C by the processor's own instruction.
#pragma once

namespace icefield {

// RocksDB computes a CRC32C of every byte that it writes, and Debian builds it for the oldest
// x86-64, where that is a walk through tables at 1.4 GB/s. It calls the function through the
// dynamic linker, so the definition in rocks_crc32c.cc, which gives the same numbers, takes its
// place in every program that links this library (docs/decisions/0006-crc32c-of-rocksdb.md).
//
// Whether it did; on other processors it does not. Calling this links that definition in.
bool has_fast_crc32c();

}  // namespace icefield
