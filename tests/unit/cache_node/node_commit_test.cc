// Commits of builds that are removed or dropped meanwhile: a build that is known is whole.
#include "common/task_scope.h"
#include "tests/support/node_fixture.h"

namespace icefield {
namespace {

// A disk whose flushes and removals take as long as the test wants.
class GatedDisk final : public Tier {
 public:
  explicit GatedDisk(Tier& below) : below_(below) {}

  Task<PutOutcome> put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                       ObjectInfo info) override {
    co_return co_await below_.put(key, pieces, info);
  }
  Task<ObjectBytes> get(ObjectKey key, Verify verify) override {
    co_return co_await below_.get(key, verify);
  }
  Task<> remove(ObjectKey key) override {
    while (removals_held_) co_await changed_.wait(Deadline::never());
    co_return co_await below_.remove(key);
  }
  Task<> flush() override {
    while (flushes_held_) co_await changed_.wait(Deadline::never());
    co_return Status();
  }
  Task<> retain(ObjectKey key, Retention retention) override {
    co_return co_await below_.retain(key, retention);
  }
  std::optional<ObjectInfo> find(const ObjectKey& key) const override { return below_.find(key); }
  void for_each(
      const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const override {
    below_.for_each(visit);
  }
  TierUsage usage() const override { return below_.usage(); }

  void hold_flushes(bool hold) {
    flushes_held_ = hold;
    changed_.notify_all();
  }
  void hold_removals(bool hold) {
    removals_held_ = hold;
    changed_.notify_all();
  }

 private:
  Tier& below_;
  bool flushes_held_ = false;
  bool removals_held_ = false;
  Waiters changed_;
};

class NodeCommitTest : public NodeTest {
 protected:
  ~NodeCommitTest() override { EXPECT_TRUE(run_task(io_, cache_.stop()).ok()); }

  static std::vector<ObjectKey> part_keys(const BuiltSegment& built) {
    std::vector<ObjectKey> keys;
    for (const PartEntry& part : built.manifest.parts) keys.push_back(key_of(built, part.id));
    return keys;
  }
  static ObjectKey manifest_key(const BuiltSegment& built) {
    return key_of(built, {.kind = PartKind::kManifest});
  }
  asio::awaitable<void> put(const BuiltSegment& built, ObjectKey key, ConstByteSpan bytes,
                            Status& ended) {
    const std::vector<PutObject> objects = {
        {.key = key, .info = info_of(key, bytes), .bytes = bytes}};
    ended = (co_await cache_.put(everyone_, objects, built.manifest.name_space)).value().front();
  }
  void begin(asio::awaitable<void> task) {
    scope_.spawn(std::move(task));
    run();
  }
  // As far as it goes.
  void run() {
    io_.restart();
    io_.poll();
  }
  // To be called while nothing is held.
  Status put_manifest(const BuiltSegment& built) {
    Status ended(Code::kInternal, "not ended");
    begin(put(built, manifest_key(built), built.manifest_bytes, ended));
    return ended;
  }
  void put_parts(const BuiltSegment& built) {
    for (std::size_t i = 0; i < built.manifest.parts.size(); ++i) {
      Status ended(Code::kInternal, "not ended");
      begin(put(built, part_keys(built)[i], built.part(i), ended));
      ASSERT_TRUE(ended.ok()) << ended.to_string();
    }
  }
  void remove(const ObjectKey& key) {
    EXPECT_TRUE(run_task(io_, cache_.remove(everyone_, key)).ok());
  }
  std::size_t build_count() const { return cache_.list().builds.size(); }
  void expect_nothing(const BuiltSegment& built) {
    EXPECT_EQ(build_count(), 0u);
    EXPECT_FALSE(memory_->find(manifest_key(built)).has_value());
    EXPECT_FALSE(disk_.find(manifest_key(built)).has_value());
  }

