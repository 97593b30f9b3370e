#include "storage/reserving_file_system.h"

#include <glog/logging.h>

namespace icefield {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

// With what a file system keeps beside the bytes.
std::int64_t space_for(std::size_t bytes) {
  return static_cast<std::int64_t>(bytes + bytes / 16 + (64 << 10));
}

class ReservedFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  ReservedFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string name,
               DiskReserve& reserve)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), reserve_(reserve) {}

  // One that fails in the middle cannot be done again, so its space comes first.
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* dbg) override {
    const auto allocate = [&] { return Allocate(appended_, data.size(), options, dbg); };
    (void)with_space(data.size(), allocate);  // other errors are the write's to tell
    appended_ += data.size();
    return until_the_end(failure_.ok() ? target()->Append(data, options, dbg) : failure_);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo&, IODebugContext* dbg) override {
    return Append(data, options, dbg);
  }
  IOStatus PositionedAppend(const rocksdb::Slice& data, std::uint64_t offset,
                            const IOOptions& options, IODebugContext* dbg) override {
    const auto write = [&] { return target()->PositionedAppend(data, offset, options, dbg); };
    return until_the_end(with_space(data.size(), write));
  }
  IOStatus PositionedAppend(const rocksdb::Slice& data, std::uint64_t offset,
                            const IOOptions& options, const rocksdb::DataVerificationInfo&,
                            IODebugContext* dbg) override {
    return PositionedAppend(data, offset, options, dbg);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    return failure_.ok() ? target()->Sync(options, dbg) : failure_;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    return failure_.ok() ? target()->Fsync(options, dbg) : failure_;
  }
  IOStatus Close(const IOOptions& options, IODebugContext* dbg) override {
    const IOStatus closed = target()->Close(options, dbg);
    return failure_.ok() ? closed : failure_;
  }

 private:
  // Does it until there is space.
  template <class Write>
  IOStatus with_space(std::size_t bytes, Write write) {
    if (!failure_.ok()) return failure_;
    IOStatus status = write();
    const auto use = GetIOPriority() == rocksdb::Env::IO_LOW  // of a compaction
                         ? DiskReserve::Use::kRoomOfOthersOnly
                         : DiskReserve::Use::kReserve;
    while (status.IsNoSpace() && reserve_.make_room(space_for(bytes), use)) status = write();
    if (status.IsNoSpace()) give_up(status);
    return status;
  }
  void give_up(const IOStatus& status) {
    LOG(WARNING) << "file " << name_ << " given up: " << status.ToString();
    failure_ = status;
  }
  // What a write says: want of space is told when the file ends.
  IOStatus until_the_end(const IOStatus& status) {
    if (failure_.ok() && status.IsNoSpace()) give_up(status);
    return failure_.ok() ? status : IOStatus::OK();
  }

  const std::string name_;
  DiskReserve& reserve_;
  std::uint64_t appended_ = 0;
  IOStatus failure_;  // for want of space
};

class ReservingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  ReservingFileSystem(DiskReserve& reserve, std::shared_ptr<rocksdb::FileSystem> below)
      : FileSystemWrapper(std::move(below)), reserve_(reserve) {}
  const char* Name() const override { return "IcefieldReservingFileSystem"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* dbg) override {
    IOStatus status = target()->NewWritableFile(name, options, file, dbg);
    while (status.IsNoSpace() && reserve_.make_room(space_for(0), DiskReserve::Use::kReserve)) {
      status = target()->NewWritableFile(name, options, file, dbg);
    }
    if (status.ok()) *file = std::make_unique<ReservedFile>(std::move(*file), name, reserve_);
    return status;
  }

 private:
  DiskReserve& reserve_;
};

}  // namespace

std::shared_ptr<rocksdb::FileSystem> reserving_file_system(
    DiskReserve& reserve, std::shared_ptr<rocksdb::FileSystem> below) {
  return std::make_shared<ReservingFileSystem>(reserve, std::move(below));
}

}  // namespace icefield
