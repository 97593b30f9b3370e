// tests/support/process.h — runs our programs as a user would.
#pragma once

#include <string>
#include <vector>

namespace icefield {

struct ProcessResult {
  int exit_code = -1;  // 128 + signal when it was killed
  std::string out;
  std::string err;
};

// Runs build/<preset>/bin/icefield with these arguments to its end, from the project's root, in our
// environment with these variables ("NAME=value").
ProcessResult run_icefield(const std::vector<std::string>& arguments,
                           const std::vector<std::string>& variables = {});

// Starts it and kills it (SIGKILL) as soon as `when` returns true; `when` is called again and
// again. The result has what was printed until then.
ProcessResult kill_icefield(const std::vector<std::string>& arguments, bool (*when)(void*),
                            void* context);

}  // namespace icefield
