// What carries bytes between our programs, and who gets to know: real processes.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "client/cluster_client.h"
#include "tests/support/changing_membership.h"
#include "tests/support/daemon.h"
#include "tests/support/http.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

// Of a node, as it says where it listens.
std::string word_after(const std::string& line, const std::string& words) {
  const std::size_t begin = line.find(words) + words.size();
  return line.substr(begin, line.find_first_of(" ,", begin) - begin);
}

std::size_t count_of(const std::string& text, const std::string& words) {
  std::size_t count = 0;
  for (std::size_t at = text.find(words); at != text.npos; at = text.find(words, at + 1)) ++count;
  return count;
}

// The page of metrics, once `words` stand there, or after a while as it is.
std::string metrics_with(const std::string& admin, const std::string& words) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  std::string page;
  do {
    page = http(admin, "/metrics");
  } while (page.find(words) == page.npos && std::chrono::steady_clock::now() < end);
  return page;
}

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
    std::vector<std::string> words = hostile;
    words.insert(words.end(), {ICEFIELD_BIN_DIR "/icefield", "node", "--listen=127.0.0.1:0",
                               "--dram_bytes=33554432"});
    words.push_back(lanes == "tcp" ? "--lanes=tcp" : "--lanes=auto");
    Daemon node(words, "node ", "/usr/bin/env");
    ASSERT_NE(node.ready_line(), "");
    const std::string cluster = "--cluster=" + word_after(node.ready_line(), "node ");
    const ProcessResult ping = run_icefield({"ping", "--json", "--count=5", cluster}, hostile);
    ASSERT_EQ(ping.exit_code, 0) << ping.err;
    EXPECT_EQ(json::parse(ping.out)["figures"][0]["params"]["lanes"], lanes) << ping.out;
    const std::string file = "--file=" + dir.file("value");
    EXPECT_EQ(run_icefield({"put", cluster, "--key=k", file}, hostile).exit_code, 0);
    EXPECT_EQ(run_icefield({"get", cluster, "--key=k"}, hostile).out, value);
    EXPECT_EQ(node.stop(), 0);
  }
}

