#include "storage/nvme_tier.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "common/task_scope.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/small_disk.h"
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

// Enough objects for several flushes and compactions of the catalog, some removed, some to be kept.
TEST_F(NvmeTierTest, RestartOfManyObjectsFindsAllThatWereNotRemoved) {
  constexpr std::size_t kObjects = 20000;
  std::vector<ObjectKey> keys;
  const auto bytes_of = [](std::size_t i) { return Bytes(700 + i % 50, std::byte(i % 251)); };
  const auto retention_of = [](std::size_t i) {
    return i % 100 == 1 ? Retention{.expires_at_ms = INT64_MAX - 1} : Retention();
  };
  {
    const auto tier = NvmeTier::open({.path = dir_.path(), .write_buffer_bytes = 1 << 20}).value();
    for (std::size_t i = 0; i < kObjects; ++i) {
      keys.push_back(random_key(rng_));
      put(*tier, keys.back(), bytes_of(i));
      Status changed;
      if (i % 100 == 1) changed = run_task(tier->retain(keys.back(), retention_of(i)));
      if (i % 7 == 6) changed = run_task(tier->remove(keys[i - 3]));
      if (i % 1000 == 999) changed = run_task(tier->flush());
      ASSERT_TRUE(changed.ok());
    }
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  const auto tier = open();
  int found = 0;
  for (std::size_t i = 0; i < kObjects; ++i) {
    const auto info = tier->find(keys[i]);
    ASSERT_EQ(info.has_value(), i % 7 != 3 || i + 3 >= kObjects) << i;
    if (!info.has_value()) continue;
    ++found;
    ASSERT_EQ(info->retention, retention_of(i));
    if (i % 20 != 0) continue;
    ASSERT_EQ(run_task(tier->get(keys[i], Verify::kByTier)).value().copy(), bytes_of(i));
  }
  EXPECT_EQ(tier->usage().object_count, found);
  EXPECT_GT(tier->reads_in_place(), 800);
}

// One access to the device, past RocksDB: of what was flushed, after a restart, and of what moved.
TEST_F(NvmeTierTest, FlushedValuesAreReadInPlace) {
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  const auto read_all = [&](NvmeTier& tier) {
    for (const auto& [key, bytes] : objects) {
      EXPECT_EQ(run_task(tier.get(key, Verify::kByTier)).value().copy(), bytes);
    }
  };
  {
    const auto tier = open();
    for (const std::size_t size : {600u, 4096u, 16384u, 100001u, 1000000u}) {
      objects.emplace_back(random_key(rng_), random_bytes(rng_, size));
      put(*tier, objects.back().first, objects.back().second);
    }
    read_all(*tier);
    EXPECT_EQ(tier->reads_in_place(), 0) << "still in memory";
    ASSERT_TRUE(run_task(tier->flush()).ok());
    read_all(*tier);
    EXPECT_EQ(tier->reads_in_place(), 5);
  }
  const auto tier = open();
  read_all(*tier);
  EXPECT_EQ(tier->reads_in_place(), 5);
}

// Places are hints: without the file they name, the error is RocksDB's, not a crash or old bytes.
TEST_F(NvmeTierTest, AMissingBlobFileIsAnErrorOfTheObject) {
  const ObjectKey key = random_key(rng_);
  {
    const auto tier = open();
    put(*tier, key, random_bytes(rng_, 5000));
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  const auto tier = open();
  for (const auto& blob : files(".blob")) std::filesystem::resize_file(blob, 1000);
  EXPECT_EQ(run_task(tier->get(key, Verify::kByTier)).error().code(), Code::kDataLoss);
  EXPECT_EQ(tier->reads_in_place(), 0);
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

TEST_F(NvmeTierTest, AStoreOfTheOldFormatIsRefusedByName) {
  {
    rocksdb::Options old;
    old.create_if_missing = true;
    old.create_missing_column_families = true;
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* raw = nullptr;
    ASSERT_TRUE(
        rocksdb::DB::Open(old, dir_.path(), {{"default", {}}, {"objects", {}}}, &handles, &raw)
            .ok());
    const std::unique_ptr<rocksdb::DB> database(raw);
    for (rocksdb::ColumnFamilyHandle* handle : handles) {
      ASSERT_TRUE(database->DestroyColumnFamilyHandle(handle).ok());
    }
  }
  const Status status = NvmeTier::open({.path = dir_.path()}).error();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition) << status.to_string();
  EXPECT_NE(status.message().find("another version of this program"), std::string::npos)
      << status.to_string();
}

TEST_F(NvmeTierTest, RetentionSurvivesARestart) {
  const ObjectKey key = random_key(rng_);
  const Retention retention{.expires_at_ms = INT64_MAX - 1, .pinned_until_ms = 77};
  {
    const auto tier = open();
    put(*tier, key, random_bytes(rng_, 1000));
    ASSERT_TRUE(run_task(tier->retain(key, retention)).ok());
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  EXPECT_EQ(open()->find(key)->retention, retention);
}

// Many writers that each want their object durable share flushes.
TEST_F(NvmeTierTest, ConcurrentDurablePutsShareFlushes) {
  const auto tier = open();
  constexpr int kWriters = 32;
  asio::io_context io;
  TaskScope scope(io.get_executor());
  int durable = 0;
  const auto write = [](NvmeTier& to, ObjectKey key, Bytes bytes,
                        int& done) -> asio::awaitable<void> {
    const std::vector<ConstByteSpan> pieces = {bytes};
    EXPECT_TRUE((co_await to.put(key, pieces, info_of(key, bytes))).has_value());
    EXPECT_TRUE((co_await to.flush()).ok());
    ++done;
  };
  for (int i = 0; i < kWriters; ++i) {
    scope.spawn(write(*tier, random_key(rng_), random_bytes(rng_, 20000), durable));
  }
  io.run();
  EXPECT_EQ(durable, kWriters);
  EXPECT_LE(tier->flushes.value(), kWriters / 4);
  EXPECT_GE(tier->flushes.value(), 1);
}

TEST_F(NvmeTierTest, ConcurrentPutsOfOneKeyStoreItOnce) {
  const auto tier = open();
  const ObjectKey key = random_key(rng_);
  const Bytes bytes = random_bytes(rng_, 20000);
  asio::io_context io;
  TaskScope scope(io.get_executor());
  int stored = 0;
  const auto write = [](NvmeTier& to, ObjectKey name, const Bytes& what,
                        int& count) -> asio::awaitable<void> {
    const std::vector<ConstByteSpan> pieces = {what};
    const Result<PutOutcome> outcome = co_await to.put(name, pieces, info_of(name, what));
    EXPECT_TRUE(outcome.has_value());
    if (outcome.value() == PutOutcome::kStored) ++count;
  };
  for (int i = 0; i < 8; ++i) scope.spawn(write(*tier, key, bytes, stored));
  io.run();
  EXPECT_EQ(stored, 1);
  EXPECT_EQ(tier->usage().used_bytes, 20000);
}

// Ten times the limit is written: files stay below it, but for what is being rewritten, and the
// newest objects are served.
TEST_F(NvmeTierTest, FilesStayBelowTheLimit) {
  NvmeTier::Options options{.path = dir_.path(),
                            .write_buffer_bytes = 1 << 20,
                            .capacity_bytes = 16 << 20,
                            .eviction = EvictionKind::kLru};
  const auto tier = NvmeTier::open(options).value();
  ObjectKey key;
  Bytes bytes;
  for (int i = 0; i < 1600; ++i) {
    key = random_key(rng_);
    bytes.assign(100000, static_cast<std::byte>(i));
    const std::vector<ConstByteSpan> pieces = {bytes};
    Result<PutOutcome> stored = run_task(tier->put(key, pieces, info_of(key, bytes)));
    while (!stored.has_value()) {
      ASSERT_EQ(stored.error().code(), Code::kResourceExhausted) << stored.error().to_string();
      ASSERT_TRUE(run_task(tier->flush()).ok());
      stored = run_task(tier->put(key, pieces, info_of(key, bytes)));
    }
    std::int64_t blob_bytes = 0;
    if (i % 100 != 0) continue;
    for (const auto& file : files(".blob")) {
      std::error_code gone;  // reclaimed in between
      const auto size = std::filesystem::file_size(file, gone);
      if (!gone) blob_bytes += static_cast<std::int64_t>(size);
    }
    // A tenth is rewritten at a time: old and new files stand side by side meanwhile.
    ASSERT_LE(blob_bytes, options.capacity_bytes * 11 / 10) << "object " << i;
  }
  EXPECT_GT(tier->evicted.value(), 1000);
  EXPECT_EQ(run_task(tier->get(key, Verify::kByTier)).value().copy(), bytes);
}

TEST(NvmeTierOnASmallDisk, AFullDiskRefusesPutsAndRecoversWithoutARestart) {
  SmallDisk disk(64);
  if (!disk.mounted()) GTEST_SKIP() << "a loop-mounted file system needs root";
  SeededRng rng(5);
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  {
    const auto tier =
        NvmeTier::open({.path = disk.path() + "/store", .write_buffer_bytes = 1 << 20}).value();
    // Somebody else's file takes most of the disk.
    const std::string ballast = disk.path() + "/ballast";
    std::ofstream(ballast) << std::string(24 << 20, 'x');
    const auto put = [&tier](const ObjectKey& key, const Bytes& bytes) {
      const std::vector<ConstByteSpan> pieces = {bytes};
      return run_task(tier->put(key, pieces, info_of(key, bytes)));
    };
    Status refused;
    for (int i = 0; i < 2000 && refused.message().find("full") == std::string::npos; ++i) {
      objects.emplace_back(random_key(rng), Bytes(100000, static_cast<std::byte>(i)));
      refused = put(objects.back().first, objects.back().second).status();
      if (refused.ok()) continue;
      ASSERT_EQ(refused.code(), Code::kResourceExhausted) << refused.to_string();
      objects.pop_back();
      ASSERT_TRUE(run_task(tier->flush()).ok());
    }
    EXPECT_NE(refused.message().find("the disk is full"), std::string::npos);
    EXPECT_GT(objects.size(), 50u);
    std::filesystem::remove(ballast);
    objects.emplace_back(random_key(rng), Bytes(100000, std::byte{1}));
    EXPECT_TRUE(put(objects.back().first, objects.back().second).has_value());
    ASSERT_TRUE(run_task(tier->flush()).ok());
  }
  const auto tier = NvmeTier::open({.path = disk.path() + "/store"}).value();
  for (const auto& [key, bytes] : objects) {
    EXPECT_EQ(run_task(tier->get(key, Verify::kByTier)).value().copy(), bytes);
  }
}

// What is pinned cannot make room.
TEST_F(NvmeTierTest, PutsAreRefusedFromNinetyFivePercentOfTheLimitOn) {
  constexpr std::int64_t kLimit = 16 << 20;
  const auto tier = NvmeTier::open({.path = dir_.path(),
                                    .write_buffer_bytes = 1 << 20,
                                    .capacity_bytes = kLimit,
                                    .eviction = EvictionKind::kLru})
                        .value();
  std::vector<ObjectKey> keys;
  const auto put = [&] {
    const ObjectKey key = random_key(rng_);
    const Bytes bytes(100'000, std::byte{1});
    ObjectInfo info = info_of(key, bytes);
    info.retention.pinned_until_ms = Retention::kForever;
    const std::vector<ConstByteSpan> pieces = {bytes};
    const Status status = run_task(tier->put(key, pieces, info)).status();
    if (status.ok()) keys.push_back(key);
    return status;
  };
  // What is on its way to files counts twice for a moment: after a flush only the limit refuses.
  const auto put_flushed = [&](int tries) {
    Status status = put();
    for (int i = 0; i < tries && !status.ok(); ++i) {
      EXPECT_EQ(status.code(), Code::kResourceExhausted) << status.to_string();
      EXPECT_TRUE(run_task(tier->flush()).ok());
      status = put();
    }
    return status;
  };
  Status refused;
  while (refused.ok() && keys.size() < 200) refused = put_flushed(20);
  EXPECT_NE(refused.message().find("would be taken"), std::string::npos) << refused.to_string();
  EXPECT_LE(tier->usage().used_bytes, kLimit * 95 / 100);
  EXPECT_GT(tier->usage().used_bytes, kLimit * 90 / 100);
  EXPECT_EQ(tier->evicted.value(), 0);
  for (std::size_t i = 0; i < 20; ++i) ASSERT_TRUE(run_task(tier->remove(keys[i])).ok());
  EXPECT_TRUE(put_flushed(100'000).ok()) << "as soon as there is room";
}

class FullDisk : public testing::Test {
 protected:
  void SetUp() override {
    if (!disk_.mounted()) GTEST_SKIP() << "a loop-mounted file system needs root";
    tier_ = open();
  }
  std::unique_ptr<NvmeTier> open() {
    return NvmeTier::open({.path = disk_.path() + "/store", .write_buffer_bytes = 1 << 20}).value();
  }
  Status put() {
    const ObjectKey key = random_key(rng_);
    const Bytes bytes = random_bytes(rng_, 100'000);
    const std::vector<ConstByteSpan> pieces = {bytes};
    const Status status = run_task(tier_->put(key, pieces, info_of(key, bytes))).status();
    if (status.ok()) objects_.emplace_back(key, bytes);
    return status;
  }
  void expect_all() {
    for (const auto& [key, bytes] : objects_) {
      const auto found = run_task(tier_->get(key, Verify::kByTier));
      ASSERT_TRUE(found.has_value()) << found.error().to_string();
      EXPECT_EQ(found->copy(), bytes);
    }
  }

  SmallDisk disk_{64};
  SeededRng rng_{7};
  std::unique_ptr<NvmeTier> tier_;
  std::vector<std::pair<ObjectKey, Bytes>> objects_;  // put
};

// Somebody else takes the last byte between puts and their flush.
TEST_F(FullDisk, WhatWasPutIsFlushedIntoTheReserve) {
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(put().ok());
  disk_.fill();
  EXPECT_TRUE(run_task(tier_->flush()).ok());
  EXPECT_EQ(put().code(), Code::kResourceExhausted);
  expect_all();
  tier_.reset();
  tier_ = open();  // on a disk that is still full
  expect_all();
  const Status refused = put();
  EXPECT_EQ(refused.code(), Code::kResourceExhausted);
  EXPECT_NE(refused.message().find("the disk is full"), std::string::npos) << refused.to_string();
  disk_.empty();
  EXPECT_TRUE(put().ok()) << "without a restart";
  EXPECT_TRUE(run_task(tier_->flush()).ok());
  expect_all();
}

// The others are faster than the flush: they have what it gave up of the reserve.
TEST_F(FullDisk, FlushesWaitForRoomWhenTheReserveIsGone) {
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(put().ok());
  std::filesystem::resize_file(disk_.path() + "/store/icefield.reserve", 0);
  disk_.fill();
  for (int i = 0; i < 2; ++i) {
    const Status status = run_task(tier_->flush());
    EXPECT_EQ(status.code(), Code::kResourceExhausted) << status.to_string();
    EXPECT_EQ(put().code(), Code::kResourceExhausted);
  }
  expect_all();
  disk_.empty();
  for (int i = 0; i < 100 && !run_task(tier_->flush()).ok(); ++i) {  // it looks for room at times
  }
  EXPECT_TRUE(put().ok()) << "without a restart";
  EXPECT_TRUE(run_task(tier_->flush()).ok());
  tier_.reset();
  tier_ = open();
  expect_all();
}

TEST_F(FullDisk, AStoreWhoseFlushWaitsCanBeClosed) {
  ASSERT_TRUE(put().ok());
  ASSERT_TRUE(run_task(tier_->flush()).ok());
  std::filesystem::resize_file(disk_.path() + "/store/icefield.reserve", 0);
  for (int i = 0; i < 20; ++i) (void)put();
  disk_.fill();
  EXPECT_EQ(run_task(tier_->flush()).code(), Code::kResourceExhausted);
  tier_.reset();
  disk_.empty();
  objects_.resize(1);
  tier_ = open();
  expect_all();
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
