// tools/progress.h — a progress bar on standard error, for what takes longer than a second.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace icefield {

// Shows nothing before the first second and nothing at all when standard error is no terminal.
// Threads  One at a time.
class Progress {
 public:
  // `total` in whatever the caller counts.
  Progress(std::string what, std::int64_t total);
  ~Progress();  // wipes the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void set(std::int64_t done);

 private:
  void draw();

  const std::string what_;
  const std::int64_t total_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point begin_;
  std::chrono::steady_clock::time_point drawn_;
  std::int64_t done_ = 0;
  bool visible_ = false;
};

}  // namespace icefield
