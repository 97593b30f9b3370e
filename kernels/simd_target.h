// kernels/simd_target.h — the instruction sets that SIMD code can run with: Highway's, and on top
// of AVX3_DL the tiles of AMX, which Highway does not know.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace icefield {

struct SimdTarget {
  std::int64_t highway = 0;  // HWY_AVX2, ...
  bool tiles = false;        // products of tiles of bf16
};

// Those that this binary has code for and this machine can run, best first; the last is Highway's
// portable fallback.
std::vector<SimdTarget> simd_targets();
std::string name_of(const SimdTarget& target);  // "AVX3_DL with AMX"

// Whether code for HWY_AVX3_DL or better is to use tiles. The first call, by cpu_kernels() at the
// latest, asks Linux for leave, which it gives to the whole process, threads and children included;
// where it does not there are no tiles. With leave a signal's frame may be 8 KB larger, so that
// sigaltstack() refuses stacks below some 11 KB, and leave is refused where there is one already.
// Any thread.
bool tiles_usable();

// For tests, before any other thread runs: from now on, SIMD code runs with `target`.
void run_with(const SimdTarget& target);

}  // namespace icefield
