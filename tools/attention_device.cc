#include "tools/attention_device.h"

#include "tools/gpu_device.h"

namespace icefield {

Result<std::unique_ptr<LayerAttention>> attention_device(const std::string& name,
                                                         const AttentionShape& shape) {
  if (name == "cpu") return std::unique_ptr<LayerAttention>();
  if (name == "cuda") return gpu_device(shape);
  return Status(Code::kInvalidArgument, "--device=" + name + ": expected cpu or cuda");
}

}  // namespace icefield
