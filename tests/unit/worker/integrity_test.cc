// A flipped bit in any stored byte is found: the result is a miss or a reported fault term, never a
// wrong answer. Every part kind, in memory and on disk, at sampled offsets.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/support/run_task.h"
#include "tests/support/temp_dir.h"
#include "tests/support/worker_fixture.h"

namespace icefield {
namespace {

constexpr KvShape kShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64};
constexpr std::int64_t kTokens = 1280;  // segments of 1024 and 256
constexpr PartKind kKinds[] = {PartKind::kManifest, PartKind::kLists, PartKind::kClusters,
                               PartKind::kCodes,    PartKind::kOrder, PartKind::kExtent};

// What a reader of the store gets: a miss, or outputs and what they admit.
struct Reading {
  std::int64_t matched = 0;
  Status attach;
  std::vector<float> outputs;
  StepReport report;
};

class Integrity : public testing::TestWithParam<PartKind> {
 protected:
  static std::unique_ptr<EmbeddedNode> open(const std::string& store) {
    return EmbeddedNode::open({.dram_bytes = 64 << 20, .store = store}).value();
  }

  // Fills a store and returns the bytes of every object in it.
  static std::vector<std::pair<ObjectKey, Bytes>> write(EmbeddedNode& node,
                                                        const FakeSequence& sequence) {
    WorkerFixture writer(node, {.shape = kShape});
    Context context = writer.fill(sequence, kTokens);
    EXPECT_TRUE(writer.worker->seal(context, kTokens).ok());
    std::vector<std::pair<ObjectKey, Bytes>> objects;
    std::vector<ObjectKey> keys;
    const auto collect = [&]() -> Task<> {
      node.memory().for_each([&](const ObjectKey& key, const ObjectInfo&) { keys.push_back(key); });
      for (const ObjectKey& key : keys) {
        ICE_CO_TRY(const ObjectBytes bytes, co_await node.memory().get(key, Verify::kByTier));
        objects.emplace_back(key, bytes.copy());
      }
      co_return Status();
    };
    EXPECT_TRUE(sync_wait(node.executor(), collect()).ok());
    return objects;
  }

  static Reading read(EmbeddedNode& node, const FakeSequence& sequence, AttendOptions options) {
    WorkerFixture reader(node, {.shape = kShape});
    Reading reading;
    const auto prompt = std::span(sequence.tokens).first(kTokens);
    const PrefixMatch match = reader.worker->match(prompt).value();
    reading.matched = match.token_count();
    if (match.chain.empty()) return reading;
    Result<Context> context = reader.worker->attach(prompt, match, AttachRows::kWindow);
    reading.attach = context.status();
    if (!context.has_value()) return reading;
    reading.outputs = reader.step(*context, sequence, 1, options, 5, &reading.report);
    return reading;
  }

  // The one thing that must never happen: other outputs without a word.
  static bool sound(const Reading& reading, const Reading& right) {
    if (reading.matched < right.matched) return true;
    if (!reading.attach.ok()) return reading.attach.code() == Code::kNotFound;
    return reading.report.coverage_min < 1 || reading.outputs == right.outputs;
  }

