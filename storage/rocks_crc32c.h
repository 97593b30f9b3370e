// storage/rocks_crc32c.h — RocksDB's CRC32C by the processor's own instruction.
#pragma once

namespace icefield {

// RocksDB computes a CRC32C of every byte that it writes, and Debian builds it for the oldest
// x86-64, where that is a walk through tables at 0.9 GB/s: more of a core than all the rest of a
// write. It calls the function through the dynamic linker, so the definition in rocks_crc32c.cc,
// which gives the same numbers, takes its place in every program that links this library.
//
// Whether it did; on other processors it does not. Calling this links that definition in.
bool has_fast_crc32c();

}  // namespace icefield
