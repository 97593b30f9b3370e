// The daemon as operators and clients meet it: real processes, real sockets, signals.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/daemon.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/http.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

class NodeProcess : public testing::Test {
 protected:
  NodeProcess() {
    tiny_model(1).write(dir_.file("model.gguf"));
    SeededRng rng(3);
    std::ofstream document(dir_.file("document.txt"));
    for (int i = 0; i < 1500; ++i) document << static_cast<char>('a' + rng.below(26));
  }
  // `icefield run` on these nodes; the figures and answers it printed.
  json run(const std::string& members, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"run",
                                          "--json",
                                          "--cluster=" + members,
                                          "--model=" + dir_.file("model.gguf"),
                                          "--document=" + dir_.file("document.txt"),
                                          "--ask=why?",
                                          "--max_tokens=4",
                                          "--budget=64"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProcessResult result = run_icefield(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? json::parse(result.out) : json();
  }
  static double figure(const json& report, const std::string& name) {
    for (const json& entry : report["figures"]) {
      if (entry["name"] == name) return entry["value"];
    }
    ADD_FAILURE() << "no figure " << name;
    return -1;
  }

  TempDir dir_;
};

TEST_F(NodeProcess, TellsOperatorsHowItIs) {
  NodeDaemon node("127.0.0.1:0", {"--store=" + dir_.file("store")});
  ASSERT_NE(node.admin(), "") << node.ready_line();
  EXPECT_NE(http(node.admin(), "/health").find("200 OK"), std::string::npos);
  EXPECT_NE(http(node.admin(), "/ready").find("200 OK"), std::string::npos);
  EXPECT_NE(http(node.admin(), "/config").find("\"dram_bytes\": 67108864"), std::string::npos);
  EXPECT_NE(http(node.admin(), "/version").find("\"layout_version\""), std::string::npos);
  EXPECT_NE(
      http(node.admin(), "/metrics").find("# TYPE icefield_cache_node_requests_total counter"),
      std::string::npos);
  EXPECT_NE(http(node.admin(), "/nothing").find("404 Not Found"), std::string::npos);
  EXPECT_NE(http(node.admin(), "/health", "DELETE").find("405 "), std::string::npos);
  EXPECT_EQ(talk(node.admin(), std::string(20000, 'x')), "") << "no HTTP: closed";
  EXPECT_NE(http(node.admin(), "/health").find("200 OK"), std::string::npos);
  EXPECT_EQ(node.stop(), 0);
}

TEST_F(NodeProcess, ClientsOfThisMachineReadLargeValuesByThemselves) {
  const std::string value(1'000'000, 'v');
  std::ofstream(dir_.file("value")) << value;
  const std::uintmax_t room = std::filesystem::space("/dev/shm").available;
  const struct {
    std::vector<std::string> flags;
    bool shared;
    const char* words;  // of the log; "": says nothing
  } cases[] = {
      {{"--dram_bytes=33554432"}, true, ""},
      {{"--lanes=tcp"}, false, ""},
      {{"--dram_bytes=" + std::to_string(room + (1 << 30))}, false, "are free in /dev/shm"},
  };
  for (const auto& one : cases) {
    testing::internal::CaptureStderr();
    NodeDaemon node("127.0.0.1:0", one.flags);
    const std::string log = testing::internal::GetCapturedStderr();
    EXPECT_EQ(log.find("not shared") != std::string::npos, *one.words != '\0') << log;
    EXPECT_NE(log.find(one.words), std::string::npos) << log;
    const std::string cluster = "--cluster=" + node.address();
    EXPECT_EQ(run_icefield({"put", cluster, "--key=k", "--file=" + dir_.file("value")}).exit_code,
              0);
    EXPECT_EQ(run_icefield({"get", cluster, "--key=k"}).out, value);
    const std::string placed = one.shared ? "1" : "0";
    // The client has gone, and its lease goes when the node hears of it.
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    std::string page;
    do {
      page = http(node.admin(), "/metrics");
    } while (page.find("read_leases_bytes 0\n") == std::string::npos &&
             std::chrono::steady_clock::now() < end);
    EXPECT_NE(page.find("read_leases_bytes 0\n"), std::string::npos) << page;
    EXPECT_NE(page.find(one.shared ? "memory_shared 1\n" : "memory_shared 0\n"), std::string::npos);
    EXPECT_NE(page.find("value_gets_placed_total " + placed + "\n"), std::string::npos) << page;
    EXPECT_EQ(node.stop(), 0);
  }
}

TEST_F(NodeProcess, ContextsAttachFromAnotherProcessOverEitherLane) {
  for (const std::string lanes : {"auto", "tcp"}) {
    NodeDaemon a("127.0.0.1:0", {"--lanes=" + lanes});
    NodeDaemon b("127.0.0.1:0", {"--lanes=" + lanes});
    const std::string members = a.address() + "," + b.address();
    const json first = run(members);
    const json second = run(members);
    EXPECT_EQ(figure(first, "prefill_tokens"), 1500);
    EXPECT_EQ(figure(second, "attached_tokens"), 1280) << "whole blocks";
    EXPECT_EQ(figure(second, "coverage"), 1);
    EXPECT_EQ(second["answers"][0]["answer"], first["answers"][0]["answer"]);
  }
}

TEST_F(NodeProcess, StoredContextsSurviveTheKillOfAllNodes) {
  const std::vector<std::string> stores = {"--store=" + dir_.file("a"),
                                           "--store=" + dir_.file("b")};
  std::vector<std::string> addresses;
  std::string members;
  json first;
  {
    NodeDaemon a("127.0.0.1:0", {stores[0]});
    NodeDaemon b("127.0.0.1:0", {stores[1]});
    addresses = {a.address(), b.address()};
    members = a.address() + "," + b.address();
    first = run(members);
    a.kill();
    b.kill();
  }
  NodeDaemon a(addresses[0], {stores[0]});
  NodeDaemon b(addresses[1], {stores[1]});
  ASSERT_EQ(a.address(), addresses[0]);
  const json second = run(members);
  EXPECT_EQ(figure(second, "attached_tokens"), 1280);
  EXPECT_EQ(second["answers"][0]["answer"], first["answers"][0]["answer"]);
}

TEST_F(NodeProcess, RunGoesOnWithoutAnyNode) {
  NodeDaemon gone("127.0.0.1:0", {});
  const std::string members = gone.address();
  gone.kill();
  const json alone = run(members);
  EXPECT_EQ(figure(alone, "prefill_tokens"), 1500);
  EXPECT_EQ(figure(alone, "attached_tokens"), 0);
}

TEST_F(NodeProcess, RefusesToStartWithOneClearSentence) {
  NodeDaemon other("127.0.0.1:0", {"--store=" + dir_.file("store")});
  const struct {
    std::vector<std::string> arguments;
    const char* words;
  } cases[] = {
      {{"--listen=" + other.address()}, "in use"},
      {{"--listen=127.0.0.1:0", "--store=" + dir_.file("store")}, "another process has it open"},
      {{"--listen=nonsense"}, "nonsense"},
      {{"--listen=0.0.0.0:0"}, "--token_file"},
      {{"--token_file=" + dir_.file("none")}, "none"},
      {{"--lanes=pigeon"}, "expected auto, tcp or shared_memory"},
      {{"--listen=127.0.0.1:0", "--admin_listen=0.0.0.0:80"}, "expected 127.0.0.1:port"},
      {{"--listen=127.0.0.1:0", "--dram_bytes=10"}, "DRAM capacity of 10 bytes"},
  };
  for (const auto& refused : cases) {
    std::vector<std::string> arguments = {"node"};
    arguments.insert(arguments.end(), refused.arguments.begin(), refused.arguments.end());
    const ProcessResult result = run_icefield(arguments);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_NE(result.err.find(refused.words), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

TEST_F(NodeProcess, TokensOpenIt) {
  std::ofstream(dir_.file("tokens")) << "correct-horse-battery default\n";
  std::ofstream(dir_.file("other")) << "wrong-horse-wrong-battery default\n";
  NodeDaemon node("127.0.0.1:0", {"--token_file=" + dir_.file("tokens")});
  const std::vector<std::string> token = {"--token_file=" + dir_.file("tokens")};
  EXPECT_EQ(figure(run(node.address(), token), "attached_tokens"), 0);
  EXPECT_EQ(figure(run(node.address(), token), "attached_tokens"), 1280);
  for (const std::string file : {"", "other"}) {
    const ProcessResult refused =
        run_icefield({"run", "--cluster=" + node.address(), "--model=" + dir_.file("model.gguf"),
                      "--document=" + dir_.file("document.txt"), "--ask=why?",
                      "--token_file=" + (file.empty() ? file : dir_.file(file))});
    EXPECT_EQ(refused.exit_code, 2) << refused.out;
    EXPECT_NE(refused.err.find("token"), std::string::npos) << refused.err;
  }
}

TEST_F(NodeProcess, PageOfMetricsIsWhatTheProgramPrints) {
  std::ifstream in(std::string(ICEFIELD_SOURCE_DIR) + "/docs/metrics.md");
  const std::string page((std::istreambuf_iterator<char>(in)), {});
  EXPECT_EQ(run_icefield({"metrics", "--markdown"}).out, page)
      << "icefield metrics --markdown > docs/metrics.md";
}

TEST_F(NodeProcess, DoctorExplainsTheMachine) {
  const ProcessResult well = run_icefield({"doctor", "--json", "--store=" + dir_.path()});
  const json report = json::parse(well.out);
  EXPECT_EQ(well.exit_code, figure(report, "problems") == 0 ? 0 : 1) << well.out;
  bool store = false;
  for (const json& finding : report["findings"]) {
    store = store || finding["what"] == "store " + dir_.path();
  }
  EXPECT_TRUE(store) << well.out;
  const ProcessResult ill = run_icefield({"doctor", "--store=" + dir_.file("missing")});
  EXPECT_EQ(ill.exit_code, 1);
  EXPECT_NE(ill.out.find("make a directory"), std::string::npos) << ill.out;
}

TEST_F(NodeProcess, ClusterStartsAndStopsItsNodes) {
  Daemon cluster(
      {"cluster", "--nodes=2", "--port=0", "--dir=" + dir_.path(), "--dram_bytes=16777216"},
      "ready: ");
  EXPECT_EQ(std::count(cluster.ready_line().begin(), cluster.ready_line().end(), ','), 1);
  EXPECT_EQ(cluster.stop(), 0);
  EXPECT_TRUE(std::filesystem::exists(dir_.file("node0/CURRENT")));
  EXPECT_TRUE(std::filesystem::exists(dir_.file("node1/CURRENT")));
}

}  // namespace
}  // namespace icefield
