// A short evaluation of the real model through the program: every figure is there and sane, and a
// budget of everything is full attention, token by token.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

// The figures over all tasks and of the continuation, by name.
std::map<std::string, json> evaluate(const std::string& budget, const std::string& breadth,
                                     const std::string& tasks, bool probes,
                                     std::int32_t group_tokens = 1) {
  const ProcessResult result =
      run_icefield({"eval", "--context_tokens=1536", "--documents=1", "--budget=" + budget,
                    "--breadth=" + breadth, "--tasks=" + tasks, probes ? "--probes" : "--noprobes",
                    "--group_tokens=" + std::to_string(group_tokens), "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::map<std::string, json> figures;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["command"], "eval");
  EXPECT_FALSE(report["machine"].get<std::string>().empty());
  for (const json& figure : report["figures"]) {
    const json& params = figure["params"];
    EXPECT_EQ(params["budget"], budget);
    EXPECT_EQ(params["breadth"], breadth);
    EXPECT_EQ(params["context_tokens"], 1536);
    EXPECT_EQ(params["group_tokens"], params["task"] == "continuation" ? 1 : group_tokens);
    if (params["task"] == "all" || params["task"] == "continuation") {
      figures[figure["name"]] = figure;
    }
  }
  return figures;
}

TEST(Eval, FiguresAreCompleteAndSane) {
  auto figures = evaluate("64", "rule", "facts,continuation", true);
  for (const char* name :
       {"full_right", "lost", "gained", "answer_nll", "kl", "top1_agreement", "strong_misses",
        "recall64", "hot_bytes", "full_bytes", "rows_per_token", "pages_per_token",
        "cold_bytes_per_token", "tail_share", "decode_ms_per_token", "pool_hit_rate",
        "prefill_tokens", "first_token_ms"}) {
    EXPECT_TRUE(figures.contains(name)) << name;
  }
  const auto value = [&figures](const char* name) { return figures[name]["value"].get<double>(); };
  EXPECT_EQ(value("questions"), 10);
  EXPECT_GE(value("full_right"), 6);  // of ten facts in 1 536 tokens
  EXPECT_LE(value("lost"), 1);
  EXPECT_LT(value("kl"), 0.02);
  EXPECT_GT(value("recall64"), 0.6);
  EXPECT_EQ(value("rows_per_token"), 64);
  EXPECT_EQ(value("prefill_tokens"), 1536);
  EXPECT_LT(value("hot_bytes"), 0.7 * value("full_bytes"));
  EXPECT_GT(value("tail_share"), 0);
  EXPECT_EQ(figures["hot_bytes"]["against"], "full attention");
  EXPECT_EQ(figures["hot_bytes"]["better"], "lower");
}

// Probes compare what one token selects, so there are none where tokens share a selection.
TEST(Eval, FiguresOfGroupsAreOfGroups) {
  auto figures = evaluate("64", "rule", "neardup", true, 16);
  EXPECT_FALSE(figures.contains("strong_misses"));
  EXPECT_FALSE(figures.contains("recall64"));
  EXPECT_EQ(figures["first_token_ms"]["against"], "full attention");
}

// The chat template stands around document and question where the model has one, unless the prompt
// is to be raw text.
TEST(Run, ChatTemplateIsTheDefault) {
  TempDir dir;
  std::ofstream(dir.file("document.txt")) << "The ferry to the island leaves at nine.";
  std::map<std::string, double> prefilled;
  for (const std::string prompt : {"raw", "chat", "auto"}) {
    const ProcessResult result =
        run_icefield({"run", "--document=" + dir.file("document.txt"), "--prompt=" + prompt,
                      "--ask=When does the ferry leave?", "--max_tokens=12", "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const json report = json::parse(result.out);
    for (const json& figure : report["figures"]) {
      if (figure["name"] == "prefill_tokens") prefilled[prompt] = figure["value"];
    }
    if (prompt != "raw") {
      EXPECT_NE(report["answers"][0]["answer"].get<std::string>().find("nine"), std::string::npos)
          << result.out;
    }
  }
  // "<|im_start|>system … <|im_end|>\n<|im_start|>user\n" before the document.
  EXPECT_GT(prefilled["chat"], prefilled["raw"] + 15);
  EXPECT_EQ(prefilled["auto"], prefilled["chat"]);
}

TEST(Eval, BudgetOfAllGivesTheSameGreedyTokens) {
  auto figures = evaluate("all", "all", "continuation", false);
  const double other = figures["top1_disagreements"]["value"];
  const double near_ties = figures["near_ties"]["value"];
  std::printf("%g of 128 tokens differ, %g of them near ties\n", other, near_ties);
  EXPECT_LE(other, near_ties);
  EXPECT_EQ(figures["tail_share"]["value"], 0);
}

}  // namespace
}  // namespace icefield
