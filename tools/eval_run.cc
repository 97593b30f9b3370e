#include "tools/eval_run.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "engine/sampler.h"
#include "tools/eval_probe.h"

namespace icefield {
namespace {

constexpr std::size_t kProbedContinuation = 40;

void judge(std::span<const float> logits, TokenId expected, EvalOutcome& outcome) {
  outcome.tokens.push_back(most_likely(logits));
  outcome.right &= outcome.tokens.back() == expected;
  outcome.nll -= log_probability(logits, expected);
  ++outcome.answer_tokens;
}

double kl_divergence(std::span<const float> full, std::span<const float> other) {
  const auto normaliser = [](std::span<const float> logits) {
    const double largest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
    return largest + std::log(sum);
  };
  const double full_norm = normaliser(full);
  const double other_norm = normaliser(other);
  double kl = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double log_p = static_cast<double>(full[i]) - full_norm;
    kl += std::exp(log_p) * (log_p - (static_cast<double>(other[i]) - other_norm));
  }
  return kl;
}

// The difference of the two largest logits.
float margin(std::span<const float> logits) {
  const TokenId best = most_likely(logits);
  float second = -HUGE_VALF;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (i != best) second = std::max(second, logits[i]);
  }
  return logits[best] - second;
}

bool is_probed(EvalTask task) {
  return task == EvalTask::kFacts || task == EvalTask::kMultikey || task == EvalTask::kNeardup;
}

Result<std::span<const float>> one_token(Decoder& decoder, Context& context, TokenId token,
                                         const AttendOptions& attend, SelectionProbe* probe,
                                         bool probed, Logits wanted = Logits::kLast) {
  if (probe != nullptr) ICE_TRY(probe->begin_token(token, probed));
  ICE_TRY(const std::span<const float> logits,
          decoder.forward(context, std::span(&token, 1),
                          {.attend = attend, .logits = wanted, .observer = probe}));
  if (probe != nullptr) ICE_TRY(probe->end_token());
  return logits;
}

class DocumentEval {
 public:
  DocumentEval(Session& session, const EvalDocument& document, const EvalOptions& options,
               std::vector<EvalSums>& sums, const std::function<void(double)>& progress)
      : session_(session),
        document_(document),
        options_(options),
        sums_(sums),
        progress_(progress),
        dense_(session.worker().new_context()),
        sealed_(session.worker().new_context()) {
    total_ = static_cast<double>(document.tokens.size()) / kPrefillTokensPerStep;
    const double passes = 1 + static_cast<double>(options.arms.size());
    for (const EvalQuestion& question : document.questions) {
      for (const EvalQuestion::Turn& turn : question.turns) {
        total_ += passes * static_cast<double>(turn.prompt.size() + turn.answer.size());
      }
    }
    total_ += passes * static_cast<double>(document.continuation.size());
  }

  Status run() {
    ICE_TRY(prepare());
    ICE_TRY(run_full());
    for (std::size_t arm = 0; arm < options_.arms.size(); ++arm) ICE_TRY(run_arm(arm));
    return Status();
  }

 private:
  static constexpr double kPrefillTokensPerStep = 10;  // for the progress bar

  void advance(double steps) {
    done_ += steps;
    if (progress_) progress_(std::min(1.0, done_ / total_));
  }

  void advance_question(const EvalQuestion& question) {
    for (const EvalQuestion::Turn& turn : question.turns) {
      advance(static_cast<double>(turn.prompt.size() + turn.answer.size()));
    }
  }

  Status prepare() {
    Worker& worker = session_.worker();
    auto begin = std::chrono::steady_clock::now();
    std::int64_t before = 0;
    ICE_TRY(session_.decoder().prefill(dense_, document_.tokens, [&](std::int64_t done) {
      advance(static_cast<double>(done - before) / kPrefillTokensPerStep);
      before = done;
    }));
    const double prefill_ms = ms_since(begin);
    sealed_ = worker.fork(dense_);
    begin = std::chrono::steady_clock::now();
    ICE_TRY(worker.seal(sealed_, dense_.token_count()));
    const double build_ms = ms_since(begin);
    if (options_.probes) ICE_TRY(load_orders());
    for (EvalSums& sums : sums_) {
      ++sums.documents;
      sums.prefill_ms += prefill_ms;
      sums.build_ms += build_ms;
      sums.prefill_tokens += static_cast<double>(document_.tokens.size());
      sums.full_bytes +=
          static_cast<double>(dense_.token_count() * session_.model().config().kv.token_bytes());
    }
    return Status();
  }

