// tools/attention_device.h — the processor that a --device flag names.
#pragma once

#include <memory>
#include <string>

#include "worker/layer_attention.h"

namespace icefield {

// Null for "cpu", which every worker has. For "cuda": kUnavailable, saying why, where this machine
// has no GPU or this program was built without CUDA. kInvalidArgument for other names.
Result<std::unique_ptr<LayerAttention>> attention_device(const std::string& name,
                                                         const AttentionShape& shape);

}  // namespace icefield
