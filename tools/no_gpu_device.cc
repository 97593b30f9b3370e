#include "tools/gpu_device.h"

namespace icefield {

Result<std::unique_ptr<LayerAttention>> gpu_device(const AttentionShape&) {
  return Status(Code::kUnavailable,
                "--device=cuda: this program was built where there was no nvcc; use --device=cpu");
}

}  // namespace icefield
