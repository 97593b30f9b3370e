// common/fingerprint.h — what must be equal for two parties to share K/V bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"

namespace icefield {

// One decoder layer, as far as its K/V and its attention are concerned.
struct LayerFingerprint {
  std::string kind = "full";  // full, sliding, none
  std::int32_t kv_heads = 0;
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  double softmax_scale = 0;
  double softcap = 0;                // 0: none
  std::string sink_logits = "none";  // or a hash of them
  double rope_base = 0;
  std::string rope_scaling = "none";
  std::vector<double> rope_factors;  // the active ones only
};

struct ModelFingerprint {
  std::string model_name;
  std::string weight_revision;  // SHA-256 of the model's file or index file, hexadecimal
  std::string kv_dtype = "bf16";
  std::string compute_dtype = "f32";
  std::int32_t sink_tokens = 0;
  std::string codec = "none";
  std::int32_t layout_version = 0;
  std::vector<LayerFingerprint> layers;

  // Canonical: one "name=value\n" per field, sorted by name; floats as the 16 hexadecimal digits
  // of their IEEE-754 double. Tensor-parallel degree and engine page sizes are not in it.
  std::string text() const;
};

FingerprintHash fingerprint_hash(std::string_view text);

// The first field in which two canonical texts differ, those of the whole model before those of a
// layer, for people: "weight_revision is 12ab…, here 77c0…". Empty when they are equal.
std::string first_difference(std::string_view theirs, std::string_view ours);

}  // namespace icefield
