// icefield eval — clustered against full attention on questions hidden in a text.
#include <gflags/gflags.h>

#include <iostream>

#include "tools/command_line.h"
#include "tools/eval_record.h"
#include "tools/eval_run.h"
#include "tools/progress.h"
#include "tools/report.h"

DEFINE_string(document, "", "text of 200 KB or more; empty: what ./dev text made");
DEFINE_string(model, "", "GGUF file; empty: what ./dev model fetched");
DEFINE_string(context_tokens, "4096", "lengths of the documents, for example 4096,7168");
DEFINE_string(method, "icefield",
              "methods to measure, each with budgets of its own where they follow a colon: "
              "icefield,pages_quest:256:1024");
DEFINE_string(budget, "64,256", "budgets to measure, numbers or all");
DEFINE_string(breadth, "rule",
              "breadths of ours to measure: numbers, all, or rule, which is all up to 8192 tokens");
DEFINE_int32(documents, 1, "documents of each length");
DEFINE_uint64(seed, 1, "of documents and questions");
DEFINE_string(tasks, "facts,multikey,neardup,multiquery,passage,continuation",
              "which questions are asked");
DEFINE_int32(group_tokens, 1, "question tokens that share a selection, 1 to 16");
DEFINE_bool(
    probes, true,
    "measure strong-token misses and recall64 where --group_tokens is 1, which takes extra time");
DEFINE_string(store, "", "directory of the NVMe tier; empty: memory only");
DEFINE_int32(page_rows, 1, "rows of a page: 1, 2, 4, 8 or 16");
DEFINE_string(device, "cpu", "what attends: cpu or cuda");
DEFINE_int64(dram_bytes, std::int64_t{2} << 30, "memory of the embedded cache node");
DEFINE_int32(threads, 0, "0: one per core");
DEFINE_string(record, "",
              "measure nothing, write the K/V and queries of one document to this file");
DEFINE_bool(json, false, "print one JSON object instead of tables");

namespace icefield {
namespace {

// A machine that stands still for a while is no loss of the method's.
constexpr std::chrono::minutes kFetchTimeout{1};

constexpr char kUsage[] =
    R"(icefield eval — measures clustered against full attention, paired on the same questions

Facts are hidden in prose; each question is asked with full attention and with every budget and
breadth. "lost": full attention answers it, this does not. Up to 8 192 tokens the rule ranks every
code; at 7 168 tokens a quarter of them is --breadth=13 for a budget of 64, 3 for 256.

  icefield eval --context_tokens=7168 --budget=64 --breadth=13,all --documents=3
  icefield eval --context_tokens=7168 --seed=1 --record=keys.bin

--method attends with the other methods of icefield bench index as well, on one token at a time:
exact_fp32, exact_int8, exact_no_tail, pages_mean, pages_quest, pages_icecache, flat_retroinfer.
"moved" is what a step reads for one KV head: index and K/V, without what a pool would save.

  icefield eval --context_tokens=7168 --breadth=13 --method=icefield:64,pages_quest:64:256:1024
)";

constexpr char kOurs[] = "icefield";

struct Plan {
  std::vector<std::int64_t> lengths;
  EvalOptions options;
  std::vector<EvalTask> tasks;
};

// The arms of "NAME" or "NAME:BUDGET:BUDGET".
Status add_arms(const std::string& text, const std::vector<std::int64_t>& all_budgets,
                const std::vector<std::int32_t>& breadths, std::vector<EvalArm>& arms) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string name = text.substr(0, colon);
  std::vector<std::int64_t> budgets = all_budgets;
  if (colon < text.size()) {
    std::string numbers = text.substr(colon + 1);
    std::replace(numbers.begin(), numbers.end(), ':', ',');
    ICE_TRY(budgets, parse_numbers("method", numbers, 0));
  }
  std::optional<TrialMethod> method;
  for (const TrialMethod& known : all_trial_methods(cpu_kernels(), {})) {
    if (known.name == name) method = known;
  }
  if (!method.has_value() && name != kOurs) {
    return Status(Code::kInvalidArgument, "--method: no method \"" + name + "\", see --help");
  }
  if (method.has_value() && (FLAGS_device != "cpu" || FLAGS_group_tokens != 1)) {
    return Status(Code::kInvalidArgument,
                  "--method=" + name + " attends on the CPU, one token at a time");
  }
  for (const std::int64_t number : budgets) {
    const std::int64_t budget = number == kAllNumber ? kBudgetAll : number;
    if (method.has_value()) {
      arms.push_back({.budget = budget, .method = method});
      continue;
    }
    for (const std::int32_t breadth : breadths) {
      arms.push_back({.budget = budget, .breadth = breadth});
    }
  }
  return Status();
}

