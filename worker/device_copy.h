// worker/device_copy.h — what a processor with memory of its own keeps for something of the host.
#pragma once

namespace icefield {

// Hangs on what it is a copy of and is freed with it. Only the processor that made it knows what it
// is; a worker has one.
class DeviceCopy {
 public:
  virtual ~DeviceCopy() = default;
};

}  // namespace icefield
