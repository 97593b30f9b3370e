// common/check.h — programmer errors stop the program, in every build.
#pragma once

namespace icefield::internal {
// Prints "check failed: <condition>, <file>:<line>" to standard error and aborts.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace icefield::internal

// Pre- and postconditions; stays on in release builds.
#define ICE_CHECK(condition)    \
  (static_cast<bool>(condition) \
       ? static_cast<void>(0)   \
       : ::icefield::internal::check_failed(#condition, __FILE__, __LINE__))

// Only where ICE_CHECK would cost time that can be measured.
#ifdef NDEBUG
#define ICE_DCHECK(condition) static_cast<void>(sizeof(static_cast<bool>(condition)))
#else
#define ICE_DCHECK(condition) ICE_CHECK(condition)
#endif
