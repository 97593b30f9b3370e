#include "storage/rocks_events.h"

#include <glog/logging.h>

#include <cstdio>

namespace icefield {

RocksLog::RocksLog() : Logger(VLOG_IS_ON(2) ? rocksdb::INFO_LEVEL : rocksdb::WARN_LEVEL) {}

void RocksLog::Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) {
  const bool warning = level >= rocksdb::WARN_LEVEL && level < rocksdb::HEADER_LEVEL &&
                       open_.load(std::memory_order_relaxed);
  if (!warning && !VLOG_IS_ON(2)) return;
  char line[512];
  std::vsnprintf(line, sizeof line, format, arguments);
  LOG_IF(WARNING, warning) << "RocksDB: " << line;
  VLOG_IF(2, !warning) << "RocksDB: " << line;
}

// Soft errors, of compactions that are tried again, stop nothing.
void RocksEvents::OnBackgroundError(rocksdb::BackgroundErrorReason, rocksdb::Status* status) {
  if (status->IsNoSpace()) return set_stopped();
  if (status->severity() < rocksdb::Status::Severity::kHardError) return;
  if (broken_.exchange(true, std::memory_order_relaxed)) return;
  LOG(ERROR) << "the store takes no more writes: " << status->ToString();
}

bool RocksEvents::hold_if_broken() {
  std::unique_lock lock(mutex_);
  if (!broken() || let_go_) return false;
  changed_.wait(lock, [this] { return let_go_; });
  return true;
}

void RocksEvents::let_go() {
  const std::lock_guard lock(mutex_);
  let_go_ = true;
  changed_.notify_all();
}

bool RocksEvents::flushed(rocksdb::SequenceNumber sequence, std::chrono::milliseconds wait) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, wait, [&] { return flushed_ >= sequence; });
}

void RocksEvents::set_flushed(rocksdb::SequenceNumber sequence) {
  const std::lock_guard lock(mutex_);
  flushed_ = std::max(flushed_, sequence);
  changed_.notify_all();
}

}  // namespace icefield
