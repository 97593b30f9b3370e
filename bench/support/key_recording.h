// bench/support/key_recording.h — keys of a real model, in the file that `icefield eval --record`
// writes.
//
// Little-endian: a header of 64 bytes, then for every (layer, KV head), heads of a layer together,
// rows bf16 [tokens, d_k + d_v] (K then V) and queries f32 [steps, group, d_k]. Then, or nothing:
// u32 [steps] what each step computed, and for every (layer, KV head) what a step attends to beyond
// these rows (its own question or answer so far): f32 [steps, group] the LSE of their logits, f32
// [steps, group, d_v] their values under softmax.
#pragma once

#include <string>

#include "bench/support/key_set.h"
#include "common/status.h"

namespace icefield {

struct KeyRecordingHeader {
  char magic[8] = {'I', 'C', 'E', 'K', 'E', 'Y', 'S', '1'};
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t group = 0;
  std::uint32_t d_k = 0;
  std::uint32_t d_v = 0;
  std::uint32_t tokens = 0;
  std::uint32_t steps = 0;
  float beta = 0;
  std::uint32_t sink_tokens = 0;   // tokens [sink_tokens, window_first) are indexed
  std::uint32_t window_first = 0;  // a multiple of 256
  std::uint32_t zero[4] = {};
};
static_assert(sizeof(KeyRecordingHeader) == 64);

class KeyRecording {
 public:
  // kInvalidArgument: not such a file, of another length than its header says, or of a shape that
  // the kernels do not take.
  static Result<KeyRecording> open(const std::string& path);

  const KeyRecordingHeader& header() const { return header_; }
  std::int32_t heads() const {
    return static_cast<std::int32_t>(header_.layers * header_.kv_heads);
  }
  // Head `index` of all layers, layer by layer.
  Result<KeySet> read(std::int32_t index) const;

 private:
  KeyRecording(std::string path, const KeyRecordingHeader& header)
      : path_(std::move(path)), header_(header) {}
  std::int64_t row_values() const;
  std::int64_t query_values() const;
  std::int64_t head_bytes() const;
  std::int64_t own_values() const;  // of LSE and values together
  std::int64_t own_begin() const;   // in the file

  std::string path_;
  KeyRecordingHeader header_;
  bool has_own_ = false;
};

}  // namespace icefield
