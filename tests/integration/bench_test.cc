// Every `icefield bench` with values so small that they measure nothing: the programs do not rot,
// and stand alone on machines without what they are measured beside.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/process.h"
#include "tests/support/temp_dir.h"
#include "tools/recorded_keys.h"

namespace icefield {
namespace {

using nlohmann::json;

struct SmallBench {
  const char* name;
  std::vector<std::string> flags;
  std::set<std::string> figures;
  std::set<std::string> peers;  // that are programs of others
};

class Bench : public testing::TestWithParam<SmallBench> {
 protected:
  // Runs it and checks its report. The programs it was measured beside.
  std::set<std::string> run(const std::vector<std::string>& variables = {}) {
    std::vector<std::string> arguments = {"bench", GetParam().name, "--json"};
    for (std::string flag : GetParam().flags) {
      const std::size_t here = flag.find("TEMP");
      if (here != flag.npos) flag.replace(here, 4, dir_.path());
      arguments.push_back(flag);
    }
    result_ = run_icefield(arguments, variables);
    EXPECT_EQ(result_.exit_code, 0) << result_.err;
    const json report = json::parse(result_.out, nullptr, false);
    EXPECT_TRUE(report.is_object()) << result_.out;
    if (!report.is_object()) return {};
    EXPECT_EQ(report["command"], "bench " + std::string(GetParam().name));
    std::set<std::string> names;
    std::set<std::string> beside;
    for (const json& figure : report["figures"]) {
      names.insert(figure["name"]);
      EXPECT_TRUE(figure["value"].is_number()) << figure;
      if (!figure.contains("against")) continue;
      EXPECT_GT(figure["ratio"], 0) << figure;
      if (GetParam().peers.contains(figure["against"])) beside.insert(figure["against"]);
    }
    for (const std::string& name : GetParam().figures) EXPECT_TRUE(names.contains(name)) << name;
    return beside;
  }

