#include "proto/layout.h"

namespace icefield {

Status validate(const KvShape& shape) {
  constexpr std::int32_t kMaxLayers = 1024;
  constexpr std::int32_t kMaxKvHeads = 1024;
  if (shape.layer_count < 1 || shape.layer_count > kMaxLayers) {
    return Status(Code::kInvalidArgument, "layer count " + std::to_string(shape.layer_count) +
                                              ", expected 1 to " + std::to_string(kMaxLayers));
  }
  if (shape.kv_head_count < 1 || shape.kv_head_count > kMaxKvHeads) {
    return Status(Code::kInvalidArgument, "KV head count " + std::to_string(shape.kv_head_count) +
                                              ", expected 1 to " + std::to_string(kMaxKvHeads));
  }
  const auto supported = [](std::int32_t d) {
    return d >= kCodeGroup && d <= kMaxHeadDim && d % kCodeGroup == 0;
  };
  if (!supported(shape.d_k) || !supported(shape.d_v)) {
    return Status(Code::kUnimplemented, "head dimensions K " + std::to_string(shape.d_k) + ", V " +
                                            std::to_string(shape.d_v) +
                                            ": only multiples of 16 up to 256 are supported");
  }
  return Status();
}

}  // namespace icefield
