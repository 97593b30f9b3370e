// storage/reserving_file_system.h — RocksDB's file system, for disks that others fill.
#pragma once

#include <rocksdb/file_system.h>

#include <memory>

#include "storage/disk_reserve.h"

namespace icefield {

// A write that finds no space takes some of `reserve` and is done again, and waits when that is
// used up: RocksDB sees a slow disk, no full one. Compactions take none of it.
//
// Its way back from an error of a flush is none to rely on (7.8.3: of two atomic flushes the second
// may wait for ever for the first that failed, and later ones say ok before they are done). Where
// nobody may wait, while a store opens or closes, the file is given up: its writes are dropped,
// and syncing and closing it fail for want of space. As Debian builds it, RocksDB stops the process
// when it goes on with a file of which a write has failed; an error at the end it survives.
//
// `reserve` must outlive the file system. Files are `below`'s.
std::shared_ptr<rocksdb::FileSystem> reserving_file_system(
    DiskReserve& reserve, std::shared_ptr<rocksdb::FileSystem> below);

}  // namespace icefield