  asio::io_context io_;
  SystemClock clock_;
  const Caller everyone_;
  const std::unique_ptr<DramTier> memory_ = DramTier::open({.capacity_bytes = 16 << 20}).value();
  const std::unique_ptr<DramTier> below_ = DramTier::open({.capacity_bytes = 16 << 20}).value();
  GatedDisk disk_{*below_};
  CacheNode cache_{clock_, *memory_, &disk_};
  TaskScope scope_{io_.get_executor()};
  const BuiltSegment built_ = build(1);
};

// The publisher's deadline passes in the flush: it removes the manifest, then the parts.
TEST_F(NodeCommitTest, ABuildThatIsRemovedWhileItsManifestIsFlushedIsNotKnown) {
  put_parts(built_);
  disk_.hold_flushes(true);
  Status committed;
  begin(put(built_, manifest_key(built_), built_.manifest_bytes, committed));
  remove(manifest_key(built_));
  for (const ObjectKey& part : part_keys(built_)) remove(part);
  disk_.hold_flushes(false);
  run();
  EXPECT_EQ(committed.code(), Code::kResourceExhausted) << committed.to_string();
  expect_nothing(built_);
  put_parts(built_);
  EXPECT_TRUE(put_manifest(built_).ok());
  EXPECT_EQ(build_count(), 1u);
}

TEST_F(NodeCommitTest, ABuildThatLosesAPartWhileItsManifestIsFlushedIsNotKnown) {
  put_parts(built_);
  disk_.hold_flushes(true);
  Status committed;
  begin(put(built_, manifest_key(built_), built_.manifest_bytes, committed));
  disk_.hold_removals(true);
  Status removed(Code::kInternal, "not ended");
  const auto remove_one = [&]() -> asio::awaitable<void> {
    removed = co_await cache_.remove(everyone_, part_keys(built_).front());
  };
  begin(remove_one());  // the disk still has it
  disk_.hold_flushes(false);
  run();
  disk_.hold_removals(false);
  run();
  EXPECT_TRUE(removed.ok());
  EXPECT_EQ(committed.code(), Code::kResourceExhausted) << committed.to_string();
  expect_nothing(built_);
}

TEST_F(NodeCommitTest, TheSameCommitTwiceIsOneBuild) {
  put_parts(built_);
  disk_.hold_flushes(true);
  Status first(Code::kInternal, "not ended");
  Status second = first;
  begin(put(built_, manifest_key(built_), built_.manifest_bytes, first));
  begin(put(built_, manifest_key(built_), built_.manifest_bytes, second));
  disk_.hold_flushes(false);
  run();
  EXPECT_TRUE(first.ok()) << first.to_string();
  EXPECT_TRUE(second.ok()) << second.to_string();
  EXPECT_EQ(build_count(), 1u);
}

// A part was evicted, and what is left of its build goes one by one.
TEST_F(NodeCommitTest, ABuildIsNotPutAnewIntoWhatIsBeingDropped) {
  const BuiltSegment other = build(2);
  put_parts(built_);
  ASSERT_TRUE(put_manifest(built_).ok());
  const ObjectKey evicted = part_keys(built_).back();
  ASSERT_TRUE(run_task(io_, below_->remove(evicted)).ok());
  cache_.note_disk_evicted(evicted);
  disk_.hold_removals(true);
  Status put_other;
  begin(put(other, part_keys(other)[0], other.part(0), put_other));  // begins to drop it
  EXPECT_EQ(build_count(), 0u);
  Status put_again;
  Status committed_again;
  begin(put(built_, part_keys(built_)[0], built_.part(0), put_again));
  begin(put(built_, manifest_key(built_), built_.manifest_bytes, committed_again));
  disk_.hold_removals(false);
  run();
  EXPECT_EQ(put_again.code(), Code::kResourceExhausted) << put_again.to_string();
  EXPECT_EQ(committed_again.code(), Code::kResourceExhausted) << committed_again.to_string();
  EXPECT_TRUE(put_other.ok());
  expect_nothing(built_);
  EXPECT_EQ(disk_.usage().object_count, 1) << "the other's part";
  EXPECT_EQ(memory_->usage().object_count, 1);
  put_parts(built_);
  EXPECT_TRUE(put_manifest(built_).ok());
  EXPECT_EQ(build_count(), 1u);
  for (const ObjectKey& part : part_keys(built_)) EXPECT_TRUE(disk_.find(part).has_value());
}

}  // namespace
}  // namespace icefield