Result<Plan> make_plan() {
  Plan plan;
  ICE_TRY(plan.lengths, parse_numbers("context_tokens", FLAGS_context_tokens, 1024));
  for (const std::int64_t length : plan.lengths) {
    if (length == kAllNumber) {
      return Status(Code::kInvalidArgument, "--context_tokens=all: expected numbers");
    }
  }
  ICE_TRY(check_range("group_tokens", FLAGS_group_tokens, 1, kMaxQueryTokens));
  ICE_TRY(const auto budgets, parse_numbers("budget", FLAGS_budget, 0));
  ICE_TRY(const std::vector<std::int32_t> breadths, parse_breadths(FLAGS_breadth));
  for (const std::string& method : split_list(FLAGS_method)) {
    ICE_TRY(add_arms(method, budgets, breadths, plan.options.arms));
  }
  plan.options.group_tokens = FLAGS_group_tokens;
  plan.options.continuation = false;
  plan.options.probes = FLAGS_probes && FLAGS_group_tokens == 1;
  for (const std::string& name : split_list(FLAGS_tasks)) {
    const auto* task = std::find_if(std::begin(kQuestionTasks), std::end(kQuestionTasks),
                                    [&](EvalTask known) { return to_string(known) == name; });
    if (name == "continuation") {
      plan.options.continuation = true;
    } else if (task != std::end(kQuestionTasks)) {
      plan.tasks.push_back(*task);
    } else {
      return Status(Code::kInvalidArgument, "--tasks: no task \"" + name + "\"");
    }
  }
  plan.options.questions = !plan.tasks.empty();
  ICE_TRY(check_range("documents", FLAGS_documents, 1));
  if (!FLAGS_record.empty() && (FLAGS_documents != 1 || plan.lengths.size() != 1)) {
    return Status(Code::kInvalidArgument, "--record: one document of one length at a time");
  }
  return plan;
}

std::string budget_text(const EvalArm& arm) {
  return arm.budget == kBudgetAll ? "all" : std::to_string(arm.budget);
}

std::string method_text(const EvalArm& arm) { return arm.ours() ? kOurs : arm.method->name; }

// All figures of one arm, in the order in which the table shows them.
class ArmFigures {
 public:
  ArmFigures(const Plan& plan, std::int64_t length, const EvalArm& arm, const EvalSums& sums,
             Report& report)
      : plan_(plan), length_(length), arm_(arm), sums_(sums), report_(report) {}

  void add_all(const KvShape& shape) {
    if (plan_.options.questions) add_questions();
    if (plan_.options.continuation) add_continuation();
    if (plan_.options.probes && arm_.ours()) add_probes();
    if (arm_.ours()) add_costs(shape);
    if (sums_.reads.groups > 0) add_reads();
    add_document();
  }

 private:
  // A continuation is computed token by token.
  std::int32_t group_tokens_of(std::string_view task) const {
    return task == "continuation" ? 1 : plan_.options.group_tokens;
  }

