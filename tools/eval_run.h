// tools/eval_run.h — clustered against full attention on the same questions of one document.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/eval_document.h"
#include "tools/method_attention.h"
#include "tools/session.h"

namespace icefield {

// One way of attending that is measured. Full attention is the reference of all.
struct EvalArm {
  std::int64_t budget = 64;  // kBudgetAll: everything, through the clustered path
  std::int32_t breadth = kRuleBreadth;
  // Of bench/; absent: ours, as the worker attends.
  std::optional<TrialMethod> method = std::nullopt;

  bool ours() const { return !method.has_value(); }
  AttendOptions attend() const { return {.budget = budget, .breadth = breadth}; }
};

// Sums over questions and documents; what is divided by what is said at each figure.
struct EvalCounts {
  std::int64_t questions = 0;
  std::int64_t full_right = 0;
  std::int64_t right = 0;
  std::int64_t lost = 0;    // full right, this wrong
  std::int64_t gained = 0;  // the reverse
  std::int64_t answer_tokens = 0;
  double full_nll = 0;  // of the answer tokens
  double nll = 0;
  void add(const EvalCounts& other);
};

struct EvalSums {
  std::map<EvalTask, EvalCounts> tasks;
  // Continuation.
  std::int64_t continuation_tokens = 0;
  double kl = 0;
  std::int64_t top1_agree = 0;
  std::int64_t near_ties = 0;  // disagreements where full attention's two best logits differ < 1e-3
  double full_decode_ms = 0;   // sums over the continuation's tokens
  double decode_ms = 0;
  // Probes (docs/formats/attention.md step 11).
  std::int64_t strong_pairs = 0;
  std::int64_t strong_misses = 0;
  std::int64_t top64_wanted = 0;
  std::int64_t top64_found = 0;
  // Work of all steps of the arm. `steps` knows ours alone; `reads` is empty where nothing counts.
  StepReport steps;
  MethodReads reads;
  std::int64_t step_tokens = 0;
  // Per document or question.
  std::int64_t documents = 0;
  double hot_bytes = 0;           // of ours
  double method_index_bytes = 0;  // of the others: kept beside the K/V
  double full_bytes = 0;
  double prefill_tokens = 0;
  double prefill_ms = 0;
  double build_ms = 0;
  double first_token_ms = 0;
  std::int64_t first_tokens = 0;
  double full_first_token_ms = 0;

  EvalCounts total() const;
};

// What one way of attending made of a question.
struct EvalOutcome {
  bool right = true;  // every answer token was the most likely one
  std::int64_t answer_tokens = 0;
  double nll = 0;               // of all answer tokens
  double first_token_ms = 0;    // computing the first prompt
  std::vector<TokenId> tokens;  // the most likely one at every answer token
};

// Feeds a question into `context`: prompts in groups of `group_tokens`, the right answers token by
// token. `probe` sees the first prompt and probes its last token; then `group_tokens` is 1.
class SelectionProbe;
Result<EvalOutcome> ask_question(Decoder& decoder, Context& context, const EvalQuestion& question,
                                 const AttendOptions& attend, std::int32_t group_tokens,
                                 SelectionProbe* probe = nullptr);

struct EvalOptions {
  std::vector<EvalArm> arms;
  std::int32_t group_tokens = 1;
  bool questions = true;
  bool continuation = true;
  bool probes = true;  // of ours, where group_tokens is 1
  // What the session attends with, where arms have other methods than ours or reads are counted.
  MethodAttention* attention = nullptr;
};

// Measures one document; sums[i] belongs to arms[i] and is added to. `progress` gets 0 … 1.
Status evaluate_document(Session& session, const EvalDocument& document, const EvalOptions& options,
                         std::vector<EvalSums>& sums, const std::function<void(double)>& progress);

}  // namespace icefield
