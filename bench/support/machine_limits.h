// bench/support/machine_limits.h — what one core of this machine does at best: the scale that
// figures stand beside.
#pragma once

#include <cstdint>

#include "common/bytes.h"

namespace icefield {

// Each call measures once, for a few milliseconds. Ranges have been written before, so what fits a
// cache is in it.
double memcpy_gbps(std::int64_t bytes);  // bytes copied per second, to a range that large
double read_gbps(std::int64_t bytes);    // bytes summed per second, in order, of a range that large
double read_gbps(ConstByteSpan bytes);   // the same of that range, wherever it is: at least 16 KiB
double fma_gflops();                     // fp32 fused multiply-adds × 2, in registers

}  // namespace icefield
