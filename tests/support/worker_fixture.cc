#include "tests/support/worker_fixture.h"

#include <gtest/gtest.h>

#include <cmath>

namespace icefield {
namespace {

std::string fingerprint(const WorkerFixture::Options& options) {
  ModelFingerprint model{.model_name = options.model_name, .weight_revision = "0"};
  for (std::int32_t i = 0; i < options.shape.layer_count; ++i) {
    model.layers.push_back({.kv_heads = options.shape.kv_head_count,
                            .d_k = options.shape.d_k,
                            .d_v = options.shape.d_v});
  }
  return model.text();
}

}  // namespace

FakeSequence::FakeSequence(std::uint64_t seed, const KvShape& shape_in, std::int64_t token_count)
    : shape(shape_in) {
  SeededRng rng(seed);
  for (std::int64_t i = 0; i < token_count; ++i) {
    tokens.push_back(static_cast<std::uint32_t>(rng.below(50000)));
  }
  for (std::int32_t i = 0; i < shape.layer_count * shape.kv_head_count; ++i) {
    rows.push_back(random_rows(rng, static_cast<std::int32_t>(token_count), shape.d_k, shape.d_v));
  }
}

std::vector<float> FakeSequence::k(std::int32_t layer, std::int64_t first,
                                   std::int64_t count) const {
  std::vector<float> out;
  for (std::int64_t t = first; t < first + count; ++t) {
    for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
      const auto& all = rows[static_cast<std::size_t>(layer * shape.kv_head_count + head)];
      const Bf16* row = all.data() + t * (shape.d_k + shape.d_v);
      for (std::int32_t j = 0; j < shape.d_k; ++j) out.push_back(bf16_to_float(row[j]));
    }
  }
  return out;
}

std::vector<float> FakeSequence::v(std::int32_t layer, std::int64_t first,
                                   std::int64_t count) const {
  std::vector<float> out;
  for (std::int64_t t = first; t < first + count; ++t) {
    for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
      const auto& all = rows[static_cast<std::size_t>(layer * shape.kv_head_count + head)];
      const Bf16* row = all.data() + t * (shape.d_k + shape.d_v) + shape.d_k;
      for (std::int32_t j = 0; j < shape.d_v; ++j) out.push_back(bf16_to_float(row[j]));
    }
  }
  return out;
}

std::vector<float> FakeSequence::q(std::uint64_t seed, std::int32_t layer, std::int64_t count,
                                   std::int32_t query_heads) const {
  SeededRng rng(seed * 1000 + static_cast<std::uint64_t>(layer));
  return random_queries(rng, rows[static_cast<std::size_t>(layer * shape.kv_head_count)],
                        static_cast<std::int32_t>(count) * query_heads, shape.d_k, shape.d_v);
}

WorkerFixture::WorkerFixture(EmbeddedNode& node, Options options_in,
                             const MakeAttention& make_attention)
    : threads(options_in.threads), options(options_in) {
  Worker::Options worker_options{
      .model = options.shape,
      .slice = Slice::whole(options.shape),
      .softmax_scale = 1.0f / std::sqrt(static_cast<float>(options.shape.d_k)),
      .query_group = options.query_group,
      .fingerprint_text = fingerprint(options),
      .pool_bytes = options.pool_bytes,
      .page_rows = options.page_rows};
  std::unique_ptr<LayerAttention> attention;
  if (make_attention) attention = make_attention(Worker::attention_shape(worker_options));
  worker = Worker::create(std::move(worker_options),
                          {.kernels = *options.kernels,
                           .threads = threads,
                           .store = node.store(),
                           .executor = node.executor(),
                           .clock = clock,
                           .rng = rng},
                          std::move(attention))
               .value();
}

Context WorkerFixture::fill(const FakeSequence& sequence, std::int64_t count) {
  Context context = worker->new_context();
  append(context, sequence, count);
  return context;
}

void WorkerFixture::append(Context& context, const FakeSequence& sequence, std::int64_t count) {
  if (!context.dense() && count > kMaxQueryTokens) {
    append(context, sequence, kMaxQueryTokens);
    append(context, sequence, count - kMaxQueryTokens);
    return;
  }
  const std::int64_t first = context.token_count();
  const auto begin = sequence.tokens.begin() + first;
  Step step =
      worker->begin_step({{.context = &context, .tokens = {begin, begin + count}, .options = {}}})
          .value();
  for (std::int32_t layer = 0; layer < options.shape.layer_count; ++layer) {
    step.append(layer, sequence.k(layer, first, count).data(),
                sequence.v(layer, first, count).data());
  }
  ASSERT_TRUE(step.finish().has_value());
}

std::vector<float> WorkerFixture::step(Context& context, const FakeSequence& sequence,
                                       std::int64_t count, AttendOptions attend,
                                       std::uint64_t query_seed, StepReport* report) {
  const std::int64_t first = context.token_count();
  const auto begin = sequence.tokens.begin() + first;
  const std::int32_t heads = options.shape.kv_head_count * options.query_group;
  Step step = worker
                  ->begin_step({{.context = &context,
                                 .tokens = {begin, begin + count},
                                 .options = std::move(attend)}})
                  .value();
  std::vector<float> all;
  for (std::int32_t layer = 0; layer < options.shape.layer_count; ++layer) {
    step.append(layer, sequence.k(layer, first, count).data(),
                sequence.v(layer, first, count).data());
    std::vector<float> out(static_cast<std::size_t>(count * heads * options.shape.d_v), NAN);
    const Status status =
        step.attend(layer, sequence.q(query_seed, layer, count, heads).data(), out.data());
    EXPECT_TRUE(status.ok()) << status.to_string();
    all.insert(all.end(), out.begin(), out.end());
  }
  const StepReport done = step.finish().value();
  if (report != nullptr) *report = done;
  return all;
}

}  // namespace icefield
