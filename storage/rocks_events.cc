#include "storage/rocks_events.h"

#include <glog/logging.h>
#include <rocksdb/env.h>

#include <cstdarg>
#include <cstdio>

namespace icefield {
namespace {

class Log final : public rocksdb::Logger {
 public:
  Log() : Logger(VLOG_IS_ON(2) ? rocksdb::INFO_LEVEL : rocksdb::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    const bool warning = level >= rocksdb::WARN_LEVEL && level < rocksdb::HEADER_LEVEL;
    if (!warning && !VLOG_IS_ON(2)) return;
    char line[512];
    std::vsnprintf(line, sizeof line, format, arguments);
    LOG_IF(WARNING, warning) << "RocksDB: " << line;
    VLOG_IF(2, !warning) << "RocksDB: " << line;
  }
  void Logv(const char* format, va_list arguments) override {
    Logv(rocksdb::INFO_LEVEL, format, arguments);
  }
};

}  // namespace

bool RocksEvents::flushed(rocksdb::SequenceNumber sequence, std::chrono::milliseconds wait) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, wait, [&] { return flushed_ >= sequence; });
}

void RocksEvents::set_flushed(rocksdb::SequenceNumber sequence) {
  const std::lock_guard lock(mutex_);
  flushed_ = std::max(flushed_, sequence);
  changed_.notify_all();
}

std::shared_ptr<rocksdb::Logger> rocks_log() { return std::make_shared<Log>(); }

}  // namespace icefield
