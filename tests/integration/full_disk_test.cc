// A disk that somebody else fills, or that fails, under load: every call returns by its deadline,
// the node lives, what was acknowledged as durable is there, also after a restart. Where there is
// room again, puts go on by themselves.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <map>
#include <mutex>
#include <thread>

#include "client/cluster_client.h"
#include "tests/support/call_log.h"
#include "tests/support/daemon.h"
#include "tests/support/objects.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

constexpr auto kDeadline = 500ms;
// Far beyond what a loaded machine does to a timer: a call that takes longer was forgotten.
constexpr auto kForgotten = kDeadline + 5s;

// A client with a thread of its own that puts durable values and values in memory, and reads them.
class Load {
 public:
  Load(const std::string& members, std::uint64_t seed)
      : client_(ClusterClient::open({.members = members}).value()),
        rng_(seed),
        name_(std::to_string(seed) + "/"),
        thread_([this] { run(); }) {}
  ~Load() { stop(); }
  void stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }

  // How durable puts ended, and all other calls.
  CallLog& durable() { return durable_; }
  // After stop(). No code but these, no call forgotten, no wrong bytes.
  void expect_well_behaved() {
    for (CallLog* log : {&durable_, &others_}) {
      log->expect_only(
          {Code::kOk, Code::kResourceExhausted, Code::kNotFound, Code::kDeadlineExceeded},
          kForgotten);
    }
    EXPECT_EQ(wrong_bytes_, 0);
  }
  // What was acknowledged as durable, so far.
  std::map<std::string, Bytes> acknowledged() {
    const std::lock_guard lock(mutex_);
    return acknowledged_;
  }

 private:
  void run() {
    for (int i = 0; !stopping_; ++i) {
      const std::string key = name_ + std::to_string(i);
      const Bytes bytes = random_bytes(rng_, 100'000);
      const Status durable = durable_.note([&] { return put(key, bytes, WriteLevel::kDurable); });
      if (durable.ok()) {
        const std::lock_guard lock(mutex_);
        acknowledged_.emplace(key, bytes);
      }
      (void)others_.note([&] { return put(key + "/memory", bytes, WriteLevel::kMemory); });
      (void)others_.note([&] { return get(key, bytes); });
    }
  }
  Status put(const std::string& key, const Bytes& bytes, WriteLevel level) {
    const ValueCall call{.deadline = Deadline::after(clock_, kDeadline)};
    const PutOptions options{.level = level};
    return sync_wait(client_->executor(), client_->values().put(key, bytes, options, call))
        .status();
  }
  Status get(const std::string& key, const Bytes& bytes) {
    Buffer into(std::ssize(bytes));
    const ValueCall call{.deadline = Deadline::after(clock_, kDeadline)};
    auto value = sync_wait(client_->executor(), client_->values().get(key, std::move(into), call));
    if (value.has_value() && !std::ranges::equal(value->bytes(), bytes)) ++wrong_bytes_;
    return value.status();
  }

  std::unique_ptr<ClusterClient> client_;
  SystemClock clock_;
  SeededRng rng_;
  const std::string name_;
  std::atomic<bool> stopping_{false};  // ends the loop; orders nothing else
  std::atomic<int> wrong_bytes_{0};
  std::mutex mutex_;
  std::map<std::string, Bytes> acknowledged_;  // guarded by mutex_
  CallLog durable_;
  CallLog others_;
  std::thread thread_;
};

// How many of these the node has, with the right bytes.
std::size_t found(const std::string& members, const std::map<std::string, Bytes>& values) {
  const auto client = ClusterClient::open({.members = members}).value();
  SystemClock clock;
  std::size_t count = 0;
  for (const auto& [key, bytes] : values) {
    const ValueCall call{.deadline = Deadline::after(clock, 10s)};
    auto value =
        sync_wait(client->executor(), client->values().get(key, Buffer(std::ssize(bytes)), call));
    const bool right = value.has_value() && std::ranges::equal(value->bytes(), bytes);
    EXPECT_TRUE(right) << key << ": " << value.status().to_string();
    count += right ? 1 : 0;
  }
  return count;
}

TEST(FullDisk, ANodeLivesThroughItAndGoesOnAfterwards) {
  const SmallDisk disk(192);
  if (!disk.mounted()) GTEST_SKIP() << "a loop-mounted file system needs root";
  // Memory holds little of it: reads come from the disk.
  const std::vector<std::string> flags = {"--store=" + disk.path() + "/store",
                                          "--dram_bytes=8388608"};
  auto node = std::make_unique<NodeDaemon>("127.0.0.1:0", flags);
  const std::string address = node->address();
  ASSERT_NE(address, "");
  std::map<std::string, Bytes> acknowledged;
  {
    Load one(address, 1);
    Load two(address, 2);
    for (Load* load : {&one, &two}) load->durable().wait_for(Code::kOk, 20);
    for (int round = 0; round < 2; ++round) {  // also what the first left
      disk.fill();
      for (Load* load : {&one, &two}) load->durable().wait_for(Code::kResourceExhausted, 10);
    }
    EXPECT_EQ(found(address, one.acknowledged()), one.acknowledged().size()) << "reads go on";
    disk.empty();
    for (Load* load : {&one, &two}) load->durable().wait_for(Code::kOk, 10);
    for (Load* load : {&one, &two}) {
      load->stop();
      load->expect_well_behaved();
      acknowledged.merge(load->acknowledged());
    }
  }
  EXPECT_GE(acknowledged.size(), 60u);
  EXPECT_EQ(found(address, acknowledged), acknowledged.size());
  node->kill();
  node = std::make_unique<NodeDaemon>(address, flags);
  ASSERT_EQ(node->address(), address) << node->ready_line();
  EXPECT_EQ(found(address, acknowledged), acknowledged.size()) << "after kill -9";
  EXPECT_EQ(node->stop(), 0);
}

// Files that may not grow fail as a device does: with an error that is none of want of space.
TEST(BrokenDisk, ANodeSaysSoAndStopsWhenItIsTold) {
  const TempDir dir;
  const std::vector<std::string> flags = {"--store=" + dir.file("store"), "--dram_bytes=8388608"};
  std::signal(SIGXFSZ, SIG_IGN);  // which the node inherits
  auto node = std::make_unique<NodeDaemon>("127.0.0.1:0", flags);
  std::signal(SIGXFSZ, SIG_DFL);
  const std::string address = node->address();
  ASSERT_NE(address, "");
  std::map<std::string, Bytes> acknowledged;
  {
    Load load(address, 1);
    load.durable().wait_for(Code::kOk, 20);
    const rlimit limit{.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};
    ASSERT_EQ(prlimit(node->pid(), RLIMIT_FSIZE, &limit, nullptr), 0);
    load.durable().wait_for(Code::kInternal, 10);
    load.stop();
    acknowledged = load.acknowledged();
  }
  EXPECT_EQ(found(address, acknowledged), acknowledged.size()) << "reads go on";
  EXPECT_EQ(node->stop(), 0);
  node = std::make_unique<NodeDaemon>(address, flags);
  ASSERT_EQ(node->address(), address) << node->ready_line();
  EXPECT_EQ(found(address, acknowledged), acknowledged.size());
  EXPECT_EQ(node->stop(), 0);
}

}  // namespace
}  // namespace icefield
