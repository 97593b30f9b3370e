// storage/disk_reserve.h — space of a file system that is taken for writes that find none.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "common/status.h"

namespace icefield {

// A file whose blocks are allocated: others who fill the disk cannot have them. Whoever finds no
// space for a write asks for room and writes again; when the reserve is used up, too, it waits here
// until somebody has made some.
//
// Threads  Safe from any thread.
class DiskReserve {
 public:
  // Nothing is taken yet, but a file of an earlier process is kept.
  DiskReserve(std::string path, std::int64_t bytes);
  ~DiskReserve();
  DiskReserve(const DiskReserve&) = delete;
  DiskReserve& operator=(const DiskReserve&) = delete;

  // Takes what is missing, all of it or nothing: kResourceExhausted when the disk has not that
  // much. Does not wait for a device, but for the file system's allocator.
  Status take();
  enum class Use { kReserve, kRoomOfOthersOnly };
  // Frees at least so many bytes of the reserve, as far as there are so many, else waits a little:
  // true, try again. False when nobody may wait.
  bool make_room(std::int64_t bytes, Use use);
  // From now on. Not at first.
  void let_wait(bool may);
  int waiting() const { return waiting_.load(std::memory_order_relaxed); }  // a snapshot

  bool whole() const { return whole_.load(std::memory_order_relaxed); }  // a snapshot
  std::int64_t bytes() const { return bytes_; }                          // when it is whole

 private:
  std::int64_t held_bytes() const;  // needs mutex_

  const std::string path_;
  const std::int64_t bytes_;
  std::mutex mutex_;
  std::condition_variable wait_ended_;
  bool may_wait_ = false;           // guarded by mutex_
  std::atomic<int> waiting_{0};     // written under mutex_
  int file_ = -1;                   // guarded by mutex_
  std::atomic<bool> whole_{false};  // written under mutex_
};

}  // namespace icefield
