// Values as a user of the command line meets them: `icefield cluster` and the verbs that talk to
// it, each a process of its own, over TCP and over shared memory.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/rng.h"
#include "tests/support/daemon.h"
#include "tests/support/objects.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

constexpr int kMiss = 1;      // also: nobody answers
constexpr int kBadInput = 2;  // the caller must change something

class Verbs {
 protected:
  Verbs() = default;
  ~Verbs() = default;

  // `icefield cluster` with these flags; its members.
  void start_cluster(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"cluster", "--nodes=3", "--port=0",
                                          "--dir=" + dir_.file("cluster"), "--dram_bytes=67108864"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    cluster_ = std::make_unique<Daemon>(arguments, "ready: ");
    const std::string& line = cluster_->ready_line();
    ASSERT_NE(line, "");
    members_ = line.substr(line.find('='));
  }

  // `icefield VERB --cluster=… flags`.
  ProcessResult run(const std::string& verb, const std::vector<std::string>& flags) const {
    std::vector<std::string> arguments = {verb, "--cluster" + members_};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return run_icefield(arguments);
  }
  // Runs it; the exit code and one line of standard error that has these words.
  void expect_refused(const std::string& verb, const std::vector<std::string>& flags, int code,
                      const std::string& words) const {
    const ProcessResult result = run(verb, flags);
    EXPECT_EQ(result.exit_code, code) << verb << ": " << result.out << result.err;
    EXPECT_NE(result.err.find(words), std::string::npos) << verb << ": " << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(dir_.file(name), std::ios::binary) << text;
    return dir_.file(name);
  }
  static std::string text_of(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(in)), {});
  }

  TempDir dir_;
  std::unique_ptr<Daemon> cluster_;
  std::string members_;  // "=host:port,…"
};

// ------------------------------------------------------------------------- over either lane

class ValueVerbs : public testing::TestWithParam<const char*>, protected Verbs {
 protected:
  void SetUp() override { start_cluster({"--lanes=" + std::string(GetParam())}); }
  ProcessResult call(const std::string& verb, std::vector<std::string> flags) const {
    flags.push_back("--lanes=" + std::string(GetParam()));
    return run(verb, flags);
  }
};

TEST_P(ValueVerbs, WhatWasPutComesBackWhateverItsSize) {
  SeededRng rng(1);
  for (const std::size_t size : {0u, 1u, 5u, 65536u, 65537u, 20'000'000u}) {
    const Bytes bytes = random_bytes(rng, size);
    const std::string key = "--key=value/" + std::to_string(size);
    const ProcessResult put =
        call("put", {key, "--file=" + file("in", std::string(as_text(bytes)))});
    ASSERT_EQ(put.exit_code, 0) << put.err;
    EXPECT_NE(put.out.find("stored"), std::string::npos);
    const ProcessResult got = call("get", {key, "--file=" + dir_.file("out")});
    ASSERT_EQ(got.exit_code, 0) << got.err;
    EXPECT_EQ(text_of(dir_.file("out")), as_text(bytes)) << size;
  }
}

TEST_P(ValueVerbs, ASecondPutSaysThatItDidNothing) {
  ASSERT_EQ(call("put", {"--key=k", "--file=" + file("a", "first")}).exit_code, 0);
  const ProcessResult again = call("put", {"--key=k", "--file=" + file("b", "second")});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_NE(again.out.find("already there"), std::string::npos) << again.out;
  EXPECT_EQ(call("get", {"--key=k"}).out, "first") << "to standard output, and nothing else";
  EXPECT_EQ(call("get", {"--key=k", "--range=1:3"}).out, "irs");
}

TEST_P(ValueVerbs, PingShowsTheLanesThatCarryTheBytes) {
  const std::string expected = std::string(GetParam()) == "tcp" ? "tcp" : "posix";
  const ProcessResult ping = call("ping", {"--count=5", "--json"});
  ASSERT_EQ(ping.exit_code, 0) << ping.err;
  const json report = json::parse(ping.out);
  int round_trips = 0;  // a bandwidth is beside them where it was measured in time
  for (const json& figure : report["figures"]) {
    EXPECT_EQ(figure["params"]["lanes"], expected);
    if (figure["name"] == "round_trip_us") ++round_trips;
  }
  EXPECT_EQ(round_trips, 6) << "two quantiles of three members";
}

