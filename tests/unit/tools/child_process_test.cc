// How a program that ran beside ours has ended.
#include "tools/child_process.h"

#include <gtest/gtest.h>

namespace icefield {
namespace {

std::string end_of(const std::string& script) {
  Result<ChildProcess> child = ChildProcess::start({.arguments = {"sh", "-c", script}});
  return child.has_value() ? end_text(child->wait()) : child.status().to_string();
}

TEST(ChildProcess, EndSaysWhichSignalItWas) {
  EXPECT_EQ(end_of("exit 0"), "exit code 0");
  EXPECT_EQ(end_of("exit 3"), "exit code 3");
  EXPECT_EQ(end_of("kill -9 $$"), "signal 9 (Killed)");
  EXPECT_EQ(end_of("kill -15 $$"), "signal 15 (Terminated)");
}

}  // namespace
}  // namespace icefield
