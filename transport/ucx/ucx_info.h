// transport/ucx/ucx_info.h — what UCX offers on this machine, for people who ask.
#pragma once

#include <string>
#include <vector>

namespace icefield {

struct UcxDevice {
  std::string transport;  // "posix", "tcp", "rc_mlx5"
  std::string device;     // "memory", "eth0", "mlx5_0:1"
};

// "1.13.1".
std::string ucx_version();

// Everything that UCX could open, whatever this project then uses of it. Empty when UCX cannot
// tell.
std::vector<UcxDevice> ucx_devices();

}  // namespace icefield
