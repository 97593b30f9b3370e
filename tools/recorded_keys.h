// tools/recorded_keys.h — a document's K/V and the queries that were asked of it, in one file
// (docs/formats/recorded_keys.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/float_bits.h"
#include "common/status.h"

namespace icefield {

// What a recorded step computed.
enum class RecordedStep : std::uint32_t {
  kQuestion = 0,      // the last token of a question's first prompt
  kAnswer = 1,        // the last token of a later prompt, or a token of an answer
  kContinuation = 2,  // a token of the prose that follows the document
};

struct RecordedShape {
  std::int32_t layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t group = 0;  // query heads per KV head
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::int32_t tokens = 0;
  std::int32_t steps = 0;
  float beta = 0;  // the model's softmax scale
  std::int32_t sink_tokens = 0;
  std::int32_t window_first = 0;  // indexed tokens are [sink_tokens, window_first)

  friend bool operator==(const RecordedShape&, const RecordedShape&) = default;
};

// One (layer, KV head) of a recording.
struct RecordedHead {
  std::vector<Bf16, AlignedAllocator<Bf16>> rows;  // [tokens, d_k + d_v]: K then V
  std::vector<float, AlignedAllocator<float>> q;   // [steps, group, d_k], after RoPE
  // What a step attends to after the document: its own question, answer or continuation so far.
  std::vector<float> own_lse;  // [steps, group] LSE of their logits
  std::vector<float> own_out;  // [steps, group, d_v] their values under softmax
};

struct RecordedKeys {
  RecordedShape shape;
  std::vector<RecordedStep> kinds;  // [steps]
  std::vector<RecordedHead> heads;  // [layers, kv_heads]
};

// kUnavailable when the file cannot be written.
Status write_recorded_keys(const RecordedKeys& keys, const std::string& path);

// kInvalidArgument when the file cannot be read or is not a whole recording.
Result<RecordedKeys> read_recorded_keys(const std::string& path);

}  // namespace icefield
