// tests/support/tidy_rules.h — rules of STYLE.md that a program can check.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

namespace icefield::tidy {

// One source file: its path from the root ("transport/ucx/wire.h") and its text.
struct Source {
  std::string path;
  std::string text;
};

// "path:line: what is wrong; what to do".
using Findings = std::vector<std::string>;

// Rank of each module: cmake/layers.cmake, parsed.
std::map<std::string, int> parse_layers(const std::string& layers_cmake);

// Rules that need one file.
Findings check_file(const Source& source, const std::map<std::string, int>& ranks);

// Rules that need all of them: sources that no CMakeLists.txt names, headers that nobody includes.
// `cmake` has the text of all CMakeLists.txt by folder.
Findings check_orphans(const std::vector<Source>& sources,
                       const std::map<std::string, std::string>& cmake);

}  // namespace icefield::tidy