  // Which token each stored row holds: the worker does not keep it.
  Status load_orders() {
    ICE_TRY(const PrefixMatch match, session_.worker().match(document_.tokens));
    for (const auto& segment : sealed_.segments()) {
      const auto build =
          std::find_if(match.chain.begin(), match.chain.end(),
                       [&](const StoredBuild& stored) { return stored.build == segment->build; });
      if (build == match.chain.end()) {
        return Status(Code::kInternal, "a sealed segment is not in the store");
      }
      ICE_TRY(
          orders_.emplace_back(),
          sync_wait(session_.executor(), session_.store().load_order(*build, Deadline::never())));
    }
    return Status();
  }

  // ------------------------------------------------------------------------------ full attention

  Status run_full() {
    for (const EvalQuestion& question : document_.questions) {
      if (!options_.questions) break;
      Context context = session_.worker().fork(dense_);
      std::optional<SelectionProbe> probe;
      if (options_.probes && is_probed(question.task)) {
        probe.emplace(session_, sealed_, context, orders_, options_.arms, sums_);
      }
      ICE_TRY(full_outcomes_.emplace_back(),
              ask_question(session_.decoder(), context, question, {}, options_.group_tokens,
                           probe.has_value() ? &*probe : nullptr));
      advance_question(question);
    }
    for (EvalSums& sums : sums_) {
      for (const EvalOutcome& outcome : full_outcomes_) {
        sums.full_first_token_ms += outcome.first_token_ms;
      }
    }
    if (!options_.continuation) return Status();
    Context context = session_.worker().fork(dense_);
    SelectionProbe probe(session_, sealed_, context, orders_, options_.arms, sums_);
    double ms = 0;
    for (std::size_t i = 0; i < document_.continuation.size(); ++i) {
      const bool probed = options_.probes && i < kProbedContinuation;
      const auto begin = std::chrono::steady_clock::now();
      const double spent = probe.spent_ms();
      ICE_TRY(const std::span<const float> logits,
              one_token(session_.decoder(), context, document_.continuation[i], {},
                        probed ? &probe : nullptr, probed));
      ms += ms_since(begin) - (probe.spent_ms() - spent);
      full_logits_.emplace_back(logits.begin(), logits.end());
      advance(1);
    }
    for (EvalSums& sums : sums_) sums.full_decode_ms += ms;
    (void)session_.decoder().take_report();
    return Status();
  }

  // ---------------------------------------------------------------------------------------- arms

  Status run_arm(std::size_t arm) {
    const EvalArm& how = options_.arms[arm];
    if (!how.ours()) {
      // A method is built once for all of its budgets that follow each other.
      ICE_CHECK(options_.attention != nullptr);
      MethodAttention& attention = *options_.attention;
      if (method_ == nullptr || method_->name() != how.method->name) {
        method_ = std::make_unique<MethodDocument>(attention.shape(), attention.kernels(),
                                                   attention.threads(), dense_, *how.method);
      }
      const MethodAttention::Use use = attention.use(*method_, how.budget);
      ICE_TRY(ask_all(dense_, {}, sums_[arm]));
      sums_[arm].method_index_bytes += static_cast<double>(method_->index_bytes());
      return Status();
    }
    const ModelConfig& config = session_.model().config();
    const std::int64_t pool_budget = how.budget == kBudgetAll ? 256 : how.budget;
    ICE_TRY(session_.worker().resize_pool(
        default_pool_bytes(config, pool_budget, session_.worker().options().page_rows)));
    return ask_all(sealed_, how.attend(), sums_[arm]);
  }

  // Everything that is asked, on forks of `past`.
  Status ask_all(const Context& past, const AttendOptions& attend, EvalSums& sums) {
    (void)session_.decoder().take_report();
    if (options_.attention != nullptr) (void)options_.attention->take_reads();
    for (std::size_t i = 0; options_.questions && i < document_.questions.size(); ++i) {
      Context context = session_.worker().fork(past);
      const std::int64_t before = context.token_count();
      ICE_TRY(const EvalOutcome outcome,
              ask_question(session_.decoder(), context, document_.questions[i], attend,
                           options_.group_tokens));
      advance_question(document_.questions[i]);
      count(document_.questions[i].task, full_outcomes_[i], outcome, sums);
      sums.step_tokens += context.token_count() - before;
    }
    Context context = session_.worker().fork(past);
    for (std::size_t i = 0; options_.continuation && i < document_.continuation.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      ICE_TRY(const std::span<const float> logits,
              one_token(session_.decoder(), context, document_.continuation[i], attend, nullptr,
                        false));
      sums.decode_ms += ms_since(begin);
      ++sums.continuation_tokens;
      ++sums.step_tokens;
      compare_logits(full_logits_[i], logits, sums);
      advance(1);
    }
    const Context* contexts[] = {&past, &context};
    if (!past.dense()) {
      sums.hot_bytes += static_cast<double>(session_.worker().hot_bytes(contexts));
    }
    sums.steps.add(session_.decoder().take_report());
    if (options_.attention != nullptr) sums.reads.add(options_.attention->take_reads());
    return Status();
  }

