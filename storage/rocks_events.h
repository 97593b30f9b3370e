// storage/rocks_events.h — what RocksDB tells of itself: flushes, full and broken disks, its log.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/listener.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <memory>
#include <mutex>

namespace icefield {

// Flush() of RocksDB 7.8 may say ok after an error before anything is flushed (seen after it had
// gone on by itself while it was asked to), so what was flushed is heard from here, and it goes on
// only when it is told to.
//
// Threads  Safe from any thread.
class RocksEvents final : public rocksdb::EventListener {
 public:
  // Of background work, by a full disk, until clear_stopped(), which says whether it was.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  bool clear_stopped() { return stopped_.exchange(false, std::memory_order_relaxed); }
  void set_stopped() { stopped_.store(true, std::memory_order_relaxed); }
  // Of all writing, by anything else that the device said: until the store is opened anew.
  bool broken() const { return broken_.load(std::memory_order_relaxed); }
  // For background work that has failed and would be tried again: waits until let_go() and says
  // true when the store is broken, else false at once.
  bool hold_if_broken();
  void let_go();

  // Whether everything up to this number is in files, waited for as long.
  bool flushed(rocksdb::SequenceNumber sequence, std::chrono::milliseconds wait);
  void set_flushed(rocksdb::SequenceNumber sequence);

  void OnBackgroundError(rocksdb::BackgroundErrorReason, rocksdb::Status* status) override;
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }
  void OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo& info) override {
    set_flushed(info.largest_seqno);
  }

 private:
  std::atomic<bool> stopped_{false};  // flags alone
  std::atomic<bool> broken_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  rocksdb::SequenceNumber flushed_ = 0;  // guarded by mutex_
  bool let_go_ = false;                  // guarded by mutex_
};

// Its warnings go to our log, once it is open: why it does not open is said by who opens it.
// RocksDB's own log is a file beside the others, and on a full disk a line that finds no space
// stops the process with the next one.
//
// Threads  Safe from any thread.
class RocksLog final : public rocksdb::Logger {
 public:
  RocksLog();
  void opened() { open_.store(true, std::memory_order_relaxed); }

  using rocksdb::Logger::Logv;
  void Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) override;
  void Logv(const char* format, va_list arguments) override {
    Logv(rocksdb::INFO_LEVEL, format, arguments);
  }

 private:
  std::atomic<bool> open_{false};  // a flag alone
};

}  // namespace icefield
