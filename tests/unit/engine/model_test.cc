// Model files: a tiny valid one, and every way in which a file can be missing, truncated, foreign
// or wrong. Each gets one clear sentence.
#include "engine/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace icefield {
namespace {

class ModelTest : public testing::Test {
 protected:
  Result<std::unique_ptr<Model>> load(const GgufWriter& gguf) {
    gguf.write(path_);
    return Model::load(path_);
  }
  // The error of a model that was changed.
  Status error(const std::function<void(GgufWriter&)>& change) {
    GgufWriter gguf = tiny_model(1);
    change(gguf);
    const Result<std::unique_ptr<Model>> model = load(gguf);
    return model.has_value() ? Status() : model.error();
  }
  static void expect(const Status& status, Code code, const std::string& words) {
    EXPECT_EQ(status.code(), code) << status.to_string();
    EXPECT_NE(status.message().find(words), std::string::npos)
        << "\"" << words << "\" not in: " << status.to_string();
  }

  TempDir dir_;
  const std::string path_ = dir_.file("model.gguf");
};

TEST_F(ModelTest, TinyModelLoads) {
  const auto model = load(tiny_model(1)).value();
  EXPECT_EQ(model->config().query_heads, 4);
  EXPECT_EQ(model->config().query_group(), 2);
  EXPECT_EQ(model->config().kv,
            (KvShape{.layer_count = 2, .kv_head_count = 2, .d_k = 64, .d_v = 64}));
  EXPECT_EQ(model->config().vocabulary, 257);
  EXPECT_EQ(model->head().data, model->embedding().data) << "tied";
  EXPECT_EQ(model->fingerprint().weight_revision.size(), 64u);
  EXPECT_EQ(model->end_tokens(), (std::vector<TokenId>{256, 256}));
}

TEST_F(ModelTest, UntiedHeadIsUsed) {
  GgufWriter gguf = tiny_model(1);
  gguf.tensors["output.weight"] = gguf.tensors["token_embd.weight"];
  const auto model = load(gguf).value();
  EXPECT_NE(model->head().data, model->embedding().data);
}

TEST_F(ModelTest, OtherWeightsHaveAnotherFingerprint) {
  const std::string first = load(tiny_model(1)).value()->fingerprint().text();
  const std::string second = load(tiny_model(2)).value()->fingerprint().text();
  EXPECT_NE(first_difference(first, second).find("weight_revision"), std::string::npos);
}

TEST_F(ModelTest, MissingFileIsExplained) {
  expect(Model::load(dir_.file("none")).error(), Code::kInvalidArgument, "./dev model");
  expect(Model::load(dir_.path()).error(), Code::kInvalidArgument, "not a file");
}

TEST_F(ModelTest, ForeignFilesAreExplained) {
  std::ofstream(path_) << "";
  expect(Model::load(path_).error(), Code::kInvalidArgument, "empty file");
  std::ofstream(path_) << "PK\x03\x04 not a model at all";
  expect(Model::load(path_).error(), Code::kInvalidArgument, "not a GGUF file");
  expect(error([](GgufWriter& g) { g.version = 9; }), Code::kInvalidArgument, "GGUF version 9");
}

TEST_F(ModelTest, EveryTruncationIsRefused) {
  const Bytes all = tiny_model(1).bytes();
  SeededRng rng(3);
  for (int i = 0; i < 60; ++i) {
    const std::size_t size = i < 30 ? rng.below(20000) : rng.below(all.size());
    std::ofstream out(path_, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(size));
    out.close();
    const Result<std::unique_ptr<Model>> model = Model::load(path_);
    ASSERT_FALSE(model.has_value()) << size << " of " << all.size();
    EXPECT_EQ(model.error().code(), Code::kInvalidArgument) << model.error().to_string();
  }
}

TEST_F(ModelTest, DamagedHeadersNeverCrash) {
  const Bytes all = tiny_model(1).bytes();
  SeededRng rng(4);
  for (int i = 0; i < 300; ++i) {
    Bytes damaged = all;
    for (int k = 0; k < 4; ++k) damaged[rng.below(12000)] = static_cast<std::byte>(rng.next());
    std::ofstream out(path_, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(damaged.data()),
              static_cast<std::streamsize>(damaged.size()));
    out.close();
    (void)Model::load(path_);  // an error or a model; the sanitizers watch
  }
}

TEST_F(ModelTest, WhatTheEngineCannotComputeIsRefusedByName) {
  expect(error([](GgufWriter& g) { g.metadata["general.architecture"] = std::string("mamba"); }),
         Code::kUnimplemented, "architecture \"mamba\"");
  expect(error([](GgufWriter& g) { g.metadata["llama.rope.scaling.type"] = std::string("yarn"); }),
         Code::kUnimplemented, "RoPE scaling \"yarn\"");
  expect(error([](GgufWriter& g) {
           g.tensors["blk.0.attn_q.bias"] = g.tensors["output_norm.weight"];
         }),
         Code::kUnimplemented, "attn_q.bias");
  for (const std::string name :
       {"rope_freqs.weight", "blk.1.attn_v.bias", "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_inp.weight", "blk.weight", "blk..weight"}) {
    expect(error([&](GgufWriter& g) { g.tensors[name] = g.tensors["output_norm.weight"]; }),
           Code::kUnimplemented, "tensor \"" + name + "\" is not supported");
  }
  expect(error([](GgufWriter& g) { g.tensors["blk.1.ffn_down.weight"].type = 12; }),
         Code::kUnimplemented, "\"blk.1.ffn_down.weight\" has type Q4_K");
  expect(error([](GgufWriter& g) { g.tensors["blk.1.ffn_down.weight"].type = 99; }),
         Code::kUnimplemented, "type 99");
  expect(error([](GgufWriter& g) { g.metadata["tokenizer.ggml.model"] = std::string("llama"); }),
         Code::kUnimplemented, "byte-level BPE");
  expect(error([](GgufWriter& g) { g.metadata["tokenizer.ggml.pre"] = std::string("tekken"); }),
         Code::kUnimplemented, "pre-tokenizer \"tekken\"");
  expect(error([](GgufWriter& g) {
           g.metadata["llama.attention.head_count"] = std::uint32_t{32};
           g.metadata["llama.attention.head_count_kv"] = std::uint32_t{16};
           g.metadata["llama.rope.dimension_count"] = std::uint32_t{8};
         }),
         Code::kUnimplemented, "head dimensions K 8");
  expect(error([](GgufWriter& g) { g.metadata["llama.rope.dimension_count"] = std::uint32_t{32}; }),
         Code::kUnimplemented, "part of the head dimension");
}

TEST_F(ModelTest, WrongShapesAndMissingPartsAreNamed) {
  expect(error([](GgufWriter& g) { g.tensors.erase("blk.1.attn_k.weight"); }),
         Code::kInvalidArgument, "tensor \"blk.1.attn_k.weight\" is missing");
  expect(error([](GgufWriter& g) {
           g.tensors["blk.0.attn_q.weight"].dims = {256, 128};
         }),
         Code::kInvalidArgument, "is 128 x 256, expected 256 x 256");
  expect(error([](GgufWriter& g) { g.metadata.erase("llama.block_count"); }),
         Code::kInvalidArgument, "\"llama.block_count\" is missing");
  expect(error([](GgufWriter& g) { g.metadata["llama.block_count"] = std::string("two"); }),
         Code::kInvalidArgument, "is not an integer");
  expect(error([](GgufWriter& g) { g.metadata["llama.block_count"] = std::uint32_t{0}; }),
         Code::kInvalidArgument, "a size of 0");
  for (const float base : {0.0f, -1.0f, NAN, INFINITY}) {
    expect(error([&](GgufWriter& g) { g.metadata["llama.rope.freq_base"] = base; }),
           Code::kInvalidArgument, "a RoPE base of");
    expect(error([&](GgufWriter& g) {
             g.metadata["llama.attention.layer_norm_rms_epsilon"] = base == 0 ? 2.0f : base;
           }),
           Code::kInvalidArgument, "a norm epsilon of");
  }
  expect(
      error([](GgufWriter& g) { g.metadata["llama.attention.head_count_kv"] = std::uint32_t{3}; }),
      Code::kInvalidArgument, "do not divide");
  expect(error([](GgufWriter& g) {
           g.metadata["tokenizer.ggml.token_type"] = std::vector<std::int32_t>(5, 1);
         }),
         Code::kInvalidArgument, "token types");
  expect(error([](GgufWriter& g) {
           g.metadata["tokenizer.ggml.merges"] = std::vector<std::string>{"a zz"};
         }),
         Code::kInvalidArgument, "merge 0");
}

}  // namespace
}  // namespace icefield
