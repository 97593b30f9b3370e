// tools/gpu_device.h — a GPU for a worker, where this build has one to give.
#pragma once

#include <memory>

#include "worker/layer_attention.h"

namespace icefield {

// In gpu_device.cc where nvcc built the kernels, in no_gpu_device.cc elsewhere.
Result<std::unique_ptr<LayerAttention>> gpu_device(const AttentionShape& shape);

}  // namespace icefield
