// tests/support/gguf_writer.h — writes GGUF files: a tiny valid model, and every way to break it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "common/bytes.h"
#include "common/rng.h"

namespace icefield {

struct GgufTensorSpec {
  std::uint32_t type = 0;           // F32
  std::vector<std::uint64_t> dims;  // the fastest first
  Bytes data;
};

// Fields are public: tests change what they want before bytes().
struct GgufWriter {
  using Value = std::variant<std::uint32_t, float, std::string, std::vector<std::string>,
                             std::vector<std::int32_t>>;
  std::map<std::string, Value> metadata;
  std::map<std::string, GgufTensorSpec> tensors;
  std::uint32_t magic = 0x46554747;
  std::uint32_t version = 3;

  Bytes bytes() const;
  void write(const std::string& path) const;
};

// A Llama model of 2 layers, 4 query and 2 KV heads of 64, width 256, with random weights and a
// vocabulary of the 256 bytes plus "<|endoftext|>".
GgufWriter tiny_model(std::uint64_t seed);

// Random data of a tensor type for `count` weights (a multiple of 32).
Bytes random_weights(Rng& rng, std::uint32_t type, std::int64_t count);

}  // namespace icefield