TEST_P(ValueVerbs, StatShowsWhatTheNodesHold) {
  for (int i = 0; i < 12; ++i) {
    const std::string key = "--key=k" + std::to_string(i);
    ASSERT_EQ(call("put", {key, "--namespace=llama", "--file=" + file("v", "1234567")}).exit_code,
              0);
  }
  const ProcessResult stat = call("stat", {"--json"});
  ASSERT_EQ(stat.exit_code, 0) << stat.err;
  std::int64_t values = 0;
  std::int64_t bytes = 0;
  const json report = json::parse(stat.out);
  EXPECT_EQ(report["nodes"].size(), 3);
  for (const json& node : report["nodes"]) {
    for (const json& space : node.value("namespaces", json::array())) {
      EXPECT_EQ(space["namespace"], "llama");
      values += space["values"].get<std::int64_t>();
      bytes += space["bytes"].get<std::int64_t>();
    }
  }
  EXPECT_EQ(values, 12);
  EXPECT_EQ(bytes, 12 * 7);
}

INSTANTIATE_TEST_SUITE_P(Lanes, ValueVerbs, testing::Values("tcp", "shared_memory"),
                         [](const auto& lanes) { return std::string(lanes.param); });

// ---------------------------------------------------------------------------- what goes wrong

class VerbsThatFail : public testing::Test, protected Verbs {};

