// What carries bytes between our programs, and who gets to know: real processes.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/daemon.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

// A node that is started with these variables ("NAME=value").
class NodeWith : public Daemon {
 public:
  NodeWith(std::vector<std::string> variables, const std::vector<std::string>& flags)
      : Daemon(
            [&] {
              std::vector<std::string>& words = variables;
              words.insert(words.end(), {ICEFIELD_BIN_DIR "/icefield", "node",
                                         "--listen=127.0.0.1:0", "--dram_bytes=33554432"});
              words.insert(words.end(), flags.begin(), flags.end());
              return words;
            }(),
            "node ", "/usr/bin/env") {}
  // The flag that names it.
  std::string cluster() const {
    const std::size_t begin = std::string("node ").size();
    return "--cluster=" + ready_line().substr(begin, ready_line().find(' ', begin) - begin);
  }
};

TEST(Lanes, NoVariableChangesWhatUcxDoes) {
  const std::vector<std::string> hostile = {
      "UCX_TLS=self",           "UCX_SHM_DEVICES=none",    "UCX_POSIX_DIR=/nonexistent",
      "UCX_RNDV_THRESH=1",      "UCX_NET_DEVICES=none",    "UCX_MM_SEG_SIZE=1k",
      "UCX_TCP_TX_SEG_SIZE=1k", "UCX_MM_ERROR_HANDLING=n", "UCX_TCP_AF_PRIO=inet6",
      "UCX_LOG_LEVEL=debug",    "UCX_HANDLE_ERRORS=freeze"};
  const TempDir dir;
  const std::string value(1'000'000, 'v');
  std::ofstream(dir.file("value")) << value;
  for (const std::string lanes : {"posix", "tcp"}) {
    NodeWith node(hostile, {lanes == "tcp" ? "--lanes=tcp" : "--lanes=auto"});
    ASSERT_NE(node.ready_line(), "");
    const ProcessResult ping =
        run_icefield({"ping", "--json", "--count=5", node.cluster()}, hostile);
    ASSERT_EQ(ping.exit_code, 0) << ping.err;
    EXPECT_EQ(json::parse(ping.out)["figures"][0]["params"]["lanes"], lanes) << ping.out;
    const std::string file = "--file=" + dir.file("value");
    EXPECT_EQ(run_icefield({"put", node.cluster(), "--key=k", file}, hostile).exit_code, 0);
    EXPECT_EQ(run_icefield({"get", node.cluster(), "--key=k"}, hostile).out, value);
    EXPECT_EQ(node.stop(), 0);
  }
}

}  // namespace
}  // namespace icefield
