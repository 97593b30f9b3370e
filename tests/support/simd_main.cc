// The main() of tests of SIMD code: runs them once for every instruction set that was compiled and
// that this CPU has, each in a process of its own, so that older CPUs get tested code too.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

#include "hwy/highway.h"

namespace {

int run_with(std::int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(target);
  return RUN_ALL_TESTS();
}

}  // namespace

int main(int argc, char** argv) {
  bool only_list = false;
  for (int i = 1; i < argc; ++i) only_list |= std::string_view(argv[i]) == "--gtest_list_tests";
  testing::InitGoogleTest(&argc, argv);
  if (only_list) return RUN_ALL_TESTS();
  int failures = 0;
  // Bit order is best first; the last is Highway's portable fallback.
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    std::printf("instruction set %s\n", hwy::TargetName(target));
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) return run_with(target);
    int status = 0;
    const bool passed = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
                        WEXITSTATUS(status) == 0;
    if (passed) continue;
    std::printf("FAILED with instruction set %s\n", hwy::TargetName(target));
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
