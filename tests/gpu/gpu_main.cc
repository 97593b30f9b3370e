// The main() of tests on a GPU: skips in words where there is none.
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/gpu.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!icefield::gpu_available()) {
    std::printf("skipped: no GPU of sm_80 or later here\n");
    return 77;  // ctest's SKIP_RETURN_CODE
  }
  return RUN_ALL_TESTS();
}
