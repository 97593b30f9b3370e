// The programs as a user runs them: a tiny model, real processes, real stores; every kind of bad
// input gets one clear sentence and a non-zero exit.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "storage/nvme_tier.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/process.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using nlohmann::json;

class Tools : public testing::Test {
 protected:
  void SetUp() override {
    tiny_model(1).write(dir_.file("model.gguf"));
    SeededRng rng(3);
    // 1500 bytes are 1500 tokens of the tiny model.
    for (int i = 0; i < 1500; ++i) document_ += static_cast<char>('a' + rng.below(26));
    std::ofstream(dir_.file("document.txt")) << document_;
  }
  std::vector<std::string> run_arguments(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"run",
                                          "--model=" + dir_.file("model.gguf"),
                                          "--document=" + dir_.file("document.txt"),
                                          "--ask=why?",
                                          "--max_tokens=4",
                                          "--budget=64"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static double figure(const json& report, const std::string& name) {
    for (const json& entry : report["figures"]) {
      if (entry["name"] == name) return entry["value"];
    }
    ADD_FAILURE() << "no figure " << name;
    return -1;
  }
  // Exit code `code`, nothing on standard output, one sentence with `words` on standard error.
  void expect_refused(const std::vector<std::string>& arguments, int code,
                      const std::string& words) {
    const ProcessResult result = run_icefield(arguments);
    EXPECT_EQ(result.exit_code, code) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err.find(words), std::string::npos)
        << "\"" << words << "\" not in: " << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }

  TempDir dir_;
  std::string document_;
};