  void add(const char* task, const char* name, double value, const char* unit, double full = NAN,
           const char* better = "") {
    Figure figure{.name = name,
                  .params = {{"task", task},
                             {"method", method_text(arm_)},
                             {"budget", budget_text(arm_)},
                             {"breadth", nullptr},
                             {"context_tokens", length_},
                             {"group_tokens", group_tokens_of(task)}},
                  .value = value,
                  .unit = unit};
    if (arm_.ours()) figure.params["breadth"] = breadth_text(arm_.breadth);
    if (!std::isnan(full)) {
      figure.against = "full attention";
      figure.ratio = full == 0 ? 0 : value / full;
      figure.better = better;
    }
    report_.add(std::move(figure));
  }

  void add_counts(const char* task, const EvalCounts& counts) {
    const auto tokens = static_cast<double>(counts.answer_tokens);
    add(task, "questions", static_cast<double>(counts.questions), "questions");
    add(task, "full_right", static_cast<double>(counts.full_right), "questions");
    add(task, "lost", static_cast<double>(counts.lost), "questions");
    add(task, "gained", static_cast<double>(counts.gained), "questions");
    add(task, "answer_nll", counts.nll / tokens, "nats/token", counts.full_nll / tokens, "lower");
  }

  void add_questions() {
    add_counts("all", sums_.total());
    for (const auto& [task, counts] : sums_.tasks) {
      add_counts(std::string(to_string(task)).c_str(), counts);
    }
    const auto firsts = static_cast<double>(sums_.first_tokens);
    add("all", "first_token_ms", sums_.first_token_ms / firsts, "ms",
        sums_.full_first_token_ms / firsts, "lower");
  }

  void add_continuation() {
    const auto tokens = static_cast<double>(sums_.continuation_tokens);
    const auto agree = static_cast<double>(sums_.top1_agree);
    add("continuation", "kl", sums_.kl / tokens, "nats/token");
    add("continuation", "top1_agreement", agree / tokens, "share");
    add("continuation", "top1_disagreements", tokens - agree, "tokens");
    add("continuation", "near_ties", static_cast<double>(sums_.near_ties), "tokens");
    add("continuation", "decode_ms_per_token", sums_.decode_ms / tokens, "ms/token",
        sums_.full_decode_ms / tokens, "lower");
  }

  void add_probes() {
    add("all", "strong_pairs", static_cast<double>(sums_.strong_pairs), "pairs");
    add("all", "strong_misses", share(sums_.strong_misses, sums_.strong_pairs), "share");
    add("all", "recall64", share(sums_.top64_found, sums_.top64_wanted), "share");
  }

  void add_costs(const KvShape& shape) {
    const auto documents = static_cast<double>(sums_.documents);
    const auto tokens = static_cast<double>(std::max<std::int64_t>(1, sums_.step_tokens));
    const double heads = static_cast<double>(shape.layer_count) * shape.kv_head_count;
    const StepReport& steps = sums_.steps;
    add("all", "hot_bytes", sums_.hot_bytes / documents, "bytes", sums_.full_bytes / documents,
        "lower");
    add("all", "rows_per_token", static_cast<double>(steps.rows_selected) / tokens / heads,
        "rows/head");
    add("all", "pages_per_token", static_cast<double>(steps.pages_touched) / tokens / heads,
        "pages/head");
    add("all", "cold_bytes_per_token", static_cast<double>(steps.bytes_moved) / tokens, "bytes");
    add("all", "tail_share", steps.tail_share(), "share");
    add("all", "pool_hit_rate", share(steps.page_hits, steps.pages_touched), "share");
    add("all", "coverage", static_cast<double>(steps.coverage_min), "share");
    add("all", "seal_ms", sums_.build_ms / documents, "ms");
  }

  // Of one step and KV head, as icefield bench index counts.
  void add_reads() {
    const MethodReads& reads = sums_.reads;
    const auto groups = static_cast<double>(reads.groups);
    const auto index = static_cast<double>(reads.cost.index_bytes_read);
    if (arm_.ours()) {
      add("all", "ranked", share(reads.cost.rows_ranked, reads.rows_indexed), "share");
    } else {
      add("all", "pages_per_token", static_cast<double>(reads.cost.pages) / groups, "pages/head");
    }
    add("all", "index_bytes_read", index / groups, "B/head");
    add("all", "moved_bytes", (index + static_cast<double>(reads.cost.page_bytes)) / groups,
        "B/head");
  }

