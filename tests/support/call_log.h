// tests/support/call_log.h — how calls under load ended, and how long they took.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <initializer_list>
#include <map>
#include <mutex>

#include "common/status.h"

namespace icefield {

// Threads  Any.
class CallLog {
 public:
  // Makes a call and counts its end.
  template <class Call>
  Status note(Call call) {
    const auto begin = std::chrono::steady_clock::now();
    const Status status = call();
    const auto took = std::chrono::steady_clock::now() - begin;
    const std::lock_guard lock(mutex_);
    ++ended_[status.code()];
    longest_ = std::max<std::chrono::nanoseconds>(longest_, took);
    changed_.notify_all();
    return status;
  }

  // Waits for `count` more calls that end with `code`.
  void wait_for(Code code, int count) {
    std::unique_lock lock(mutex_);
    const int goal = ended_[code] + count;
    const bool came =
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return ended_[code] >= goal; });
    EXPECT_TRUE(came) << count << " calls should have ended with " << to_string(code)
                      << "; so far: " << testing::PrintToString(ended_);
  }

  int ended(Code code) {
    const std::lock_guard lock(mutex_);
    return ended_[code];
  }
  // Calls ended with these codes alone, none after more than `most`.
  void expect_only(std::initializer_list<Code> codes, std::chrono::nanoseconds most) {
    const std::lock_guard lock(mutex_);
    for (const auto& [code, count] : ended_) {
      EXPECT_TRUE(count == 0 || std::ranges::find(codes, code) != codes.end())
          << count << " calls ended with " << to_string(code);
    }
    EXPECT_LT(longest_, most);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Code, int> ended_;            // guarded by mutex_
  std::chrono::nanoseconds longest_{0};  // guarded by mutex_
};

}  // namespace icefield