TEST_F(VerbsThatFail, SayWhatIsWrongInOneLine) {
  start_cluster();
  const std::string value = "--file=" + file("value", "x");
  expect_refused("get", {"--key=nowhere"}, kMiss, "not found (never stored): no value 'nowhere'");
  expect_refused("get", {}, kBadInput, "--key");
  expect_refused("put", {value}, kBadInput, "--key");
  expect_refused("put", {value, "--key=" + std::string(1025, 'k')}, kBadInput, "1025 bytes");
  expect_refused("get", {"--key=" + std::string(1025, 'k')}, kBadInput, "1025 bytes");
  expect_refused("put", {"--key=k", "--file=" + dir_.file("none")}, kBadInput, "no file");
  expect_refused("put", {value, "--key=k", "--level=holy"}, kBadInput, "memory or durable");
  expect_refused("put", {value, "--key=k", "--ttl_s=-1"}, kBadInput, "time to live");
  expect_refused("get", {"--key=k", "--range=7"}, kBadInput, "begin:length");
  expect_refused("get", {"--key=k", "--deadline_ms=0"}, kBadInput, "--deadline_ms");
  for (const std::string verb : {"put", "get", "stat", "ping"}) {
    expect_refused(verb, {"--lanes=pigeon", "--key=k"}, verb == "put" || verb == "get" ? 2 : 1,
                   verb == "put" || verb == "get" ? "auto, tcp or shared_memory" : "'key'");
    expect_refused(verb, {"--nonsense=1"}, 1, "unknown command line flag 'nonsense'");
    expect_refused(verb, {"extra"}, kBadInput, "unexpected argument \"extra\"");
    const ProcessResult help = run(verb, {"--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_NE(help.out.find("icefield " + verb + " --cluster=127.0.0.1"), std::string::npos)
        << "an example";
  }
}

TEST_F(VerbsThatFail, DoNotWaitForMembersThatAreNotThere) {
  NodeDaemon gone("127.0.0.1:0", {});
  NodeDaemon here("127.0.0.1:0", {});
  members_ = "=" + gone.address();
  gone.kill();
  const std::string value = "--file=" + file("value", "x");
  expect_refused("get", {"--key=k"}, kMiss, "not found (node down): no value 'k'");
  expect_refused("put", {"--key=k", value}, kMiss, gone.address());
  expect_refused("ping", {"--count=1"}, kMiss, gone.address() + " is down");
  expect_refused("stat", {}, kMiss, gone.address());
  members_ += "," + here.address();
  const ProcessResult ping = run("ping", {"--count=1"});
  EXPECT_EQ(ping.exit_code, kMiss) << "one of two is down";
  EXPECT_NE(ping.out.find("up"), std::string::npos) << ping.out;
  EXPECT_NE(ping.out.find("down"), std::string::npos) << ping.out;
  for (const std::string members : {"=", "=nowhere", "=127.0.0.1:x", "=127.0.0.1:1*0"}) {
    members_ = members;
    for (const std::string verb : {"get", "put", "ping", "stat"}) {
      const ProcessResult result = verb == "get"   ? run(verb, {"--key=k"})
                                   : verb == "put" ? run(verb, {"--key=k", value})
                                                   : run(verb, {});
      EXPECT_EQ(result.exit_code, kBadInput) << verb << " --cluster" << members << result.err;
    }
  }
}

TEST_F(VerbsThatFail, FrozenNodesCostTheDeadlineAndNoMore) {
  NodeDaemon node("127.0.0.1:0", {});
  members_ = "=" + node.address();
  node.signal(SIGSTOP);
  const std::string value = "--file=" + file("value", "x");
  const std::string deadline = "--deadline_ms=100";
  const auto begin = std::chrono::steady_clock::now();
  expect_refused("get", {"--key=k", deadline}, kMiss, "deadline");
  expect_refused("put", {"--key=k", value, deadline}, kMiss, "deadline");
  expect_refused("stat", {deadline}, kMiss, "deadline");
  expect_refused("ping", {deadline}, kMiss, "is down");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  node.signal(SIGCONT);
  EXPECT_EQ(run("put", {"--key=k", value}).exit_code, 0);
}

// ------------------------------------------------------------------------------------ tokens

TEST_F(VerbsThatFail, TokensOpenTheirNamespacesOnly) {
  const std::string all = "--token_file=" + file("all", "master-key-of-everything *\n");
  const std::string red = "--token_file=" + file("red", "the-token-of-red red\n");
  const std::string wrong = "--token_file=" + file("wrong", "a-token-of-nobody red\n");
  start_cluster(
      {"--token_file=" + file("nodes", "master-key-of-everything *\nthe-token-of-red red\n")});
  const std::string value = "--file=" + file("value", "x");
  for (const std::string name_space : {"red", "blue"}) {
    ASSERT_EQ(run("put", {"--key=k", value, "--namespace=" + name_space, all}).exit_code, 0);
  }
  EXPECT_EQ(run("get", {"--key=k", "--namespace=red", red}).out, "x");
  for (const std::string verb : {"get", "put"}) {
    std::vector<std::string> flags = {"--key=k", "--namespace=blue", red};
    if (verb == "put") flags.push_back(value);
    expect_refused(verb, flags, kBadInput, "does not grant namespace 'blue'");
  }
  for (const std::string& token : {std::string("--token_file="), wrong}) {
    expect_refused("get", {"--key=k", "--namespace=red", token}, kBadInput, "token");
    expect_refused("put", {"--key=k", "--namespace=red", value, token}, kBadInput, "token");
    expect_refused("stat", {token}, kBadInput, "token");
    expect_refused("ping", {token}, kBadInput, "token");
  }

  const auto spaces = [&](const std::string& token) {
    const ProcessResult stat = run("stat", {token, "--json"});
    EXPECT_EQ(stat.exit_code, 0) << stat.err;
    std::set<std::string> names;
    const json report = json::parse(stat.out);
    for (const json& node : report["nodes"]) {
      EXPECT_EQ(node.contains("counters"), token == all) << "of everybody together";
      for (const json& space : node.value("namespaces", json::array())) {
        names.insert(space["namespace"]);
      }
    }
    return names;
  };
  EXPECT_EQ(spaces(all), (std::set<std::string>{"blue", "red"}));
  EXPECT_EQ(spaces(red), (std::set<std::string>{"red"}));
}

// ------------------------------------------------------------------------------------ restart

TEST_F(VerbsThatFail, DurableValuesAreThereAfterTheKillOfAllNodes) {
  start_cluster();
  const std::string value = "--file=" + file("value", "precious");
  const ProcessResult put = run("put", {"--key=k", value, "--level=durable"});
  ASSERT_EQ(put.exit_code, 0) << put.err;
  cluster_->kill();  // the system kills the nodes with it
  // Which node holds it follows from the addresses, and these are others: each is asked alone.
  int found = 0;
  for (int i = 0; i < 3; ++i) {
    const std::string store = "--store=" + dir_.file("cluster/node" + std::to_string(i));
    auto node = std::make_unique<NodeDaemon>("127.0.0.1:0", std::vector<std::string>{store});
    for (int tries = 0; node->address().empty() && tries < 100;
         ++tries) {  // the old one still ends
      node = std::make_unique<NodeDaemon>("127.0.0.1:0", std::vector<std::string>{store});
    }
    ASSERT_NE(node->address(), "");
    members_ = "=" + node->address();
    const ProcessResult got = run("get", {"--key=k"});
    found += got.exit_code == 0 && got.out == "precious" ? 1 : 0;
  }
  EXPECT_EQ(found, 1);
}

}  // namespace
}  // namespace icefield