  static void compare_logits(std::span<const float> full, std::span<const float> logits,
                             EvalSums& sums) {
    sums.kl += kl_divergence(full, logits);
    const bool agree = most_likely(full) == most_likely(logits);
    sums.top1_agree += agree;
    constexpr float kNearTie = 1e-3f;
    sums.near_ties += !agree && margin(full) < kNearTie;
  }

  static void count(EvalTask task, const EvalOutcome& full, const EvalOutcome& outcome,
                    EvalSums& sums) {
    EvalCounts& counts = sums.tasks[task];
    ++counts.questions;
    counts.full_right += full.right;
    counts.right += outcome.right;
    counts.lost += full.right && !outcome.right;
    counts.gained += !full.right && outcome.right;
    counts.answer_tokens += outcome.answer_tokens;
    counts.full_nll += full.nll;
    counts.nll += outcome.nll;
    sums.first_token_ms += outcome.first_token_ms;
    ++sums.first_tokens;
  }

  Session& session_;
  const EvalDocument& document_;
  const EvalOptions& options_;
  std::vector<EvalSums>& sums_;
  const std::function<void(double)>& progress_;
  Context dense_;
  Context sealed_;
  std::unique_ptr<MethodDocument> method_;         // of the last arm that was not ours
  std::vector<std::vector<AlignedBytes>> orders_;  // [segment][layer]
  std::vector<EvalOutcome> full_outcomes_;         // by question
  std::vector<std::vector<float>> full_logits_;    // by continuation token
  double done_ = 0;
  double total_ = 0;
};

}  // namespace

Result<EvalOutcome> ask_question(Decoder& decoder, Context& context, const EvalQuestion& question,
                                 const AttendOptions& attend, std::int32_t group_tokens,
                                 SelectionProbe* probe) {
  ICE_CHECK(probe == nullptr || group_tokens == 1);
  EvalOutcome outcome;
  std::vector<TokenId> pending;  // the last right answer, not yet fed
  for (const EvalQuestion::Turn& turn : question.turns) {
    std::vector<TokenId> prompt = pending;
    prompt.insert(prompt.end(), turn.prompt.begin(), turn.prompt.end());
    const auto begin = std::chrono::steady_clock::now();
    std::span<const float> logits;
    if (probe == nullptr) {
      ICE_TRY(logits,
              decoder.forward(context, prompt, {.attend = attend, .group_tokens = group_tokens}));
    } else {
      for (std::size_t i = 0; i < prompt.size(); ++i) {
        const bool last = i + 1 == prompt.size();
        ICE_TRY(logits, one_token(decoder, context, prompt[i], attend, probe, last,
                                  last ? Logits::kLast : Logits::kNone));
      }
    }
    const double ms = ms_since(begin) - (probe == nullptr ? 0 : probe->spent_ms());
    if (&turn == &question.turns.front()) outcome.first_token_ms = ms;
    probe = nullptr;
    judge(logits, turn.answer[0], outcome);
    for (std::size_t i = 0; i + 1 < turn.answer.size(); ++i) {
      ICE_TRY(logits, one_token(decoder, context, turn.answer[i], attend, nullptr, false));
      judge(logits, turn.answer[i + 1], outcome);
    }
    pending = {turn.answer.back()};
  }
  return outcome;
}

void EvalCounts::add(const EvalCounts& other) {
  questions += other.questions;
  full_right += other.full_right;
  right += other.right;
  lost += other.lost;
  gained += other.gained;
  answer_tokens += other.answer_tokens;
  full_nll += other.full_nll;
  nll += other.nll;
}

EvalCounts EvalSums::total() const {
  EvalCounts sum;
  for (const auto& [task, counts] : tasks) sum.add(counts);
  return sum;
}

Status evaluate_document(Session& session, const EvalDocument& document, const EvalOptions& options,
                         std::vector<EvalSums>& sums, const std::function<void(double)>& progress) {
  return DocumentEval(session, document, options, sums, progress).run();
}

}  // namespace icefield
