#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace icefield::internal {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "check failed: %s, %s:%d\n", condition, file, line);
  std::abort();
}

}  // namespace icefield::internal
