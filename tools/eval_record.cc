#include "tools/eval_record.h"

#include <algorithm>
#include <cmath>

namespace icefield {
namespace {

constexpr std::size_t kRecordedContinuation = 40;

class Recorder final : public AttentionObserver {
 public:
  Recorder(Session& session, const EvalDocument& document)
      : session_(session), config_(session.model().config()) {
    const auto tokens = static_cast<std::int32_t>(document.tokens.size());
    keys_.shape = {.layers = config_.kv.layer_count,
                   .kv_heads = config_.kv.kv_head_count,
                   .group = config_.query_group(),
                   .d_k = config_.kv.d_k,
                   .d_v = config_.kv.d_v,
                   .tokens = tokens,
                   .beta = session.model().softmax_scale(),
                   .sink_tokens = kSinkTokens,
                   .window_first = std::max(kSinkTokens, (tokens / kExtentRows - 1) * kExtentRows)};
    keys_.heads.resize(static_cast<std::size_t>(keys_.shape.layers * keys_.shape.kv_heads));
  }

  void take_document(const Context& dense) {
    for (std::int32_t layer = 0; layer < keys_.shape.layers; ++layer) {
      for (std::int32_t head = 0; head < keys_.shape.kv_heads; ++head) {
        for (const RowRun& run : runs_of(dense, layer, head)) {
          auto& rows = head_at(layer, head).rows;
          const std::int64_t numbers = __builtin_popcountll(run.mask) * width();
          rows.insert(rows.end(), run.rows, run.rows + numbers);
        }
      }
    }
  }

  // One token of `context` with full attention, recorded.
  Status step(Context& context, TokenId token, RecordedStep kind) {
    context_ = &context;
    keys_.kinds.push_back(kind);
    ++keys_.shape.steps;
    return session_.decoder().forward(context, std::span(&token, 1), {.observer = this}).status();
  }

  Status on_attention(std::int32_t layer, const float* q, const float*, const float*) override {
    for (std::int32_t head = 0; head < keys_.shape.kv_heads; ++head) {
      RecordedHead& recorded = head_at(layer, head);
      const std::vector<RowRun> runs = runs_of(*context_, layer, head);
      for (std::int32_t row = 0; row < keys_.shape.group; ++row) {
        const float* query =
            q + static_cast<std::int64_t>(head * keys_.shape.group + row) * keys_.shape.d_k;
        recorded.q.insert(recorded.q.end(), query, query + keys_.shape.d_k);
        add_own(query, runs, recorded);
      }
    }
    return Status();
  }

  RecordedKeys take() { return std::move(keys_); }

 private:
  std::int64_t width() const { return keys_.shape.d_k + keys_.shape.d_v; }
  RecordedHead& head_at(std::int32_t layer, std::int32_t head) {
    return keys_.heads[static_cast<std::size_t>(layer * keys_.shape.kv_heads + head)];
  }
  static std::vector<RowRun> runs_of(const Context& dense, std::int32_t layer, std::int32_t head) {
    std::vector<RowRun> runs;
    dense.append_exact_runs(layer, head, runs);
    return runs;
  }

  // Attention of `query` over what follows the document.
  void add_own(const float* query, const std::vector<RowRun>& runs, RecordedHead& recorded) const {
    std::vector<double> out(static_cast<std::size_t>(keys_.shape.d_v), 0.0);
    double total = 0;
    double largest = -HUGE_VAL;
    std::int64_t position = 0;
    for (const RowRun& run : runs) {
      for (int i = 0; i < __builtin_popcountll(run.mask); ++i, ++position) {
        if (position < keys_.shape.tokens) continue;
        const Bf16* row = run.rows + i * width();
        double logit = 0;
        for (std::int32_t j = 0; j < keys_.shape.d_k; ++j) {
          logit += static_cast<double>(query[j] * bf16_to_float(row[j]));
        }
        logit *= static_cast<double>(keys_.shape.beta);
        const double shrink = logit > largest ? std::exp(largest - logit) : 1;
        largest = std::max(largest, logit);
        const double weight = std::exp(logit - largest);
        total = total * shrink + weight;
        for (std::size_t j = 0; j < out.size(); ++j) {
          out[j] = out[j] * shrink +
                   weight * static_cast<double>(
                                bf16_to_float(row[static_cast<std::size_t>(keys_.shape.d_k) + j]));
        }
      }
    }
    recorded.own_lse.push_back(static_cast<float>(largest + std::log(total)));
    for (const double value : out) recorded.own_out.push_back(static_cast<float>(value / total));
  }

  Session& session_;
  const ModelConfig& config_;
  const Context* context_ = nullptr;  // of the step under way
  RecordedKeys keys_;
};

Status record_question(Session& session, const Context& dense, const EvalQuestion& question,
                       Recorder& recorder) {
  Context context = session.worker().fork(dense);
  RecordedStep kind = RecordedStep::kQuestion;
  std::vector<TokenId> prompt;
  for (const EvalQuestion::Turn& turn : question.turns) {
    prompt.insert(prompt.end(), turn.prompt.begin(), turn.prompt.end());
    if (prompt.size() > 1) {
      const auto before = std::span(prompt).first(prompt.size() - 1);
      ICE_TRY(session.decoder().forward(context, before, {}).status());
    }
    ICE_TRY(recorder.step(context, prompt.back(), kind));
    kind = RecordedStep::kAnswer;
    for (std::size_t i = 0; i + 1 < turn.answer.size(); ++i) {
      ICE_TRY(recorder.step(context, turn.answer[i], kind));
    }
    prompt = {turn.answer.back()};
  }
  return Status();
}

}  // namespace

Result<RecordedKeys> record_document(Session& session, const EvalDocument& document,
                                     const std::function<void(double)>& progress) {
  constexpr double kPrefillShare = 0.3;
  Recorder recorder(session, document);
  Context dense = session.worker().new_context();
  const auto total = static_cast<double>(document.tokens.size());
  ICE_TRY(session.decoder().prefill(dense, document.tokens, [&](std::int64_t done) {
    if (progress) progress(kPrefillShare * static_cast<double>(done) / total);
  }));
  recorder.take_document(dense);
  for (std::size_t i = 0; i < document.questions.size(); ++i) {
    ICE_TRY(record_question(session, dense, document.questions[i], recorder));
    if (progress) {
      progress(kPrefillShare + (1 - kPrefillShare) * static_cast<double>(i) /
                                   static_cast<double>(document.questions.size()));
    }
  }
  const std::size_t count = std::min(kRecordedContinuation, document.continuation.size());
  for (std::size_t i = 0; i < count; ++i) {
    ICE_TRY(recorder.step(dense, document.continuation[i], RecordedStep::kContinuation));
  }
  return recorder.take();
}

}  // namespace icefield
