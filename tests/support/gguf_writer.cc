#include "tests/support/gguf_writer.h"

#include <fstream>

#include "bench/support/head_fixture.h"
#include "common/check.h"
#include "common/float_bits.h"

namespace icefield {
namespace {

void put_text(ByteWriter& writer, const std::string& text) {
  writer.put(static_cast<std::uint64_t>(text.size()));
  writer.put_bytes(as_bytes(text));
}

void put_value(ByteWriter& writer, const GgufWriter::Value& value) {
  constexpr std::uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kString = 8, kArray = 9;
  if (const auto* number = std::get_if<std::uint32_t>(&value)) {
    writer.put(kUint32);
    writer.put(*number);
  } else if (const auto* real = std::get_if<float>(&value)) {
    writer.put(kFloat32);
    writer.put(*real);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    writer.put(kString);
    put_text(writer, *text);
  } else if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    writer.put(kArray);
    writer.put(kString);
    writer.put(static_cast<std::uint64_t>(texts->size()));
    for (const std::string& item : *texts) put_text(writer, item);
  } else {
    const auto& numbers = std::get<std::vector<std::int32_t>>(value);
    writer.put(kArray);
    writer.put(kInt32);
    writer.put(static_cast<std::uint64_t>(numbers.size()));
    for (const std::int32_t item : numbers) writer.put(item);
  }
}

// The printable stand-in of a byte, as GPT-2 vocabularies have it.
std::string stand_in(std::uint32_t byte) {
  std::uint32_t next = 256;
  std::uint32_t point = 0;
  for (std::uint32_t b = 0; b <= byte; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    point = printable ? b : next++;
  }
  std::string text;
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else {
    text += static_cast<char>(0xc0 | (point >> 6));
    text += static_cast<char>(0x80 | (point & 0x3f));
  }
  return text;
}

}  // namespace

Bytes GgufWriter::bytes() const {
  constexpr std::int64_t kAlign = 32;
  Bytes out;
  ByteWriter writer(out);
  writer.put(magic);
  writer.put(version);
  writer.put(static_cast<std::uint64_t>(tensors.size()));
  writer.put(static_cast<std::uint64_t>(metadata.size()));
  for (const auto& [key, value] : metadata) {
    put_text(writer, key);
    put_value(writer, value);
  }
  std::int64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    put_text(writer, name);
    writer.put(static_cast<std::uint32_t>(tensor.dims.size()));
    for (const std::uint64_t dim : tensor.dims) writer.put(dim);
    writer.put(tensor.type);
    writer.put(static_cast<std::uint64_t>(offset));
    offset = round_up(offset + static_cast<std::int64_t>(tensor.data.size()), kAlign);
  }
  out.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(out.size()), kAlign)));
  for (const auto& [name, tensor] : tensors) {
    writer.put_bytes(tensor.data);
    out.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(out.size()), kAlign)));
  }
  return out;
}

void GgufWriter::write(const std::string& path) const {
  const Bytes all = bytes();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size()));
  ICE_CHECK(out.good());
}

Bytes random_weights(Rng& rng, std::uint32_t type, std::int64_t count) {
  Bytes data;
  ByteWriter writer(data);
  const auto small = [&rng] { return 0.05f * normal(rng); };
  constexpr std::int64_t kBlock = 32;
  switch (type) {
    case 0:
      for (std::int64_t i = 0; i < count; ++i) writer.put(small());
      break;
    case 1:
      for (std::int64_t i = 0; i < count; ++i) writer.put(float_to_fp16(small()));
      break;
    case 30:
      for (std::int64_t i = 0; i < count; ++i) writer.put(float_to_bf16(small()));
      break;
    default: {
      const bool eight = type == 8;
      for (std::int64_t b = 0; b < count / kBlock; ++b) {
        writer.put(float_to_fp16(0.01f + 0.001f * normal(rng)));
        if (type == 3) writer.put(float_to_fp16(-0.08f + 0.001f * normal(rng)));
        for (std::int64_t i = 0; i < (eight ? kBlock : kBlock / 2); ++i) {
          writer.put(static_cast<std::uint8_t>(rng.next()));
        }
      }
    }
  }
  return data;
}

GgufWriter tiny_model(std::uint64_t seed) {
  constexpr std::uint32_t kHidden = 256, kFfn = 128, kHeads = 4, kKvHeads = 2, kHeadDim = 64;
  SeededRng rng(seed);
  GgufWriter gguf;
  gguf.metadata = {{"general.architecture", std::string("llama")},
                   {"general.name", std::string("tiny")},
                   {"llama.block_count", std::uint32_t{2}},
                   {"llama.context_length", std::uint32_t{4096}},
                   {"llama.embedding_length", kHidden},
                   {"llama.feed_forward_length", kFfn},
                   {"llama.attention.head_count", kHeads},
                   {"llama.attention.head_count_kv", kKvHeads},
                   {"llama.attention.layer_norm_rms_epsilon", 1e-5f},
                   {"llama.rope.freq_base", 10000.0f},
                   {"llama.rope.dimension_count", kHeadDim},
                   {"tokenizer.ggml.model", std::string("gpt2")},
                   {"tokenizer.ggml.pre", std::string("gpt-2")},
                   {"tokenizer.ggml.eos_token_id", std::uint32_t{256}}};
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types(257, 1);
  for (std::uint32_t b = 0; b < 256; ++b) tokens.push_back(stand_in(b));
  tokens.push_back("<|endoftext|>");
  types[256] = 3;
  gguf.metadata["tokenizer.ggml.tokens"] = tokens;
  gguf.metadata["tokenizer.ggml.token_type"] = types;
  gguf.metadata["tokenizer.ggml.merges"] = std::vector<std::string>();
  const auto add = [&](const std::string& name, std::uint32_t type, std::uint64_t rows,
                       std::uint64_t cols) {
    gguf.tensors[name] = {
        .type = type,
        .dims =
            rows == 1 ? std::vector<std::uint64_t>{cols} : std::vector<std::uint64_t>{cols, rows},
        .data = random_weights(rng, type, static_cast<std::int64_t>(rows * cols))};
  };
  const auto add_norm = [&](const std::string& name) {
    add(name, 0, 1, kHidden);
    for (std::size_t i = 0; i < kHidden; ++i) {
      store(gguf.tensors[name].data.data() + i * 4, 1.0f + 0.1f * normal(rng));
    }
  };
  add("token_embd.weight", 8, 257, kHidden);
  add_norm("output_norm.weight");
  for (const std::string prefix : {"blk.0.", "blk.1."}) {
    add_norm(prefix + "attn_norm.weight");
    add_norm(prefix + "ffn_norm.weight");
    add(prefix + "attn_q.weight", 3, kHeads * kHeadDim, kHidden);
    add(prefix + "attn_k.weight", 2, kKvHeads * kHeadDim, kHidden);
    add(prefix + "attn_v.weight", 8, kKvHeads * kHeadDim, kHidden);
    add(prefix + "attn_output.weight", 1, kHidden, kHeads * kHeadDim);
    add(prefix + "ffn_gate.weight", 30, kFfn, kHidden);
    add(prefix + "ffn_up.weight", 0, kFfn, kHidden);
    add(prefix + "ffn_down.weight", 3, kHidden, kFfn);
  }
  return gguf;
}

}  // namespace icefield