  TempDir dir_;
  ProcessResult result_;
};

TEST_P(Bench, RunsToItsEnd) { (void)run(); }

TEST_P(Bench, StandsAloneWithoutItsPeersAndSaysSo) {
  if (GetParam().peers.empty()) GTEST_SKIP() << "is measured beside nothing of others";
  EXPECT_EQ(run({"PATH=" + dir_.path()}), std::set<std::string>());
  EXPECT_NE(result_.err.find("note: "), std::string::npos) << result_.err;
}

const SmallBench kBenches[] = {
    {"attention",
     {"--n=512", "--selected=64", "--rows=512", "--heads=2", "--rank_heads=2", "--rounds=1",
      "--head_dim=64"},
     {"build_us_per_token", "select_ms", "attend_ms", "attend_gflops", "attend_gbps",
      "threads_speedup", "seal_ms", "rank_ms"},
     {}},
    {"index",
     {"--n=512", "--head_dim=64", "--group=2", "--budget=16,64", "--keys=synthetic", "--steps=2",
      "--rounds=1", "--repeats=1"},
     {"build_us_per_token", "select_ms", "attend_ms", "ranked", "recall64", "strong_misses", "mass",
      "output_error_mean", "output_error_p50", "output_error_p90", "output_error_p99",
      "pages_touched", "index_bytes_read", "metadata_fraction", "memcpy_gbps", "read_gbps",
      "fma_gflops"},
     {}},
    {"faults", {"--calls=5", "--kills=1", "--deadline_ms=20"}, {"overrun_ms", "recovery_ms"}, {}},
    {"integrity", {"--flips=500", "--wire_flips=100000"}, {"flips_detected", "flips_returned"}, {}},
    {"nvme",
     {"--dir=TEMP", "--value_bytes=16384", "--total_bytes=4194304", "--rounds=1", "--seconds=1",
      "--io_threads=2", "--restart_values=200"},
     {"get_gbps", "put_gbps", "restart_seconds", "open_seconds", "memory_per_object_bytes",
      "node_memory_per_value_bytes"},
     {"fio"}},
    {"store",
     {"--rounds=1", "--working_set_bytes=4194304"},
     {"get_gbps", "put_gbps", "get_latency_us"},
     {"redis", "memcached"}},
    {"trace",
     {"--file=bench/data/conversation_trace.jsonl", "--capacities=2000"},
     {"hit_rate"},
     {}},
    {"transport",
     {"--rounds=1", "--round_ms=5", "--modes=event"},
     {"get_gbps", "put_gbps", "get_latency_us"},
     {"ucx_perftest"}},
};
INSTANTIATE_TEST_SUITE_P(All, Bench, testing::ValuesIn(kBenches),
                         [](const auto& bench) { return std::string(bench.param.name); });

// Whoever reads the figures of one reads those of the other.
TEST(BenchAttention, FiguresHaveTheParametersOfBenchIndex) {
  const ProcessResult result =
      run_icefield({"bench", "attention", "--json", "--n=512", "--selected=64", "--rows=512",
                    "--heads=2", "--threads=3", "--rank_heads=1", "--rounds=1", "--head_dim=64",
                    "--group=2", "--budget=16", "--keys=synthetic_peaked"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  for (const json& figure : report["figures"]) {
    const json& params = figure["params"];
    for (const char* name :
         {"method", "n", "head_dim", "group", "budget", "breadth", "threads", "keys", "mad"}) {
      EXPECT_TRUE(params.contains(name)) << name << " of " << figure;
    }
    EXPECT_EQ(params["method"], "icefield");
    EXPECT_EQ(params["keys"], "synthetic_peaked");
    EXPECT_EQ(params["threads"], figure["name"] == "threads_speedup" ? 3 : 1);
    if (figure["name"] != "select_ms") continue;
    EXPECT_EQ(params["n"], 512);
    EXPECT_EQ(params["group"], 2);
    EXPECT_EQ(params["budget"], 16);
    EXPECT_EQ(params["breadth"], "rule");
    EXPECT_EQ(figure["against"], "exact_int8");
  }
}

TEST(BenchAttention, OtherKeysAreRefused) {
  for (const char* keys : {"--keys=recorded:FILE", "--keys=synthetic_none"}) {
    EXPECT_EQ(run_icefield({"bench", "attention", keys}).exit_code, 2) << keys;
  }
}

// Two heads of 320 tokens, of which the 240 between sink and window are indexed.
RecordedKeys small_recording() {
  RecordedKeys keys;
  keys.shape = {.layers = 1,
                .kv_heads = 2,
                .group = 3,
                .d_k = 32,
                .d_v = 32,
                .tokens = 320,
                .steps = 2,
                .beta = 0.2f,
                .sink_tokens = 16,
                .window_first = 256};
  keys.kinds.assign(2, RecordedStep::kAnswer);
  for (int h = 0; h < 2; ++h) {
    RecordedHead head;
    for (int i = 0; i < 320 * 64; ++i) {
      head.rows.push_back(float_to_bf16(static_cast<float>((i * 37 + h) % 101) / 50 - 1));
    }
    for (int i = 0; i < 2 * 3 * 32; ++i) head.q.push_back(static_cast<float>(i % 7) - 3);
    head.own_lse.assign(2 * 3, 0.5f);
    head.own_out.assign(2 * 3 * 32, 0.1f);
    keys.heads.push_back(head);
  }
  return keys;
}

TEST(BenchIndex, TakesRecordedKeys) {
  const TempDir dir;
  ASSERT_TRUE(write_recorded_keys(small_recording(), dir.file("keys")).ok());
  const std::string keys = "recorded:" + dir.file("keys");
  const ProcessResult result = run_icefield(
      {"bench", "index", "--json", "--keys=" + keys, "--budget=8", "--rounds=1", "--repeats=1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  int seen = 0;
  for (const json& figure : report["figures"]) {
    const json& params = figure["params"];
    if (figure["name"] != "mass") continue;
    EXPECT_EQ(params["keys"], keys);
    EXPECT_EQ(params["n"], 240);
    EXPECT_EQ(params["group"], 3);
    EXPECT_GT(figure["value"], 0);
    ++seen;
  }
  EXPECT_EQ(seen, 8);  // methods
}

TEST(BenchIndex, RefusesRecordingsThatItCannotCut) {
  const TempDir dir;
  RecordedKeys keys = small_recording();
  keys.shape.window_first = 300;
  ASSERT_TRUE(write_recorded_keys(keys, dir.file("keys")).ok());
  const ProcessResult result =
      run_icefield({"bench", "index", "--keys=recorded:" + dir.file("keys")});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("multiple of 256"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace icefield
