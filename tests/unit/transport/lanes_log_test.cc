// What people are told of the lanes that they got.
#include "transport/ucx/lanes_log.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/support/temp_dir.h"
#include "tests/support/ucx_end.h"

namespace icefield {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

TEST(LanesLog, DevicesSayWhatTheyCan) {
  const TempDir sys;
  const auto write = [&sys](const std::string& directory, const char* file, const char* text) {
    std::filesystem::create_directories(sys.file(directory));
    std::ofstream(sys.file(directory + "/" + file)) << text;
  };
  write("class/net/eth0", "speed", "10000\n");
  write("class/net/veth", "speed", "-1\n");
  write("class/infiniband/mlx5_0/ports/1", "rate", "100 Gb/sec (4X EDR)\n");
  const auto speed = [&sys](const char* device) {
    return ucx::device_bytes_per_second(device, sys.path());
  };
  EXPECT_EQ(speed("eth0"), 1'250'000'000);
  EXPECT_EQ(speed("mlx5_0:1"), 12'500'000'000);
  for (const char* silent : {"veth", "lo", "mlx5_1:1", "", "eth0,eth1"}) {
    EXPECT_EQ(speed(silent), 0) << silent;
  }
}

TEST(LanesLog, FarBelowIsATenth) {
  EXPECT_EQ(ucx::far_below(130'000'000, 1'250'000'000, "eth0"), "");
  EXPECT_THAT(ucx::far_below(110'000'000, 1'250'000'000, "eth0"),
              HasSubstr("110 MB/s, eth0 can do 1250 MB/s"));
  EXPECT_EQ(ucx::far_below(1, 0, "lo"), "") << "nothing known";
  EXPECT_EQ(ucx::far_below(0, 1'250'000'000, "eth0"), "") << "not measured";
}

TEST(LanesLog, HealthTellsLanesBandwidthAndConcerns) {
  GateService gate;
  for (const UcxLanes lanes : {UcxLanes::kAuto, UcxLanes::kTcp}) {
    UcxOptions options;
    options.lanes = lanes;
    End server(options);
    const Address node = server.listen(gate).value();
    End client{UcxOptions()};  // of its own machine it expects shared memory
    EXPECT_EQ(client.ask(node, "x").value(), "yes");
    const Deadline limit = Deadline::after(SystemClock(), 10s);
    PeerHealth health;
    do {
      health = health_of(client, node);
    } while (health.bytes_per_second == 0 && !limit.passed(SystemClock()));
    EXPECT_GT(health.bytes_per_second, 0);
    EXPECT_TRUE(health.local);
    const bool tcp = lanes == UcxLanes::kTcp;
    EXPECT_EQ(health.lanes, tcp ? "tcp" : "posix");
    EXPECT_EQ(health.concern.find("reached over tcp, not shared memory") != std::string::npos, tcp)
        << health.concern;
  }
}

}  // namespace
}  // namespace icefield
