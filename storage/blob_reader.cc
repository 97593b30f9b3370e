#include "storage/blob_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <new>

namespace icefield {
namespace {

constexpr std::int64_t kBlock = 4096;  // of direct I/O: what every device takes
constexpr std::int64_t kSpareBytes = 32 << 20;

}  // namespace

void ReadBuffers::Free::operator()(std::byte* memory) const {
  ::operator delete(memory, std::align_val_t(kBlock));
}

std::shared_ptr<std::byte> ReadBuffers::take(std::int64_t bytes) {
  const auto blocks = static_cast<std::uint64_t>(std::max<std::int64_t>(bytes, 1) + kBlock - 1) /
                      static_cast<std::uint64_t>(kBlock);
  const auto size_class = static_cast<std::size_t>(std::bit_width(blocks - 1));
  Memory memory;
  {
    const std::lock_guard lock(mutex_);
    auto& spare = free_[size_class];
    if (!spare.empty()) {
      memory = std::move(spare.back());
      spare.pop_back();
      free_bytes_ -= kBlock << size_class;
    }
  }
  if (memory == nullptr) {
    memory.reset(static_cast<std::byte*>(
        ::operator new(static_cast<std::size_t>(kBlock) << size_class, std::align_val_t(kBlock))));
  }
  std::byte* const raw = memory.release();
  return {raw, [pool = shared_from_this(), size_class](std::byte* done) {
            pool->give_back(size_class, Memory(done));
          }};
}

void ReadBuffers::give_back(std::size_t size_class, Memory memory) {
  const std::lock_guard lock(mutex_);
  const std::int64_t bytes = kBlock << size_class;
  if (free_bytes_ + bytes > spare_bytes_) return;
  free_bytes_ += bytes;
  free_[size_class].push_back(std::move(memory));
}

class BlobReader::File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Until `wanted` bytes are there, of at most `into.size()`.
  bool read(ByteSpan into, std::int64_t offset, std::int64_t wanted) const {
    std::int64_t done = 0;
    while (done < wanted) {
      const ByteSpan rest = into.subspan(static_cast<std::size_t>(done));
      const ssize_t got = ::pread(descriptor_, rest.data(), rest.size(), offset + done);
      if (got < 0 && errno == EINTR) continue;
      // Direct I/O goes on at a block or not at all.
      if (got <= 0 || (done + got < wanted && got % kBlock != 0)) return false;
      done += got;
    }
    return true;
  }

 private:
  const int descriptor_;
};

BlobReader::BlobReader(std::string path, bool direct_io)
    : path_(std::move(path)),
      direct_io_(direct_io),
      buffers_(std::make_shared<ReadBuffers>(kSpareBytes)) {}

BlobReader::Slot& BlobReader::slot_of(std::uint32_t file) {
  // RocksDB numbers files of all kinds together, so blob files come at regular distances.
  return slots_[(file * 0x9e3779b1u) >> 24];
}

// Opened under the lock of its slot: then forget(), which is called when the file is gone, finds
// what was opened before that, and nobody opens it after.
std::shared_ptr<const BlobReader::File> BlobReader::file_of(std::uint32_t file) {
  Slot& slot = slot_of(file);
  const std::lock_guard lock(slot.mutex);
  if (slot.number == file && slot.file != nullptr) return slot.file;
  std::array<char, 32> name;
  std::snprintf(name.data(), name.size(), "/%06u.blob", file);
  const int descriptor =
      ::open((path_ + name.data()).c_str(), O_RDONLY | O_CLOEXEC | (direct_io_ ? O_DIRECT : 0));
  if (descriptor < 0) return nullptr;
  slot.number = file;
  slot.file = std::make_shared<const File>(descriptor);
  return slot.file;
}

void BlobReader::forget(std::uint32_t file) {
  Slot& slot = slot_of(file);
  const std::lock_guard lock(slot.mutex);
  if (slot.number == file) slot.file = nullptr;
}

std::optional<BlobReader::Read> BlobReader::read(const Span& span) {
  const std::shared_ptr<const File> file = file_of(span.file);
  if (file == nullptr) return std::nullopt;
  const std::int64_t begin = span.offset / kBlock * kBlock;
  const std::int64_t wanted = span.offset - begin + span.bytes;
  const std::int64_t whole = (wanted + kBlock - 1) / kBlock * kBlock;
  std::shared_ptr<std::byte> buffer = buffers_->take(whole);
  if (!file->read({buffer.get(), static_cast<std::size_t>(whole)}, begin, wanted)) {
    return std::nullopt;
  }
  const ConstByteSpan bytes(buffer.get() + (span.offset - begin),
                            static_cast<std::size_t>(span.bytes));
  return Read{.bytes = bytes, .owner = std::move(buffer)};
}

}  // namespace icefield
