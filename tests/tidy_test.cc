// STYLE.md as far as a program can check it, over all of our sources; and that each rule can fail.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/tidy_rules.h"

namespace icefield::tidy {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

struct Tree {
  std::vector<Source> sources;
  std::map<std::string, std::string> cmake;
  std::map<std::string, int> ranks;
};

const Tree& tree() {
  static const Tree all = [] {
    Tree found;
    const fs::path root = ICEFIELD_SOURCE_DIR;
    found.ranks = parse_layers(read(root / "cmake/layers.cmake"));
    for (const auto& [module, rank] : found.ranks) {
      if (!fs::exists(root / module)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(root / module)) {
        const fs::path path = entry.path();
        const std::string name = path.lexically_relative(root).string();
        const std::string extension = path.extension().string();
        if (extension == ".h" || extension == ".cc" || extension == ".cu") {
          found.sources.push_back({name, read(path)});
        } else if (path.filename() == "CMakeLists.txt") {
          found.cmake[path.parent_path().lexically_relative(root).string()] = read(path);
        }
      }
    }
    return found;
  }();
  return all;
}

std::string joined(const Findings& findings) {
  std::string text;
  for (const std::string& finding : findings) text += finding + "\n";
  return text;
}

TEST(Tidy, OurSourcesKeepTheRules) {
  ASSERT_GT(tree().sources.size(), 100u);
  for (const Source& source : tree().sources) {
    EXPECT_EQ(joined(check_file(source, tree().ranks)), "");
  }
}

TEST(Tidy, NoSourceIsLeftOut) {
  EXPECT_EQ(joined(check_orphans(tree().sources, tree().cmake)), "");
}

TEST(Tidy, EveryModuleSaysWhatItIsFor) {
  for (const auto& [module, rank] : tree().ranks) {
    const fs::path folder = fs::path(ICEFIELD_SOURCE_DIR) / module;
    if (!fs::exists(folder)) continue;
    EXPECT_TRUE(fs::exists(folder / "README.md")) << module;
  }
}

struct Bad {
  Source source;
  const char* expected;
};

std::string long_function(int lines) {
  std::string text = "void f() {\n";
  for (int i = 2; i < lines; ++i) text += "  g();\n";
  return text + "}\n";
}

TEST(Tidy, EveryRuleCanFail) {
  const std::string wide(101, 'x');
  const Bad bad[] = {
      {{"common/a.cc", "auto x = getenv(\"HOME\");\n"}, "common/a.cc:1: getenv"},
      {{"tests/a.cc", "\nstd::this_thread::sleep_for(1s);\n"}, "tests/a.cc:2: a blocking sleep"},
      {{"worker/a.cc", "std::cout << 1;\n"}, "worker/a.cc:1: prints"},
      {{"tools/a.cc", "} catch (...) {\n"}, "tools/a.cc:1: catch (...)"},
      {{"common/a.h", "#pragma once\nusing namespace std;\n"}, "common/a.h:2: using namespace"},
      {{"common/a.cc",
        "// TO"
        "DO\n"},
       "common/a.cc:1: to-do"},
      {{"common/a.h", "int x;\n"}, "common/a.h:1: no #pragma once"},
      {{"common/a.cc", "int x;"}, "common/a.cc:1: no newline"},
      {{"common/a.cc", "#include <map>\n#include \"common/a.h\"\n"}, "is not the first include"},
      {{"common/a.cc", "//" + wide + "\n"}, "103 columns"},
      {{"common/a.cc", "\tint x;\n"}, "a tab"},
      {{"common/a.cc", "int x; \n"}, "blank at the end"},
      {{"client/a.cc", "#include \"worker/worker.h\"\n"}, "client includes worker/worker.h"},
      {{"kernels/a.cc", "#include \"storage/tier.h\"\n"}, "kernels includes storage/tier.h"},
      {{"client/a.cc", "#include <rocksdb/db.h>\n"}, "RocksDB outside"},
      {{"client/a.h", "#pragma once\n#include <glog/logging.h>\n"}, "glog in a header"},
      {{"client/a.cc", "#include <gflags/gflags.h>\n"}, "gflags outside"},
      {{"transport/a.cc", "#include <ucp/api/ucp.h>\n"}, "UCX outside"},
      {{"client/a.cc", "#include <cuda_runtime.h>\n"}, "CUDA outside"},
      {{"client/a.cc", "#include \"proto/icefield.pb.h\"\n"}, "Protobuf messages beyond"},
      {{"common/a.cc", long_function(71)}, "a function of 71 lines"},
  };
  for (const Bad& example : bad) {
    const Findings findings = check_file(example.source, tree().ranks);
    ASSERT_EQ(findings.size(), 1u) << example.expected << "\n" << joined(findings);
    EXPECT_NE(findings[0].find(example.expected), std::string::npos) << findings[0];
  }
}

TEST(Tidy, OrphansAreFound) {
  const std::vector<Source> sources = {{"common/used.h", "#pragma once\n"},
                                       {"common/unused.h", "#pragma once\n"},
                                       {"common/built.cc", "#include \"common/used.h\"\n"},
                                       {"common/ucx/lost.cc", ""}};
  const Findings findings = check_orphans(sources, {{"common", "SRCS built.cc"}});
  ASSERT_EQ(findings.size(), 2u) << joined(findings);
  EXPECT_NE(findings[0].find("common/unused.h:1: nobody"), std::string::npos);
  EXPECT_NE(findings[1].find("common/ucx/lost.cc:1: no CMakeLists"), std::string::npos);
}

TEST(Tidy, WhatIsAllowedPasses) {
  const Source fine[] = {
      {"common/a.cc", "// catch (...) and getenv() in a comment, \"std::cout\" too\n"},
      {"tools/a.cc",
       "std::cout << 1;  // TO"
       "DO: a table\n"},
      {"common/a.cc", long_function(70)},
      {"storage/nvme.cc", "#include <rocksdb/db.h>\n#include \"common/status.h\"\n"}};
  for (const Source& source : fine) EXPECT_EQ(joined(check_file(source, tree().ranks)), "");
}

}  // namespace
}  // namespace icefield::tidy
