// storage/blob_reader.h — reads spans of a store's blob files, past RocksDB. Blocking.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"

namespace icefield {

// Buffers for direct I/O, used again: a fresh one of 128 KiB would be mapped and faulted in anew.
//
// Ownership  Buffers may outlive the pool: whoever has one holds the pool with it.
// Threads    Safe from any thread.
class ReadBuffers : public std::enable_shared_from_this<ReadBuffers> {
 public:
  // Keeps at most this much of free memory.
  explicit ReadBuffers(std::int64_t spare_bytes) : spare_bytes_(spare_bytes) {}
  // At least `bytes` long, at a multiple of 4096.
  std::shared_ptr<std::byte> take(std::int64_t bytes);

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  using Memory = std::unique_ptr<std::byte, Free>;
  void give_back(std::size_t size_class, Memory memory);

  const std::int64_t spare_bytes_;
  std::mutex mutex_;  // guards all below
  std::int64_t free_bytes_ = 0;
  std::array<std::vector<Memory>, 40> free_;  // by size: 4096 << index
};

// Keeps some files open; forget() those that are deleted, or their space is not given back.
//
// Threads  Safe from any thread.
class BlobReader {
 public:
  struct Span {
    std::uint32_t file = 0;
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
  };
  struct Read {
    ConstByteSpan bytes;
    std::shared_ptr<const void> owner;
  };

  BlobReader(std::string path, bool direct_io);
  // None when the file is not there or ends before the span does, or the device says no.
  std::optional<Read> read(const Span& span);
  void forget(std::uint32_t file);

 private:
  class File;
  struct Slot {
    std::mutex mutex;
    std::uint32_t number = 0;
    std::shared_ptr<const File> file;
  };

  Slot& slot_of(std::uint32_t file);
  std::shared_ptr<const File> file_of(std::uint32_t file);

  const std::string path_;
  const bool direct_io_;
  const std::shared_ptr<ReadBuffers> buffers_;
  std::array<Slot, 256> slots_;  // a file has one place here; who comes later takes it
};

}  // namespace icefield
