// bench/support/timing.h — how long something takes.
#pragma once

#include <chrono>

namespace icefield {

// Milliseconds of one call of f.
template <class F>
double ms_of(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

}  // namespace icefield
