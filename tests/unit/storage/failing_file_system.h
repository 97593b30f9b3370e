// tests/unit/storage/failing_file_system.h — a disk that fails, stalls or is full when a test says.
#pragma once

#include <rocksdb/file_system.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace icefield {

// The machine's file system, whose files ask a rule before they are opened for writing, written and
// synced: what it returns is what they say, OK is go on. It may wait, and is asked on RocksDB's
// threads.
//
// Threads  Safe from any thread.
class FailingFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  struct Access {
    enum class Kind { kOpen, kWrite, kSync };
    Kind kind = Kind::kOpen;
    std::string file;
    bool compaction = false;  // of a write
  };
  using Rule = std::function<rocksdb::IOStatus(const Access&)>;

  FailingFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FailingFileSystem"; }

  void set(Rule rule) {
    const std::lock_guard lock(mutex_);
    rule_ = std::make_shared<const Rule>(std::move(rule));
  }
  void clear() {
    set([](const Access&) { return rocksdb::IOStatus::OK(); });
  }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* dbg) override;

 private:
  class File;

  rocksdb::IOStatus ask(const Access& access) {
    std::shared_ptr<const Rule> rule;
    {
      const std::lock_guard lock(mutex_);
      rule = rule_;
    }
    return rule == nullptr ? rocksdb::IOStatus::OK() : (*rule)(access);
  }

  std::mutex mutex_;
  std::shared_ptr<const Rule> rule_;  // guarded by mutex_
};

class FailingFileSystem::File final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile> file, std::string name, FailingFileSystem& system)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), system_(system) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* dbg) override {
    const rocksdb::IOStatus status = ask(Access::Kind::kWrite, options);
    return status.ok() ? target()->Append(data, options, dbg) : status;
  }
  rocksdb::IOStatus PositionedAppend(const rocksdb::Slice& data, std::uint64_t offset,
                                     const rocksdb::IOOptions& options,
                                     rocksdb::IODebugContext* dbg) override {
    const rocksdb::IOStatus status = ask(Access::Kind::kWrite, options);
    return status.ok() ? target()->PositionedAppend(data, offset, options, dbg) : status;
  }
  // A file without direct I/O finds its space here.
  rocksdb::IOStatus Allocate(std::uint64_t offset, std::uint64_t bytes,
                             const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* dbg) override {
    const rocksdb::IOStatus status = ask(Access::Kind::kWrite, options);
    return status.ok() ? target()->Allocate(offset, bytes, options, dbg) : status;
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* dbg) override {
    const rocksdb::IOStatus status = ask(Access::Kind::kSync, options);
    return status.ok() ? target()->Sync(options, dbg) : status;
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options,
                          rocksdb::IODebugContext* dbg) override {
    const rocksdb::IOStatus status = ask(Access::Kind::kSync, options);
    return status.ok() ? target()->Fsync(options, dbg) : status;
  }

 private:
  rocksdb::IOStatus ask(Access::Kind kind, const rocksdb::IOOptions& options) {
    const bool compaction = options.rate_limiter_priority == rocksdb::Env::IO_LOW;
    return system_.ask({.kind = kind, .file = name_, .compaction = compaction});
  }

  const std::string name_;
  FailingFileSystem& system_;
};

inline rocksdb::IOStatus FailingFileSystem::NewWritableFile(
    const std::string& name, const rocksdb::FileOptions& options,
    std::unique_ptr<rocksdb::FSWritableFile>* file, rocksdb::IODebugContext* dbg) {
  rocksdb::IOStatus status = ask({.kind = Access::Kind::kOpen, .file = name});
  if (status.ok()) status = target()->NewWritableFile(name, options, file, dbg);
  if (status.ok()) *file = std::make_unique<File>(std::move(*file), name, *this);
  return status;
}

}  // namespace icefield