TEST(Lanes, NodeSaysOnceWhatCarriesAKindAndPingHowFastThatIs) {
  testing::internal::CaptureStderr();
  NodeDaemon node("127.0.0.1:0", {});
  const std::string cluster = "--cluster=" + node.address();
  int measured = 0;
  for (int i = 0; i < 10 || (measured == 0 && i < 50); ++i) {
    const ProcessResult ping = run_icefield({"ping", "--json", "--count=5", cluster});
    ASSERT_EQ(ping.exit_code, 0) << ping.err;
    EXPECT_EQ(ping.err, "") << "all is well";
    const json figure = json::parse(ping.out)["figures"][0];
    if (figure["name"] != "connection_gbps") continue;  // not within the time, on a busy machine
    ++measured;
    EXPECT_EQ(figure["params"]["lanes"], "posix") << ping.out;
    EXPECT_GT(figure["value"], 0) << ping.out;
  }
  EXPECT_GT(measured, 0);
  const ProcessResult table = run_icefield({"ping", "--count=5", cluster});
  EXPECT_NE(table.out.find("posix on this machine"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("bandwidth"), std::string::npos) << table.out;
  EXPECT_EQ(node.stop(), 0);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(count_of(log, "first client by lanes posix on this machine"), 1u) << log;
}

TEST(Lanes, TcpToANodeOfThisMachineIsPointedOut) {
  NodeDaemon node("127.0.0.1:0", {"--lanes=tcp"});
  const std::string cluster = "--cluster=" + node.address();
  const std::string words = "is reached over tcp, not shared memory";
  const ProcessResult ping = run_icefield({"ping", "--count=5", cluster});
  EXPECT_EQ(ping.exit_code, 0);
  EXPECT_EQ(count_of(ping.err, words), 1u) << ping.err;
  const ProcessResult doctor = run_icefield({"doctor", "--json", cluster});
  bool found = false;
  const json report = json::parse(doctor.out);
  for (const json& finding : report["findings"]) {
    if (finding["what"] != "node " + node.address()) continue;
    found = true;
    EXPECT_EQ(finding["level"], "note");
    EXPECT_EQ(count_of(finding["found"], "tcp on this machine, "), 1u) << finding;
    EXPECT_EQ(count_of(finding["advice"], words), 1u) << finding;
  }
  EXPECT_TRUE(found) << doctor.out << doctor.err;
  const ProcessResult wanted = run_icefield({"ping", "--count=5", "--lanes=tcp", cluster});
  EXPECT_EQ(wanted.err, "") << "as it was asked for";
  node.kill();
  EXPECT_NE(run_icefield({"doctor", cluster}).out.find("no answer"), std::string::npos);
}

TEST(Lanes, BenchesSayWhatCarriesTheirBytes) {
  const ProcessResult bench =
      run_icefield({"bench", "transport", "--rounds=1", "--round_ms=1", "--noperftest",
                    "--modes=event", "--ops=get", "--lanes=tcp"});
  EXPECT_EQ(bench.exit_code, 0) << bench.err;
  EXPECT_NE(bench.err.find("lanes tcp on this machine, "), std::string::npos) << bench.err;
  EXPECT_NE(bench.err.find(" at the first connection"), std::string::npos) << bench.err;
}

TEST(Lanes, NodeCountsClientsAndThoseThatItRefused) {
  const TempDir dir;
  std::ofstream(dir.file("tokens")) << "correct-horse-battery *\n";
  NodeDaemon node("127.0.0.1:0", {"--token_file=" + dir.file("tokens")});
  const std::string failed = "icefield_transport_failed_handshakes_total";
  EXPECT_NE(http(node.admin(), "/metrics").find(failed + "{reason=\"token\"} 0\n"),
            std::string::npos);
  EXPECT_EQ(run_icefield({"ping", "--count=1", "--cluster=" + node.address()}).exit_code, 2);
  (void)talk(node.address(), "GET / HTTP/1.1\r\n\r\n");
  const std::string page = metrics_with(node.admin(), failed + "{reason=\"garbage\"} 1\n");
  EXPECT_NE(page.find(failed + "{reason=\"garbage\"} 1\n"), std::string::npos) << page;
  EXPECT_NE(page.find(failed + "{reason=\"token\"} 1\n"), std::string::npos) << page;
  EXPECT_NE(page.find("icefield_transport_connections 0\n"), std::string::npos) << page;
  EXPECT_NE(page.find("icefield_transport_stray_fragments_total 0\n"), std::string::npos) << page;
}

TEST(Lanes, ClientLetsGoOfAMemberThatIsNoneAnyMore) {
  NodeDaemon stays("127.0.0.1:0", {});
  NodeDaemon goes("127.0.0.1:0", {});
  const std::vector<Member> both = {{.name = stays.address()}, {.name = goes.address()}};
  auto owned = std::make_unique<ChangingMembership>(both);
  ChangingMembership& membership = *owned;
  const auto client = ClusterClient::open(std::move(owned), {}).value();
  const Deadline soon = Deadline::after(SystemClock(), std::chrono::seconds(20));
  const auto list = [&] {
    return sync_wait(client->executor(), client->contexts().list_builds("", soon)).status();
  };
  const std::string one = "icefield_transport_connections 1\n";
  const std::string none = "icefield_transport_connections 0\n";
  EXPECT_TRUE(list().ok());
  EXPECT_NE(metrics_with(goes.admin(), one).find(one), std::string::npos);
  membership.set({both[0]});
  EXPECT_NE(metrics_with(goes.admin(), none).find(none), std::string::npos);
  EXPECT_TRUE(list().ok());
  EXPECT_NE(http(goes.admin(), "/metrics").find(none), std::string::npos) << "nobody asks it";
  EXPECT_NE(http(stays.admin(), "/metrics").find(one), std::string::npos);
  membership.set(both);
  EXPECT_TRUE(list().ok());
  EXPECT_NE(metrics_with(goes.admin(), one).find(one), std::string::npos) << "asked again";
}

}  // namespace
}  // namespace icefield
