#include "storage/disk_reserve.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace icefield {
namespace {

// A write is seldom alone: with it goes what the file system keeps beside it.
constexpr std::int64_t kGiveAtLeast = 1 << 20;
constexpr std::chrono::milliseconds kWait{50};

std::int64_t available_bytes(int file) {
  struct statvfs space {};
  if (fstatvfs(file, &space) != 0) return INT64_MAX;  // the allocation will say what is wrong
  return static_cast<std::int64_t>(space.f_bavail) * static_cast<std::int64_t>(space.f_frsize);
}

}  // namespace

DiskReserve::DiskReserve(std::string path, std::int64_t bytes)
    : path_(std::move(path)), bytes_(bytes) {
  if (bytes_ > 0) file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
}

DiskReserve::~DiskReserve() {
  if (file_ >= 0) ::close(file_);
}

std::int64_t DiskReserve::held_bytes() const {
  struct stat status {};
  return file_ >= 0 && fstat(file_, &status) == 0 ? status.st_size : 0;
}

Status DiskReserve::take() {
  const std::lock_guard lock(mutex_);
  if (whole() || bytes_ == 0) {
    whole_.store(true, std::memory_order_relaxed);
    return Status();
  }
  if (file_ < 0) return Status(Code::kResourceExhausted, path_ + " cannot be made");
  const std::int64_t held = held_bytes();
  const std::int64_t missing = std::max<std::int64_t>(bytes_ - held, 0);
  const std::int64_t available = available_bytes(file_);
  int error = missing > available ? ENOSPC : posix_fallocate(file_, 0, bytes_);
  // A larger one of an earlier process shrinks.
  if (error == 0 && ftruncate(file_, bytes_) != 0) error = errno;
  if (error == 0) {
    whole_.store(true, std::memory_order_relaxed);
    return Status();
  }
  (void)!ftruncate(file_, held);  // what was taken of it is no use
  return Status(Code::kResourceExhausted, "the disk is full (" + std::to_string(available) +
                                              " bytes free, " + std::to_string(missing) +
                                              " wanted for the reserve " + path_ + ": " +
                                              std::strerror(error) + ")");
}

bool DiskReserve::make_room(std::int64_t bytes, Use use) {
  std::unique_lock lock(mutex_);
  const std::int64_t held = held_bytes();
  if (held > 0 && use == Use::kReserve) {
    whole_.store(false, std::memory_order_relaxed);
    const std::int64_t given = std::max(bytes, kGiveAtLeast);
    if (ftruncate(file_, std::max<std::int64_t>(held - given, 0)) == 0) return true;
  }
  if (!may_wait_) return false;
  waiting_.fetch_add(1, std::memory_order_relaxed);
  wait_ended_.wait_for(lock, kWait, [this] { return !may_wait_; });
  waiting_.fetch_sub(1, std::memory_order_relaxed);
  return may_wait_;
}

void DiskReserve::let_wait(bool may) {
  const std::lock_guard lock(mutex_);
  may_wait_ = may;
  wait_ended_.notify_all();
}

}  // namespace icefield
