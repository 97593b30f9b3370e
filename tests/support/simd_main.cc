// The main() of tests of SIMD code: runs them once for every instruction set that was compiled and
// that this CPU has, each in a process of its own, so that older CPUs get tested code too.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include "kernels/simd_target.h"

int main(int argc, char** argv) {
  bool only_list = false;
  for (int i = 1; i < argc; ++i) only_list |= std::string_view(argv[i]) == "--gtest_list_tests";
  testing::InitGoogleTest(&argc, argv);
  if (only_list) return RUN_ALL_TESTS();
  int failures = 0;
  for (const icefield::SimdTarget& target : icefield::simd_targets()) {
    const std::string name = icefield::name_of(target);
    std::printf("instruction set %s\n", name.c_str());
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      icefield::run_with(target);
      return RUN_ALL_TESTS();
    }
    int status = 0;
    const bool passed = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
                        WEXITSTATUS(status) == 0;
    if (passed) continue;
    std::printf("FAILED with instruction set %s\n", name.c_str());
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
