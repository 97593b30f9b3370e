// Disks that fail, stall or are full at the worst moment, below RocksDB.
#include <gmock/gmock.h>

#include <future>

#include "common/task_scope.h"
#include "storage/nvme_tier.h"
#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/storage/failing_file_system.h"

namespace icefield {
namespace {

using rocksdb::IOStatus;
using testing::HasSubstr;
using Access = FailingFileSystem::Access;
using namespace std::chrono_literals;

// Far beyond what a loaded machine does to a thread: what takes longer hangs.
constexpr auto kForgotten = 8s;

IOStatus read_only() { return IOStatus::IOError("While fsync", "Read-only file system"); }

class NvmeFaults : public testing::Test {
 protected:
  Result<std::unique_ptr<NvmeTier>> open(std::string path) {
    return NvmeTier::open({.path = std::move(path),
                           .write_buffer_bytes = 1 << 20,
                           .capacity_bytes = 16 << 20,
                           .file_system = disk_});
  }
  Status put(const ObjectKey& key) {
    const std::vector<ConstByteSpan> pieces = {bytes_};
    return run_task(io_, tier_->put(key, pieces, info_of(key, bytes_))).status();
  }
  ObjectKey put_new() {
    const ObjectKey key = random_key(rng_);
    EXPECT_TRUE(put(key).ok());
    return key;
  }
  Status remove(const ObjectKey& key) { return run_task(io_, tier_->remove(key)); }
  std::shared_ptr<std::optional<Status>> begin_flush() {
    auto flushed = std::make_shared<std::optional<Status>>();
    asio::co_spawn(io_, tier_->flush(),
                   [flushed](std::exception_ptr, Status status) { *flushed = std::move(status); });
    return flushed;
  }
  // Fails where it hangs.
  Status end_flush(const std::shared_ptr<std::optional<Status>>& flushed) {
    const auto limit = std::chrono::steady_clock::now() + kForgotten;
    const auto work = asio::make_work_guard(io_);
    io_.restart();
    while (!flushed->has_value() && std::chrono::steady_clock::now() < limit)
      io_.run_one_until(limit);
    return flushed->value_or(Status(Code::kDeadlineExceeded, "flush hangs"));
  }
  Status flush() { return end_flush(begin_flush()); }
  bool has(const ObjectKey& key) {
    const Result<ObjectBytes> found = run_task(io_, tier_->get(key, Verify::kByTier));
    return found.has_value() && found->copy() == bytes_;
  }
  // What a hang would keep from ending ends when the disk is well again.
  void expect_closes() {
    auto closing = std::async(std::launch::async, [this] { tier_.reset(); });
    EXPECT_EQ(closing.wait_for(kForgotten), std::future_status::ready);
    disk_->clear();
  }

