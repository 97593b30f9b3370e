#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace icefield {
namespace {

constexpr int kWidth = 30;
constexpr std::chrono::milliseconds kFirst{1000};
constexpr std::chrono::milliseconds kEvery{100};

}  // namespace

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)),
      total_(std::max<std::int64_t>(total, 1)),
      terminal_(isatty(STDERR_FILENO) != 0),
      begin_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (visible_) std::fprintf(stderr, "\r\033[K");
}

void Progress::set(std::int64_t done) {
  done_ = std::clamp<std::int64_t>(done, 0, total_);
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || now - begin_ < kFirst || (visible_ && now - drawn_ < kEvery)) return;
  drawn_ = now;
  draw();
}

void Progress::draw() {
  visible_ = true;
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin_;
  const double left = share > 0 ? passed.count() * (1 - share) / share : 0;
  std::string bar;
  for (int i = 0; i < kWidth; ++i) bar += i < static_cast<int>(share * kWidth) ? "█" : "░";
  std::fprintf(stderr, "\r\033[K%s %s %3.0f %%  %.0f s left", what_.c_str(), bar.c_str(),
               share * 100, left);
  std::fflush(stderr);
}

}  // namespace icefield