  const FakeSequence sequence_{7, kShape, kTokens + 8};
  SeededRng rng_{3};
};

TEST_P(Integrity, FlippedBitsInMemoryAreFound) {
  for (const bool with_disk : {true, false}) {
    for (int trial = 0; trial < 6; ++trial) {
      TempDir dir;
      const auto node = open(with_disk ? dir.file("store") : "");
      const auto objects = write(*node, sequence_);
      const Reading right = read(*node, sequence_, {});
      ASSERT_EQ(right.matched, kTokens);
      ASSERT_EQ(right.report.coverage_min, 1.0f);
      // Flip a bit of one object of this kind, anywhere in it: find its slot in the slab.
      std::vector<const Bytes*> of_kind;
      for (const auto& [key, bytes] : objects) {
        if (key.part.kind == GetParam()) of_kind.push_back(&bytes);
      }
      ASSERT_FALSE(of_kind.empty());
      const Bytes& victim = *of_kind[rng_.below(of_kind.size())];
      constexpr auto kSlot = static_cast<std::size_t>(DramTier::Options().slot_bytes);
      const std::size_t offset = rng_.below(victim.size());
      const std::size_t first = offset / kSlot * kSlot;
      const auto piece =
          ConstByteSpan(victim).subspan(first, std::min(kSlot, victim.size() - first));
      const auto flip = [&]() -> Task<> {
        const ByteSpan slab = node->memory().memory();
        for (std::size_t at = 0; at < slab.size(); at += kSlot) {
          if (!std::ranges::equal(slab.subspan(at, piece.size()), piece)) continue;
          slab[at + offset - first] ^= static_cast<std::byte>(1 << rng_.below(8));
          co_return Status();
        }
        co_return Status(Code::kInternal, "object not in the slab");
      };
      ASSERT_TRUE(sync_wait(node->executor(), flip()).ok());
      const Reading reading = read(*node, sequence_, {});
      EXPECT_TRUE(sound(reading, right)) << "trial " << trial << " offset " << offset;
      if (with_disk) {
        // The disk still has the right bytes: damage in memory costs nothing.
        EXPECT_EQ(reading.matched, kTokens);
        EXPECT_TRUE(reading.attach.ok()) << reading.attach.to_string();
        EXPECT_EQ(reading.outputs, right.outputs);
        EXPECT_EQ(reading.report.coverage_min, 1.0f);
      }
    }
  }
}

TEST_P(Integrity, FlippedBitsOnDiskAreFound) {
  TempDir dir;
  const std::string good = dir.file("good");
  std::vector<std::pair<ObjectKey, Bytes>> objects;
  Reading right;
  {
    const auto node = open(good);
    objects = write(*node, sequence_);
    right = read(*node, sequence_, {});
  }
  std::erase_if(objects, [](const auto& object) { return object.first.part.kind != GetParam(); });
  for (int trial = 0; trial < 6; ++trial) {
    const std::string store = dir.file("store" + std::to_string(trial));
    std::filesystem::copy(good, store, std::filesystem::copy_options::recursive);
    const Bytes& victim = objects[rng_.below(objects.size())].second;
    const std::size_t offset = rng_.below(victim.size());
    int flipped = 0;
    for (const auto& entry : std::filesystem::directory_iterator(store)) {
      std::ifstream in(entry.path(), std::ios::binary);
      std::string bytes((std::istreambuf_iterator<char>(in)), {});
      const std::size_t at = bytes.find(as_text(victim));
      if (at == std::string::npos) continue;
      bytes[at + offset] = static_cast<char>(bytes[at + offset] ^ (1 << rng_.below(8)));
      std::ofstream(entry.path(), std::ios::binary | std::ios::trunc) << bytes;
      ++flipped;
    }
    ASSERT_GE(flipped, 1) << "the object is on disk";
    const auto node = open(store);
    const Reading reading = read(*node, sequence_, {});
    EXPECT_TRUE(sound(reading, right)) << "trial " << trial << " offset " << offset;
    const bool noticed =
        reading.matched < right.matched || !reading.attach.ok() || reading.report.coverage_min < 1;
    // The order part of a segment that the window does not touch is not read at all.
    if (GetParam() != PartKind::kOrder) {
      EXPECT_TRUE(noticed) << "nothing else holds these bytes";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Integrity, testing::ValuesIn(kKinds),
                         [](const auto& param) { return std::string(to_string(param.param)); });

// Random bits anywhere in the store's files: also the database's own.
TEST(IntegrityAnywhere, AnyFlippedBitOnDiskIsFoundOrHarmless) {
  const FakeSequence sequence(7, kShape, kTokens + 8);
  TempDir dir;
  const std::string good = dir.file("good");
  std::vector<float> right;
  const auto outputs = [&](const std::string& store) -> std::optional<std::vector<float>> {
    Result<std::unique_ptr<EmbeddedNode>> node =
        EmbeddedNode::open({.dram_bytes = 64 << 20, .store = store});
    if (!node.has_value()) return std::nullopt;
    WorkerFixture reader(**node, {.shape = kShape});
    const auto prompt = std::span(sequence.tokens).first(kTokens);
    const Result<PrefixMatch> match = reader.worker->match(prompt);
    if (!match.has_value() || match->token_count() < kTokens) return std::nullopt;
    Result<Context> context = reader.worker->attach(prompt, *match, AttachRows::kWindow);
    if (!context.has_value()) return std::nullopt;
    StepReport report;
    std::vector<float> out = reader.step(*context, sequence, 1, {.budget = 64}, 5, &report);
    if (report.coverage_min < 1) return std::nullopt;
    return out;
  };
  {
    const auto node = EmbeddedNode::open({.dram_bytes = 64 << 20, .store = good}).value();
    WorkerFixture writer(*node, {.shape = kShape});
    Context context = writer.fill(sequence, kTokens);
    ASSERT_TRUE(writer.worker->seal(context, kTokens).ok());
  }
  right = outputs(good).value();
  SeededRng rng(11);
  for (int trial = 0; trial < 25; ++trial) {
    const std::string store = dir.file("store");
    std::filesystem::remove_all(store);
    std::filesystem::copy(good, store, std::filesystem::copy_options::recursive);
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(store)) {
      if (entry.file_size() > 0) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    const auto& path = files[rng.below(files.size())];
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(rng.below(std::filesystem::file_size(path)));
    file.seekg(at);
    const int byte = file.get();
    file.seekp(at);
    file.put(static_cast<char>(byte ^ (1 << rng.below(8))));
    file.close();
    const std::optional<std::vector<float>> found = outputs(store);
    if (found.has_value()) {
      EXPECT_EQ(*found, right) << path << " at " << at;
    }
  }
}

}  // namespace
}  // namespace icefield