  void add_document() {
    const auto documents = static_cast<double>(sums_.documents);
    add("all", "full_bytes", sums_.full_bytes / documents, "bytes");
    add("all", "prefill_tokens", sums_.prefill_tokens / documents, "tokens");
    add("all", "prefill_ms", sums_.prefill_ms / documents, "ms");
    if (!arm_.ours()) {
      add("all", "metadata_fraction", sums_.method_index_bytes / sums_.full_bytes, "share");
    }
  }

  static double share(std::int64_t part, std::int64_t whole) {
    return static_cast<double>(part) / static_cast<double>(std::max<std::int64_t>(1, whole));
  }

  const Plan& plan_;
  const std::int64_t length_;
  const EvalArm& arm_;
  const EvalSums& sums_;
  Report& report_;
};

std::vector<std::string> table_row(const EvalArm& how, const EvalSums& arm) {
  const EvalCounts total = arm.total();
  const auto maybe = [](bool known, const std::string& text) { return known ? text : "–"; };
  const auto ratio = [](auto part, auto whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  const bool asked = total.answer_tokens > 0;
  const std::int64_t tokens = arm.continuation_tokens;
  const MethodReads& reads = arm.reads;
  const bool counted = reads.groups > 0;
  const MethodCost& cost = reads.cost;
  return {method_text(how),
          budget_text(how),
          maybe(how.ours(), breadth_text(how.breadth)),
          std::to_string(total.right),
          std::to_string(total.full_right),
          std::to_string(total.lost),
          std::to_string(total.gained),
          maybe(asked, number_text(total.nll / static_cast<double>(total.answer_tokens), 3)),
          maybe(asked, number_text(total.full_nll / static_cast<double>(total.answer_tokens), 3)),
          maybe(tokens > 0, number_text(arm.kl / static_cast<double>(tokens), 4)),
          maybe(tokens > 0, number_text(ratio(arm.top1_agree, tokens), 3)),
          maybe(tokens > 0, std::to_string(arm.near_ties)),
          maybe(arm.strong_pairs > 0,
                std::to_string(arm.strong_misses) + "/" + std::to_string(arm.strong_pairs)),
          maybe(arm.top64_wanted > 0, number_text(ratio(arm.top64_found, arm.top64_wanted), 3)),
          maybe(counted && how.ours(), percent_text(ratio(cost.rows_ranked, reads.rows_indexed))),
          maybe(counted, number_text(ratio(cost.pages, reads.groups), 0)),
          maybe(counted, bytes_text(ratio(cost.index_bytes_read + cost.page_bytes, reads.groups))),
          maybe(how.ours(), percent_text(arm.hot_bytes / arm.full_bytes)),
          maybe(how.ours(), bytes_text(ratio(arm.steps.bytes_moved, arm.step_tokens))),
          maybe(how.ours(), percent_text(arm.steps.tail_share())),
          maybe(tokens > 0, number_text(arm.decode_ms / static_cast<double>(tokens), 1)),
          maybe(tokens > 0, number_text(arm.full_decode_ms / static_cast<double>(tokens), 1)),
          maybe(arm.steps.pages_touched > 0,
                percent_text(ratio(arm.steps.page_hits, arm.steps.pages_touched)))};
}

std::string table_of(const Plan& plan, const std::vector<EvalSums>& sums) {
  Table table({"method",        "budget",   "breadth",  "right", "full",  "lost",
               "gained",        "NLL",      "full",     "KL",    "top-1", "ties",
               "strong missed", "recall64", "ranked",   "pages", "moved", "hot",
               "cold/token",    "tail",     "ms/token", "full",  "hits"});
  for (std::size_t i = 0; i < sums.size(); ++i) {
    table.add(table_row(plan.options.arms[i], sums[i]));
  }
  return table.text();
}

// The questions of the tasks that were asked for, about document `index` of a length.
Result<EvalDocument> document_of(const Plan& plan, const EvalText& text, const Session& session,
                                 std::int64_t length, std::int32_t index) {
  const std::uint64_t seed = FLAGS_seed * 1000 + static_cast<std::uint64_t>(index);
  ICE_TRY(EvalDocument document, make_document(text, session.model().tokenizer(), length, seed));
  std::erase_if(document.questions, [&](const EvalQuestion& question) {
    return std::find(plan.tasks.begin(), plan.tasks.end(), question.task) == plan.tasks.end();
  });
  return document;
}

Status record(const Plan& plan, const EvalText& text, Session& session) {
  ICE_TRY(const EvalDocument document, document_of(plan, text, session, plan.lengths[0], 0));
  Progress progress("record", 1000);
  ICE_TRY(const RecordedKeys keys, record_document(session, document, [&](double share) {
            progress.set(static_cast<std::int64_t>(1000 * share));
          }));
  return write_recorded_keys(keys, FLAGS_record);
}

Result<std::unique_ptr<Session>> open_session(EvalOptions& options) {
  Session::Options session{.model_path = FLAGS_model.empty() ? default_model_path() : FLAGS_model,
                           .store = FLAGS_store,
                           .dram_bytes = FLAGS_dram_bytes,
                           .page_rows = FLAGS_page_rows,
                           .device = FLAGS_device,
                           .threads = FLAGS_threads,
                           .fetch_timeout = kFetchTimeout};
  if (FLAGS_device == "cpu") {
    session.attention = [&options](const AttentionShape& shape, ThreadPool& threads) {
      auto attention = std::make_unique<MethodAttention>(shape, cpu_kernels(), threads);
      options.attention = attention.get();
      return attention;
    };
  }
  return Session::open(std::move(session));
}

Status run() {
  ICE_TRY(Plan plan, make_plan());
  const std::string path = FLAGS_document.empty() ? default_text_path() : FLAGS_document;
  Result<std::string> content = read_file(path);
  if (!content.has_value()) {
    return FLAGS_document.empty()
               ? content.error().with_context("the default text is missing, ./dev text makes it")
               : content.error();
  }
  ICE_TRY(const EvalText text, EvalText::parse(*content));
  ICE_TRY(std::unique_ptr<Session> session, open_session(plan.options));
  ICE_TRY(
      check_range("group_tokens", FLAGS_group_tokens, 1, session->worker().most_group_tokens()));
  const ModelConfig& config = session->model().config();
  for (const std::int64_t length : plan.lengths) {
    if (length + kContinuationTokens > config.max_positions) {
      return Status(Code::kInvalidArgument, "--context_tokens=" + std::to_string(length) +
                                                ": with what follows it is more "
                                                "than the model's " +
                                                std::to_string(config.max_positions) +
                                                " positions");
    }
  }
  if (!FLAGS_record.empty()) return record(plan, text, *session);
  Report report("eval");
  for (const std::int64_t length : plan.lengths) {
    std::vector<EvalSums> sums(plan.options.arms.size());
    Progress progress("eval " + std::to_string(length), 1000 * FLAGS_documents);
    for (std::int32_t i = 0; i < FLAGS_documents; ++i) {
      ICE_TRY(const EvalDocument document, document_of(plan, text, *session, length, i));
      ICE_TRY(evaluate_document(*session, document, plan.options, sums, [&](double share) {
        progress.set(1000 * i + static_cast<std::int64_t>(1000 * share));
      }));
    }
    for (std::size_t arm = 0; arm < sums.size(); ++arm) {
      ArmFigures(plan, length, plan.options.arms[arm], sums[arm], report).add_all(config.kv);
    }
    if (FLAGS_json) continue;
    std::cout << length << " tokens, " << FLAGS_documents << " documents, group of "
              << plan.options.group_tokens << ":\n\n"
              << table_of(plan, sums) << "\n";
  }
  if (FLAGS_json) std::cout << report.json();
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
