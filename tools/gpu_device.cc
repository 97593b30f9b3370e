#include "tools/gpu_device.h"

#include "worker/gpu_attention.h"

namespace icefield {

Result<std::unique_ptr<LayerAttention>> gpu_device(const AttentionShape& shape) {
  Result<std::unique_ptr<GpuAttention>> attention = GpuAttention::create(shape);
  if (!attention.has_value()) return attention.error().with_context("--device=cuda");
  return std::unique_ptr<LayerAttention>(std::move(attention).value());
}

}  // namespace icefield