TEST_F(Tools, SecondRunAttachesAndAnswersTheSame) {
  const auto first = run_icefield(run_arguments({"--store=" + dir_.file("store"), "--json"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const json written = json::parse(first.out);
  EXPECT_EQ(written["command"], "run");
  EXPECT_EQ(figure(written, "prefill_tokens"), 1500);
  EXPECT_EQ(figure(written, "attached_tokens"), 0);
  const auto second = run_icefield(run_arguments({"--store=" + dir_.file("store"), "--json"}));
  ASSERT_EQ(second.exit_code, 0) << second.err;
  const json attached = json::parse(second.out);
  EXPECT_EQ(figure(attached, "attached_tokens"), 1280) << "whole blocks";
  EXPECT_EQ(figure(attached, "prefill_tokens"), 220);
  EXPECT_EQ(attached["answers"][0]["answer"], written["answers"][0]["answer"]);
  EXPECT_EQ(figure(attached, "coverage"), 1);
}

TEST_F(Tools, DocumentOfWholeBlocksNeedsNoPrefillAtAll) {
  std::ofstream(dir_.file("document.txt")) << document_.substr(0, 1280);
  const auto first = run_icefield(run_arguments({"--store=" + dir_.file("store"), "--json"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const json attached =
      json::parse(run_icefield(run_arguments({"--store=" + dir_.file("store"), "--json"})).out);
  EXPECT_EQ(figure(attached, "prefill_tokens"), 0);
  EXPECT_EQ(attached["answers"][0]["answer"], json::parse(first.out)["answers"][0]["answer"]);
}

TEST_F(Tools, RawPromptsBeginAsTheModelWants) {
  GgufWriter gguf = tiny_model(1);
  gguf.metadata["tokenizer.ggml.add_bos_token"] = std::uint32_t{1};
  gguf.metadata["tokenizer.ggml.bos_token_id"] = std::uint32_t{256};
  gguf.write(dir_.file("model.gguf"));
  const auto result = run_icefield(run_arguments({"--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(figure(json::parse(result.out), "prefill_tokens"), 1501);
}

TEST_F(Tools, TwoRunsWithOneOrTwoThreadsGiveTheSameTokens) {
  std::vector<std::string> answers;
  for (const char* threads : {"--threads=1", "--threads=2", "--threads=2"}) {
    const auto result = run_icefield(run_arguments({threads, "--json", "--max_tokens=20"}));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    answers.push_back(json::parse(result.out)["answers"][0]["answer"]);
  }
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[1], answers[2]);
}

TEST_F(Tools, QuestionsFileIsAskedLineByLine) {
  std::ofstream(dir_.file("questions.txt")) << "one?\n\n  \ntwo?\n";
  const auto result = run_icefield({"run", "--model=" + dir_.file("model.gguf"), "--json",
                                    "--max_tokens=2", "--document=" + dir_.file("document.txt"),
                                    "--questions=" + dir_.file("questions.txt")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json answers = json::parse(result.out)["answers"];
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_EQ(answers[0]["question"], "one?");
  EXPECT_EQ(answers[1]["question"], "two?");
}

// What is decoded after a prompt is timed; the first token came with the prompt.
TEST_F(Tools, OneTokenHasNoRate) {
  const auto result = run_icefield(run_arguments({"--max_tokens=1", "--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["answers"][0]["tokens"], 1);
  EXPECT_EQ(figure(report, "tokens_per_second"), 0);
}

TEST_F(Tools, TextOutputEndsWithASummaryLine) {
  const auto result = run_icefield(run_arguments());
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("1500 prefilled; first token after"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("tail share"), std::string::npos) << result.out;
}

TEST_F(Tools, InspectShowsWhatAStoreHolds) {
  ASSERT_EQ(run_icefield(run_arguments({"--store=" + dir_.file("store")})).exit_code, 0);
  const auto text = run_icefield({"inspect", "--store=" + dir_.file("store")});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("1024 – 1280"), std::string::npos) << text.out;
  const auto result = run_icefield({"inspect", "--store=" + dir_.file("store"), "--json"});
  const json report = json::parse(result.out);
  EXPECT_EQ(figure(report, "segments"), 2);
  EXPECT_EQ(figure(report, "tokens"), 1280);
  EXPECT_EQ(report["builds"][0]["origin"], "exact");
}

TEST_F(Tools, HelpShowsAnExampleAndTheFlags) {
  for (const std::string verb : {"run", "eval", "inspect", "demo"}) {
    const auto result = run_icefield({verb, "--help"});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_NE(result.out.find("  icefield " + verb), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("  --json"), std::string::npos) << result.out;
  }
  const auto all = run_icefield({"help"});
  EXPECT_EQ(all.exit_code, 0);
  EXPECT_NE(all.out.find("inspect"), std::string::npos);
}

// ------------------------------------------------------------------------------------- bad input

TEST_F(Tools, UnknownVerbsFlagsAndArgumentsAreRefused) {
  EXPECT_EQ(run_icefield({"fly"}).exit_code, 2);
  EXPECT_NE(run_icefield({"fly"}).err.find("no verb \"fly\""), std::string::npos);
  EXPECT_EQ(run_icefield({}).exit_code, 2);
  EXPECT_NE(run_icefield({"run", "--wings=2"}).exit_code, 0);
  EXPECT_NE(run_icefield({"run", "--wings=2"}).err.find("wings"), std::string::npos);
  expect_refused(run_arguments({"loose"}), 2, "unexpected argument \"loose\"");
}

TEST_F(Tools, MissingAndEmptyInputsAreExplained) {
  expect_refused({"run", "--ask=x"}, 2, "give --document=FILE");
  expect_refused({"run", "--document=" + dir_.file("document.txt")}, 2, "nothing to ask");
  expect_refused({"run", "--ask=x", "--document=" + dir_.file("none")}, 2, "no file");
  std::ofstream(dir_.file("empty.txt")) << " \n\n";
  expect_refused({"run", "--ask=x", "--document=" + dir_.file("empty.txt")}, 2, "is empty");
  std::ofstream(dir_.file("questions.txt")) << "\n";
  expect_refused({"run", "--document=" + dir_.file("document.txt"),
                  "--questions=" + dir_.file("questions.txt")},
                 2, "nothing to ask");
  expect_refused(run_arguments({"--model=" + dir_.file("none.gguf")}), 2, "no such file");
  expect_refused(run_arguments({"--model=" + dir_.file("document.txt")}), 2, "not a GGUF file");
  const Bytes model = tiny_model(1).bytes();
  std::ofstream(dir_.file("half.gguf"), std::ios::binary)
      << as_text(ConstByteSpan(model).first(model.size() / 2));
  expect_refused(run_arguments({"--model=" + dir_.file("half.gguf")}), 2, "truncated");
  expect_refused({"inspect"}, 2, "give --store=DIR");
  expect_refused({"inspect", "--store=" + dir_.file("nothing")}, 1, "no store at");
}

TEST_F(Tools, TextThatIsTooLongOrNotTextIsExplained) {
  std::ofstream(dir_.file("long.txt")) << std::string(5000, 'x');
  expect_refused(run_arguments({"--document=" + dir_.file("long.txt")}), 2, "4096 positions");
  std::ofstream(dir_.file("binary.txt")) << "abc\xff\xfe";
  expect_refused(run_arguments({"--document=" + dir_.file("binary.txt")}), 2, "not UTF-8");
  std::ofstream(dir_.file("nearly.txt")) << std::string(4092, 'x');
  expect_refused(run_arguments({"--document=" + dir_.file("nearly.txt")}), 2, "4096 positions");
}

TEST_F(Tools, NonsenseNumbersAreRefused) {
  expect_refused(run_arguments({"--budget=-3"}), 2, "--budget=-3");
  expect_refused(run_arguments({"--budget=many"}), 2, "--budget=many");
  expect_refused(run_arguments({"--budget=12x"}), 2, "--budget=12x");
  expect_refused(run_arguments({"--breadth=0"}), 2, "--breadth=0");
  expect_refused(run_arguments({"--budget=2147483648"}), 2, "--budget=2147483648");
  expect_refused(run_arguments({"--breadth=4294967297"}), 2, "--breadth=4294967297");
  expect_refused(run_arguments({"--group_tokens=17"}), 2, "--group_tokens=17");
  expect_refused(run_arguments({"--group_tokens=0"}), 2, "--group_tokens=0");
  expect_refused(run_arguments({"--dense_suffix_tokens=-1"}), 2, "--dense_suffix_tokens");
  expect_refused(run_arguments({"--pool_bytes=-5"}), 2, "hot pool of -5 bytes");
  expect_refused(run_arguments({"--temperature=nan"}), 2, "--temperature");
  expect_refused(run_arguments({"--threads=100000"}), 2, "threads");
  expect_refused(run_arguments({"--page_rows=3"}), 2, "pages of 3 rows");
  expect_refused(run_arguments({"--pool_bytes=100"}), 2, "hot pool of 100 bytes");
  expect_refused(run_arguments({"--dram_bytes=5"}), 2, "DRAM capacity of 5");
  expect_refused(run_arguments({"--temperature=-1"}), 2, "--temperature");
  expect_refused(run_arguments({"--max_tokens=0"}), 2, "--max_tokens");
  expect_refused(run_arguments({"--threads=-2"}), 2, "threads");
  expect_refused(run_arguments({"--prompt=poem"}), 2, "--prompt=poem");
  expect_refused(run_arguments({"--prompt=chat"}), 2, "no chat template");
  expect_refused(run_arguments({"--coverage_floor=3"}), 2, "coverage floor");
  expect_refused({"eval", "--context_tokens=10"}, 2, "--context_tokens=10");
  expect_refused({"eval", "--budget=64,-1"}, 2, "--budget=-1");
  expect_refused({"eval", "--budget=64,"}, 2, "has nothing where a number should stand");
  expect_refused({"eval", "--breadth=99999999999"}, 2, "--breadth=99999999999");
  expect_refused({"eval", "--tasks=juggling"}, 2, "no task \"juggling\"");
  expect_refused({"eval", "--tasks="}, 2, "--tasks: no task \"\"");
  expect_refused({"eval", "--group_tokens=17"}, 2, "--group_tokens=17: expected 1 to 16");
  expect_refused({"eval", "--method=guesses"}, 2, "no method \"guesses\"");
  expect_refused({"eval", "--method=pages_quest:64:x"}, 2, "--method");
  expect_refused({"eval", "--method=pages_quest", "--group_tokens=2"}, 2, "one token at a time");
  expect_refused({"eval", "--documents=0"}, 2, "--documents");
  expect_refused({"eval", "--documents=2", "--record=keys.bin"}, 2, "--record");
  expect_refused({"eval", "--document=" + dir_.file("document.txt")}, 2, "200 KB");
}

TEST_F(Tools, BenchesNameTheLimitsOfTheirFlags) {
  const auto attention = [&](const std::string& flag, const std::string& words) {
    expect_refused({"bench", "attention", flag}, 2, flag + ": expected " + words);
  };
  attention("--threads=300", "1 to 256");
  attention("--group=300", "1 to 256");
  attention("--n=2097152", "a multiple of 256 up to 1048576");
  attention("--n=8000", "a multiple of 256 up to 1048576");
  attention("--head_dim=272", "a multiple of 16 up to 256");
  attention("--selected=8193", "1 to 8192");
  attention("--rows=0", "1 to 1048576");
  expect_refused({"bench", "index", "--heads=-1"}, 2, "--heads=-1: expected 0 to");
  expect_refused({"bench", "index", "--steps=0"}, 2, "--steps=0: expected 1 to");
  expect_refused({"bench", "index", "--n=1000"}, 2, "--n=1000");
}

TEST_F(Tools, DevicesThatAreNotThereAreExplained) {
  expect_refused(run_arguments({"--device=tpu"}), 2, "--device=tpu: expected cpu or cuda");
  expect_refused(run_arguments({"--on_miss=guess"}), 2, "--on_miss=guess: expected fetch or tail");
  // The tiny model's heads are narrower than what the GPU has kernels for.
  const ProcessResult result = run_icefield(run_arguments({"--device=cuda"}));
  EXPECT_NE(result.exit_code, 0);
  EXPECT_NE(result.err.find("--device=cuda"), std::string::npos) << result.err;
}

TEST_F(Tools, AnswersThatDoNotWaitForPagesComeAllTheSame) {
  const auto result = run_icefield(run_arguments({"--on_miss=tail", "--json"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_FALSE(report["answers"][0]["answer"].get<std::string>().empty());
  EXPECT_LT(figure(report, "coverage"), 1) << "the first token found nothing in the pool";
}

// More memory than any machine has: a sentence, not a crash.
TEST_F(Tools, MemoryThatIsNotThereIsExplained) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator ends the program when there is no memory";
#endif
  expect_refused(run_arguments({"--pool_bytes=1000000000000000"}), 1, "no memory for a hot pool");
  expect_refused(run_arguments({"--dram_bytes=1000000000000000"}), 2, "DRAM capacity of");
}

// A budget beyond every context is all of it, in no more memory than the longest context takes.
TEST_F(Tools, BudgetBeyondTheContextIsFullAttention) {
  const auto all = run_icefield(run_arguments({"--budget=all", "--json"}));
  const auto huge = run_icefield(run_arguments({"--budget=2147483647", "--json"}));
  ASSERT_EQ(huge.exit_code, 0) << huge.err;
  const json report = json::parse(huge.out);
  EXPECT_EQ(report["answers"][0]["answer"], json::parse(all.out)["answers"][0]["answer"]);
  EXPECT_EQ(figure(report, "tail_share"), 0);
  EXPECT_LT(figure(report, "hot_bytes"), 3 * 4096 * 1024);  // of 4 096 positions at 1 kB
}

TEST_F(Tools, AnswerEndsWhereTheModelsPositionsEnd) {
  std::ofstream(dir_.file("document.txt")) << std::string(4080, 'x');
  const auto result = run_icefield(run_arguments({"--json", "--max_tokens=100000"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_LE(json::parse(result.out)["answers"][0]["tokens"], 4096 - 4080 - 6 + 1);
}

TEST_F(Tools, StoresThatCannotBeUsedAreExplained) {
  std::ofstream(dir_.file("file")) << "x";
  expect_refused(run_arguments({"--store=" + dir_.file("file")}), 2, "it is a file");
  expect_refused(run_arguments({"--store=/proc/icefield"}), 2, "cannot be made");
  { const auto other = NvmeTier::open({.path = dir_.file("v999"), .layout_version = 999}).value(); }
  expect_refused(run_arguments({"--store=" + dir_.file("v999")}), 2, "layout version 999");
  expect_refused({"inspect", "--store=" + dir_.file("v999")}, 2, "layout version 999");
  ASSERT_EQ(run_icefield(run_arguments({"--store=" + dir_.file("store")})).exit_code, 0);
  std::ofstream(dir_.file("store") + "/CURRENT") << "MANIFEST-424242\n";
  expect_refused(run_arguments({"--store=" + dir_.file("store")}), 1, "delete the directory");
}

TEST_F(Tools, StoreOfAnotherModelIsNamedAndLeftAlone) {
  const std::string store = "--store=" + dir_.file("store");
  ASSERT_EQ(run_icefield(run_arguments({store})).exit_code, 0);
  tiny_model(2).write(dir_.file("other.gguf"));
  const auto result = run_icefield(run_arguments({store, "--model=" + dir_.file("other.gguf")}));
  EXPECT_EQ(result.exit_code, 0) << "it is computed anew, beside the other model's";
  EXPECT_NE(result.err.find("its weight_revision is"), std::string::npos) << result.err;
  const json report =
      json::parse(run_icefield({"inspect", "--store=" + dir_.file("store"), "--json"}).out);
  EXPECT_EQ(figure(report, "segments"), 4);
}

TEST_F(Tools, FullDiskIsExplainedAndLosesNothing) {
  if (getuid() != 0) GTEST_SKIP() << "mounting a small file system needs root";
  const std::string mount_point = dir_.file("small");
  ASSERT_EQ(mkdir(mount_point.c_str(), 0700), 0);
  if (mount("tmpfs", mount_point.c_str(), "tmpfs", 0, "size=6m") != 0) {
    GTEST_SKIP() << "no file system can be mounted here: " << std::strerror(errno);
  }
  // The first document fits (2 layers x 2 heads x 256 B x 1280 tokens = 1.3 MB), not the second.
  const std::string store = "--store=" + mount_point + "/store";
  std::ofstream(dir_.file("document.txt")) << document_.substr(0, 1280);
  const auto first = run_icefield(run_arguments({store, "--json"}));
  EXPECT_EQ(first.exit_code, 0) << first.err;
  std::ofstream(dir_.file("other.txt")) << "other " << document_;
  // No room at all, then room to open the store but not for the document.
  for (const std::uintmax_t left : {std::uintmax_t{0}, std::uintmax_t{1} << 20}) {
    {
      std::ofstream ballast(mount_point + "/ballast", std::ios::binary);
      const std::string block(16 << 10, 'x');
      while (std::filesystem::space(mount_point).available > left + block.size() &&
             ballast.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
      }
    }
    const auto full = run_icefield(run_arguments({store, "--document=" + dir_.file("other.txt")}));
    EXPECT_EQ(full.exit_code, 1) << full.out;
    EXPECT_NE(full.err.find("disk is full"), std::string::npos) << full.err;
    std::filesystem::remove(mount_point + "/ballast");
  }
  const auto again = run_icefield(run_arguments({store, "--json"}));
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(figure(json::parse(again.out), "prefill_tokens"), 0) << "the first is still there";
  EXPECT_EQ(json::parse(again.out)["answers"][0]["answer"],
            json::parse(first.out)["answers"][0]["answer"]);
  umount(mount_point.c_str());
}

// Killed at any moment while it stores: what was there before is there, nothing else is believed.
TEST_F(Tools, KilledWritersLeaveAUsableStore) {
  const std::string store = dir_.file("store");
  std::ofstream(dir_.file("document.txt")) << document_.substr(0, 1280);
  const auto first = run_icefield(run_arguments({"--store=" + store, "--json"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  for (int trial = 0; trial < 8; ++trial) {
    std::ofstream(dir_.file("other.txt")) << trial << document_;
    struct Growth {
      std::string path;
      std::uintmax_t start;
      std::uintmax_t by;
      static std::uintmax_t size(const std::string& path) {
        std::uintmax_t sum = 0;
        std::error_code error;
        for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
          sum += entry.file_size(error);
        }
        return sum;
      }
    } growth{store, Growth::size(store), static_cast<std::uintmax_t>(trial) * 150000};
    kill_icefield(
        run_arguments({"--store=" + store, "--document=" + dir_.file("other.txt")}),
        [](void* context) {
          const auto& watched = *static_cast<Growth*>(context);
          return Growth::size(watched.path) > watched.start + watched.by;
        },
        &growth);
    const auto again = run_icefield(run_arguments({"--store=" + store, "--json"}));
    ASSERT_EQ(again.exit_code, 0) << again.err;
    EXPECT_EQ(figure(json::parse(again.out), "prefill_tokens"), 0);
    EXPECT_EQ(json::parse(again.out)["answers"][0]["answer"],
              json::parse(first.out)["answers"][0]["answer"]);
  }
}

}  // namespace
}  // namespace icefield
