// The main() of the same tests on the emulated GPU: once with threads in their order between two
// barriers, once in the other, each in a process of its own. What depends on it lacks a barrier.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "kernels/emulation/emulation.h"

int main(int argc, char** argv) {
  using icefield::emulation::Order;
  testing::InitGoogleTest(&argc, argv);
  int failures = 0;
  for (const Order order : {Order::kForward, Order::kBackward}) {
    std::printf("threads %s\n", order == Order::kForward ? "forward" : "backward");
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      icefield::emulation::set_order(order);
      return RUN_ALL_TESTS();
    }
    int status = 0;
    const bool passed = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
                        WEXITSTATUS(status) == 0;
    failures += passed ? 0 : 1;
  }
  return failures == 0 ? 0 : 1;
}