  asio::io_context io_;  // outlives the tier's threads
  TempDir dir_;
  SeededRng rng_{1};
  const Bytes bytes_ = random_bytes(rng_, 100'000);
  const std::shared_ptr<FailingFileSystem> disk_ = std::make_shared<FailingFileSystem>();
  std::unique_ptr<NvmeTier> tier_ = open(dir_.path()).value();
};

// Files that cannot be opened, written or synced, for any reason but want of space.
class BrokenDisk : public NvmeFaults, public testing::WithParamInterface<Access::Kind> {};

TEST_P(BrokenDisk, EndsFlushesInWordsAndWritesFromThenOn) {
  const ObjectKey flushed = put_new();
  ASSERT_TRUE(flush().ok());
  const ObjectKey lost = put_new();
  disk_->set([kind = GetParam()](const Access& access) {
    return access.kind == kind ? read_only() : IOStatus::OK();
  });
  for (const Status& status : {flush(), flush(), put(random_key(rng_))}) {
    EXPECT_EQ(status.code(), Code::kInternal) << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr("the device failed"));
    EXPECT_THAT(status.message(), HasSubstr(dir_.path()));
  }
  EXPECT_TRUE(has(flushed)) << "reads go on";
  EXPECT_TRUE(has(lost));
  expect_closes();
  tier_ = open(dir_.path()).value();
  EXPECT_TRUE(has(flushed));
  EXPECT_TRUE(put(lost).ok()) << "after a restart";
  EXPECT_TRUE(flush().ok());
}

INSTANTIATE_TEST_SUITE_P(NvmeFaults, BrokenDisk,
                         testing::Values(Access::Kind::kOpen, Access::Kind::kWrite,
                                         Access::Kind::kSync));

// The first of two flushes fails when the second has written all of its own and waits for it.
TEST_F(NvmeFaults, AFlushBehindOneThatFailedDoesNotKeepTheStoreFromClosing) {
  std::promise<void> begun;
  std::promise<void> go_on;
  std::promise<void> written;
  std::atomic<int> synced{0};  // files, of three for each flush
  disk_->set([&](const Access& access) {
    if (access.kind != Access::Kind::kSync) return IOStatus::OK();
    const int before = synced++;
    if (before == 0) begun.set_value();
    if (before == 3) written.set_value();
    if (before > 0) return IOStatus::OK();
    go_on.get_future().wait();
    return read_only();
  });
  put_new();
  const auto flushed = begin_flush();
  io_.restart();
  io_.poll();
  begun.get_future().wait();
  for (int i = 0; i < 20; ++i) put_new();  // more than a write buffer
  written.get_future().wait();
  go_on.set_value();
  EXPECT_EQ(end_flush(flushed).code(), Code::kInternal);
  expect_closes();
}

// Nothing is forgotten while it takes space on the disk.
TEST_F(NvmeFaults, WhatCannotBeErasedIsStillThere) {
  const ObjectKey key = put_new();
  disk_->set([](const Access&) { return read_only(); });
  ASSERT_FALSE(flush().ok());
  EXPECT_EQ(remove(key).code(), Code::kInternal);
  EXPECT_EQ(tier_->usage().object_count, 1);
  EXPECT_EQ(tier_->usage().used_bytes, std::ssize(bytes_));
  EXPECT_TRUE(has(key));
}

// The erase fails on a disk that is full, the put behind it finds it well again.
TEST_F(NvmeFaults, WhatIsPutWhileItsErasureFailsIsKnownOnce) {
  const ObjectKey key = put_new();
  disk_->set([](const Access& access) {
    return access.kind == Access::Kind::kSync ? IOStatus::NoSpace() : IOStatus::OK();
  });
  ASSERT_EQ(flush().code(), Code::kResourceExhausted);
  disk_->clear();
  TaskScope scope(io_.get_executor());
  Status removed;
  Status stored;
  const auto erase = [&]() -> asio::awaitable<void> { removed = co_await tier_->remove(key); };
  const auto store = [&]() -> asio::awaitable<void> {
    const std::vector<ConstByteSpan> pieces = {bytes_};
    stored = (co_await tier_->put(key, pieces, info_of(key, bytes_))).status();
  };
  scope.spawn(erase());
  scope.spawn(store());
  io_.restart();
  io_.run();
  EXPECT_EQ(removed.code(), Code::kResourceExhausted) << removed.to_string();
  EXPECT_TRUE(stored.ok()) << stored.to_string();
  EXPECT_EQ(tier_->usage().object_count, 1);
  EXPECT_EQ(tier_->usage().used_bytes, std::ssize(bytes_));
  EXPECT_TRUE(has(key));
  EXPECT_TRUE(remove(key).ok());
  EXPECT_FALSE(tier_->find(key).has_value());
  EXPECT_EQ(tier_->usage().used_bytes, 0);
}

TEST_F(NvmeFaults, AStoreThatWaitsForRoomToReclaimCanBeClosed) {
  std::vector<ObjectKey> keys;
  for (int i = 0; i < 30; ++i) keys.push_back(put_new());
  ASSERT_TRUE(flush().ok());
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(remove(keys[static_cast<std::size_t>(i)]).ok());
  }
  ASSERT_TRUE(flush().ok());
  std::promise<void> refused;
  std::atomic_flag told;
  disk_->set([&](const Access& access) {
    if (!access.compaction) return IOStatus::OK();
    if (!told.test_and_set()) refused.set_value();
    return IOStatus::NoSpace();
  });
  put_new();  // begins to reclaim
  refused.get_future().wait();
  expect_closes();
}

class StoreFaults : public NvmeFaults {
 protected:
  void SetUp() override {
    tier_.reset();
    store_ = RocksStore::open(
                 {.path = dir_.file("other"), .write_buffer_bytes = 1 << 20, .file_system = disk_})
                 .value();
  }
  std::unique_ptr<RocksStore> store_;
};

// Each of its steps may take minutes.
TEST_F(StoreFaults, AReclaimEndsWithTheStepThatItIsIn) {
  std::vector<StoredObject> garbage;
  for (std::uint64_t number = 1; number <= 40; ++number) {
    const ObjectKey key = random_key(rng_);
    const StoredObject object{.key = key, .info = info_of(key, bytes_), .number = number};
    const std::vector<ConstByteSpan> pieces = {bytes_};
    ASSERT_TRUE(store_->write(object, pieces).ok());
    if (number % 2 == 0) garbage.push_back(object);
    if (number % 2 == 0) {
      ASSERT_TRUE(store_->flush().ok());
    }
  }
  ASSERT_TRUE(store_->erase(garbage).ok());
  ASSERT_TRUE(store_->flush().ok());
  const std::int64_t before = store_->space().file_bytes;
  std::promise<void> begun;
  std::promise<void> go_on;
  std::atomic_flag told;
  disk_->set([&](const Access& access) {
    if (access.compaction && !told.test_and_set()) {
      begun.set_value();
      go_on.get_future().wait();
    }
    return IOStatus::OK();
  });
  auto reclaiming = std::async(std::launch::async, [this] { return store_->reclaim(0); });
  begun.get_future().wait();
  store_->close_soon();
  go_on.set_value();
  EXPECT_TRUE(reclaiming.get().ok());
  (void)store_->flush();  // measures
  EXPECT_EQ(store_->space().file_bytes, before);
}

// "lock" is in the name, not in what went wrong.
TEST_F(StoreFaults, WhatCannotBeWrittenIsNotTakenForLocked) {
  disk_->set([](const Access& access) {
    return IOStatus::IOError("While open a file: " + access.file, "Input/output error");
  });
  const Status status = open(dir_.file("blocks")).error();
  EXPECT_EQ(status.code(), Code::kInternal) << status.to_string();
  EXPECT_THAT(status.message(), HasSubstr("Input/output error"));
  disk_->set([](const Access&) { return read_only(); });
  EXPECT_EQ(open(dir_.file("blocks")).error().code(), Code::kInvalidArgument);
}

// As below a directory that may not be searched, which root cannot be kept from.
TEST_F(StoreFaults, APathThatCannotBeLookedAtIsExplained) {
  std::filesystem::create_symlink("loop", dir_.file("loop"));
  for (const std::string& path : {dir_.file("loop") + "/store", dir_.file(std::string(300, 'x'))}) {
    for (const bool create : {true, false}) {
      const Status status = NvmeTier::open({.path = path, .create = create}).error();
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.to_string();
      EXPECT_THAT(status.message(), HasSubstr("cannot be made"));
    }
  }
}

}  // namespace
}  // namespace icefield
