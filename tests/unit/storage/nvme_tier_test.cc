#include "storage/nvme_tier.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

class NvmeTierTest : public testing::Test {
 protected:
  std::unique_ptr<NvmeTier> open() { return NvmeTier::open({.path = dir_.path()}).value(); }
  static void put(NvmeTier& tier, const ObjectKey& key, ConstByteSpan bytes) {
    const std::vector<ConstByteSpan> pieces = {bytes};
    ASSERT_TRUE(run_task(tier.put(key, pieces, info_of(key, bytes))).has_value());
  }
  // Files of the store whose name ends with `suffix`.
  std::vector<std::filesystem::path> files(const std::string& suffix) const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      if (entry.path().string().ends_with(suffix)) found.push_back(entry.path());
    }
    return found;
  }

  TempDir dir_;
  SeededRng rng_{1};
};

TEST_F(NvmeTierTest, RestartServesWhatWasFlushed) {
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  {
    const auto tier = open();
    for (int i = 0; i < 20; ++i) {
      objects.emplace_back(random_key(rng_), random_bytes(rng_, 65536));
      put(*tier, objects.back().first, objects.back().second);
    }
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  const auto tier = open();
  EXPECT_EQ(tier->usage().object_count, 20);
  EXPECT_EQ(tier->usage().used_bytes, 20 * 65536);
  for (const auto& [key, bytes] : objects) {
    EXPECT_EQ(run_task(tier->get(key, Verify::kByTier)).value().copy(), bytes);
  }
}

// Run by the test below in a process of its own, in the store's parent directory.
TEST(NvmeTierChild, DISABLED_FlushesOneObjectPutsAnotherAndDies) {
  SeededRng rng(2);
  const auto tier = NvmeTier::open({.path = "store"}).value();
  for (const bool flush : {true, false}) {
    const ObjectKey key = random_key(rng);
    const Bytes bytes = random_bytes(rng, 65536);
    const std::vector<ConstByteSpan> pieces = {bytes};
    ASSERT_TRUE(run_task(tier->put(key, pieces, info_of(key, bytes))).has_value());
    if (flush) {
      ASSERT_TRUE(run_task(tier->flush()).ok());
    }
  }
  raise(SIGKILL);
}

// A killed process loses what it had not flushed, as if it had never been put; nothing else.
TEST_F(NvmeTierTest, KillKeepsWhatWasFlushedAndOnlyThat) {
  const pid_t child = fork();
  if (child == 0) {
    if (chdir(dir_.path().c_str()) != 0) _exit(1);
    execl("/proc/self/exe", "nvme_tier_test", "--gtest_also_run_disabled_tests",
          "--gtest_filter=NvmeTierChild.*", nullptr);
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  const auto tier = NvmeTier::open({.path = dir_.file("store"), .create = false}).value();
  SeededRng rng(2);
  const ObjectKey flushed = random_key(rng);
  const Bytes bytes = random_bytes(rng, 65536);
  const ObjectKey not_flushed = random_key(rng);
  EXPECT_EQ(run_task(tier->get(flushed, Verify::kByTier)).value().copy(), bytes);
  EXPECT_EQ(run_task(tier->get(not_flushed, Verify::kByTier)).error().code(), Code::kNotFound);
}

TEST_F(NvmeTierTest, FlippedBitsInBlobFilesAreDetected) {
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  {
    const auto tier = open();
    for (int i = 0; i < 8; ++i) {
      objects.emplace_back(random_key(rng_), random_bytes(rng_, 65536));
      put(*tier, objects.back().first, objects.back().second);
    }
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  const auto blobs = files(".blob");
  ASSERT_FALSE(blobs.empty());
  for (const auto& blob : blobs) {
    std::fstream file(blob, std::ios::in | std::ios::out | std::ios::binary);
    for (std::uintmax_t at = 5000; at < std::filesystem::file_size(blob); at += 65536) {
      file.seekg(static_cast<std::streamoff>(at));
      const char flipped = static_cast<char>(file.get() ^ 4);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(flipped);
    }
  }
  const auto tier = open();
  int damaged = 0;
  for (const auto& [key, bytes] : objects) {
    const Result<ObjectBytes> result = run_task(tier->get(key, Verify::kByTier));
    if (result.has_value()) {
      EXPECT_EQ(result->copy(), bytes) << "never wrong bytes";
      continue;
    }
    ++damaged;
    EXPECT_EQ(result.error().code(), Code::kDataLoss) << result.error().to_string();
    EXPECT_EQ(result.error().reason(), MissReason::kIntegrity);
  }
  EXPECT_GE(damaged, 7);
}

TEST_F(NvmeTierTest, SecondProcessIsToldThatTheStoreIsInUse) {
  const auto first = open();
  const Status status = NvmeTier::open({.path = dir_.path()}).error();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("another process has it open"), std::string::npos)
      << status.to_string();
}

TEST_F(NvmeTierTest, AnotherLayoutVersionIsRefused) {
  NvmeTier::Options options{.path = dir_.path()};
  options.layout_version = 999;
  { const auto tier = NvmeTier::open(options).value(); }
  const Status status = NvmeTier::open({.path = dir_.path()}).error();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_NE(status.message().find("layout version 999"), std::string::npos) << status.to_string();
}

TEST_F(NvmeTierTest, DamagedDatabaseIsExplained) {
  {
    const auto tier = open();
    put(*tier, random_key(rng_), random_bytes(rng_, 1000));
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  for (const auto& file : files("CURRENT")) std::ofstream(file) << "MANIFEST-999999\n";
  const Status status = NvmeTier::open({.path = dir_.path()}).error();
  EXPECT_EQ(status.code(), Code::kDataLoss) << status.to_string();
  EXPECT_NE(status.message().find("delete the directory"), std::string::npos) << status.to_string();
}

TEST_F(NvmeTierTest, PathThatIsAFileIsExplained) {
  const std::string path = dir_.file("file");
  std::ofstream(path) << "x";
  const Status status = NvmeTier::open({.path = path}).error();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("--store"), std::string::npos) << status.to_string();
  EXPECT_EQ(NvmeTier::open({.path = path + "/below"}).error().code(), Code::kInvalidArgument);
}

TEST_F(NvmeTierTest, OpeningWhatIsNotThereWithoutCreateIsAMiss) {
  const Status status = NvmeTier::open({.path = dir_.file("none"), .create = false}).error();
  EXPECT_EQ(status.code(), Code::kNotFound);
}

TEST(NvmeTierOptions, NonsenseIsRefused) {
  EXPECT_EQ(NvmeTier::open({.path = ""}).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(NvmeTier::open({.path = "/tmp/x", .io_threads = 0}).error().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(NvmeTier::open({.path = "/tmp/x", .write_buffer_bytes = 3}).error().code(),
            Code::kInvalidArgument);
}

}  // namespace
}  // namespace icefield
