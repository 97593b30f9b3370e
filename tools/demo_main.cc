// icefield demo — the main job on a real model: a document is prefilled, sealed and stored,
// questions are answered at small budgets; a second process attaches to the store and answers too.
#include <gflags/gflags.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "tools/child_process.h"
#include "tools/command_line.h"
#include "tools/eval_run.h"
#include "tools/progress.h"
#include "tools/report.h"

DEFINE_string(document, "", "text of 200 KB or more; empty: what ./dev text made");
DEFINE_string(model, "", "GGUF file; empty: what ./dev model fetched");
DEFINE_int64(context_tokens, 7168, "length of the document");
DEFINE_string(budget, "256,128,64,32", "budgets to ask at");
DEFINE_uint64(seed, 1, "of the document and its hidden facts");
DEFINE_string(store, "", "directory of the store; empty: a temporary one, removed at the end");
DEFINE_int32(threads, 0, "0: one per core");
DEFINE_bool(json, false, "print one JSON object instead of the table");
DEFINE_string(phase, "", "internal: what a process started by the demo does");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield demo — one document, many questions, two processes

The first process prefills a document of real prose with facts hidden in it, seals it into clusters
and stores it (memory and RocksDB), then asks for the facts with full attention and at small
budgets.
The second one attaches to the store, without prefill, and asks again.

  icefield demo
)";

using Json = nlohmann::json;

// One line of the table.
struct Line {
  std::string process;
  std::string attention;
  std::int64_t questions = 0;
  std::int64_t right = 0;
  std::int64_t lost = 0;  // against full attention in the first process
  double hot_bytes = 0;
  double full_bytes = 0;
  double rows = 0;  // per token, layer and KV head
  double pages = 0;
  double cold_bytes = 0;  // per token
  double tail_share = 0;
  double ms_per_token = 0;
  double hit_rate = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Line, process, attention, questions, right, lost, hot_bytes,
                                   full_bytes, rows, pages, cold_bytes, tail_share, ms_per_token,
                                   hit_rate)

// The answers of one line, by question.
struct Answers {
  std::vector<bool> right;
  std::vector<std::vector<TokenId>> tokens;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Answers, right, tokens)

// What a process found: its lines with their answers, and times in ms.
struct PhaseResult {
  std::vector<Line> lines;
  std::vector<Answers> answers;
  std::vector<bool> full_right;  // which questions full attention answered
  std::int64_t prefill_tokens = 0;
  double prefill_ms = 0;
  double seal_ms = 0;
  double attach_ms = 0;
  double first_question_ms = 0;  // to the first token of the first answer
  double stored_bytes = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PhaseResult, lines, answers, full_right, prefill_tokens,
                                   prefill_ms, seal_ms, attach_ms, first_question_ms, stored_bytes)

struct Setup {
  std::unique_ptr<Session> session;
  EvalDocument document;
  std::vector<std::int64_t> budgets;
};

Result<Setup> set_up(const std::string& store) {
  Setup setup;
  ICE_TRY(setup.budgets, parse_numbers("budget", FLAGS_budget, 0));
  const std::string path = FLAGS_document.empty() ? default_text_path() : FLAGS_document;
  ICE_TRY(const std::string content, read_file(path));
  ICE_TRY(const EvalText text, EvalText::parse(content));
  ICE_TRY(setup.session,
          Session::open({.model_path = FLAGS_model.empty() ? default_model_path() : FLAGS_model,
                         .store = store,
                         .dram_bytes = std::int64_t{1} << 30,
                         .threads = FLAGS_threads}));
  ICE_TRY(setup.document, make_document(text, setup.session->model().tokenizer(),
                                        FLAGS_context_tokens, FLAGS_seed));
  std::erase_if(setup.document.questions, [](const EvalQuestion& question) {
    return question.turns.size() > 1 || question.task == EvalTask::kPassage;
  });
  return setup;
}

// Asks every question on forks of `context`.
Result<Line> ask_all(Setup& setup, const Context& context, const std::string& name,
                     std::int64_t budget, Answers& answers, double& first_question_ms,
                     Progress& progress, std::int64_t& asked) {
  Session& session = *setup.session;
  const ModelConfig& config = session.model().config();
  const bool dense = context.dense();
  if (!dense) ICE_TRY(session.worker().resize_pool(default_pool_bytes(config, budget, 1)));
  (void)session.decoder().take_report();
  Line line{.attention = name};
  double ms = 0;
  std::int64_t tokens = 0;
  std::int64_t most_hot = 0;
  for (const EvalQuestion& question : setup.document.questions) {
    Context fork = session.worker().fork(context);
    const auto begin = std::chrono::steady_clock::now();
    ICE_TRY(const EvalOutcome outcome,
            ask_question(session.decoder(), fork, question, {.budget = budget}, 1));
    ms += ms_since(begin);
    if (line.questions == 0) first_question_ms = outcome.first_token_ms;
    tokens += fork.token_count() - context.token_count();
    const Context* contexts[] = {&context, &fork};
    most_hot = std::max(most_hot, session.worker().hot_bytes(contexts));
    answers.right.push_back(outcome.right);
    answers.tokens.push_back(outcome.tokens);
    ++line.questions;
    line.right += outcome.right;
    progress.set(++asked);
  }
  const StepReport steps = session.decoder().take_report();
  const double per_head =
      static_cast<double>(tokens) * config.kv.layer_count * config.kv.kv_head_count;
  line.hot_bytes =
      static_cast<double>(dense ? context.token_count() * config.kv.token_bytes() : most_hot);
  line.full_bytes = static_cast<double>(context.token_count() * config.kv.token_bytes());
  line.rows = static_cast<double>(steps.rows_selected) / per_head;
  line.pages = static_cast<double>(steps.pages_touched) / per_head;
  line.cold_bytes = static_cast<double>(steps.bytes_moved) / static_cast<double>(tokens);
  line.tail_share = steps.tail_share();
  line.ms_per_token = ms / static_cast<double>(tokens);
  line.hit_rate = steps.pages_touched == 0 ? 0
                                           : static_cast<double>(steps.page_hits) /
                                                 static_cast<double>(steps.pages_touched);
  return line;
}

// Questions at every budget on a clustered context; `lost` counts against `full_right`.
Status ask_at_budgets(Setup& setup, const Context& context, const std::string& process,
                      PhaseResult& result) {
  std::int64_t asked = 0;
  Progress progress(
      process + " process asks",
      static_cast<std::int64_t>(setup.document.questions.size() * setup.budgets.size()));
  for (const std::int64_t budget : setup.budgets) {
    Answers answers;
    double first_question_ms = 0;
    ICE_TRY(Line line, ask_all(setup, context, "budget " + number_text(budget),
                               budget == kAllNumber ? kBudgetAll : budget, answers,
                               first_question_ms, progress, asked));
    if (result.first_question_ms == 0) result.first_question_ms = first_question_ms;
    for (std::size_t i = 0; i < answers.right.size() && i < result.full_right.size(); ++i) {
      line.lost += result.full_right[i] && !answers.right[i];
    }
    line.process = process;
    result.lines.push_back(line);
    result.answers.push_back(std::move(answers));
  }
  return Status();
}

Status write_phase(const std::string& store, PhaseResult& result) {
  ICE_TRY(Setup setup, set_up(store));
  Session& session = *setup.session;
  Context dense = session.worker().new_context();
  result.prefill_tokens = static_cast<std::int64_t>(setup.document.tokens.size());
  {
    Progress progress("first process prefills", result.prefill_tokens);
    const auto begin = std::chrono::steady_clock::now();
    ICE_TRY(session.decoder().prefill(dense, setup.document.tokens,
                                      [&](std::int64_t done) { progress.set(done); }));
    result.prefill_ms = ms_since(begin);
  }
  Context sealed = session.worker().fork(dense);
  const auto begin = std::chrono::steady_clock::now();
  ICE_TRY(session.worker().seal(sealed, dense.token_count()));
  result.seal_ms = ms_since(begin);
  ICE_TRY(const ListBuildsReply listed,
          sync_wait(session.executor(), session.store().list_builds("", Deadline::never())));
  for (const StoredBuild& build : listed.builds) {
    result.stored_bytes += static_cast<double>(build.stored_bytes);
  }
  {
    std::int64_t asked = 0;
    Progress progress("first process asks with full attention",
                      static_cast<std::int64_t>(setup.document.questions.size()));
    Answers answers;
    ICE_TRY(Line full, ask_all(setup, dense, "full", kBudgetAll, answers, result.first_question_ms,
                               progress, asked));
    full.process = "first";
    result.lines.push_back(full);
    result.full_right = answers.right;
    result.answers.push_back(std::move(answers));
  }
  return ask_at_budgets(setup, sealed, "first", result);
}

Status attach_phase(const std::string& store, PhaseResult& result) {
  ICE_TRY(Setup setup, set_up(store));
  Session& session = *setup.session;
  const auto begin = std::chrono::steady_clock::now();
  ICE_TRY(const PrefixMatch match, session.worker().match(setup.document.tokens));
  if (match.chain.empty()) return match.miss.with_context("the second process");
  ICE_TRY(const Context context,
          session.worker().attach(setup.document.tokens, match, AttachRows::kWindow));
  result.attach_ms = ms_since(begin);
  result.prefill_tokens =
      static_cast<std::int64_t>(setup.document.tokens.size()) - match.token_count();
  if (result.prefill_tokens != 0) {
    return Status(Code::kInternal, "the store holds " + std::to_string(match.token_count()) +
                                       " of the document's tokens");
  }
  return ask_at_budgets(setup, context, "second", result);
}

// Runs this program again with --phase=`phase`; `result` goes in and out as JSON.
Status run_process(const std::string& phase, const std::string& store, PhaseResult& result) {
  const std::string file = store + "/demo.json";
  {
    std::ofstream out(file);
    out << Json(result).dump();
  }
  ICE_TRY(ChildProcess child,
          ChildProcess::start(
              {.arguments = {verb_program("demo"), "--phase=" + phase, "--store=" + store,
                             "--document=" + FLAGS_document, "--model=" + FLAGS_model,
                             "--context_tokens=" + std::to_string(FLAGS_context_tokens),
                             "--budget=" + FLAGS_budget, "--seed=" + std::to_string(FLAGS_seed),
                             "--threads=" + std::to_string(FLAGS_threads)},
               .show_errors = true}));
  if (const int code = child.wait(); code != 0) {
    return Status(Code::kInternal, "the " + phase + " process ended with " + end_text(code));
  }
  ICE_TRY(const std::string text, read_file(file));
  result = Json::parse(text).get<PhaseResult>();
  return Status();
}

// Answers of the second process that differ from the first's at the same budget in any token.
std::int64_t differing_answers(const PhaseResult& written, const PhaseResult& attached) {
  std::int64_t differing = 0;
  const std::size_t full_lines = written.answers.size() - attached.answers.size();
  for (std::size_t line = 0; line < attached.answers.size(); ++line) {
    const auto& first = written.answers[full_lines + line].tokens;
    const auto& second = attached.answers[line].tokens;
    for (std::size_t i = 0; i < second.size(); ++i) differing += first[i] != second[i];
  }
  return differing;
}

void print_table(const PhaseResult& written, const PhaseResult& attached) {
  Table table({"process", "attention", "right", "lost", "hot memory", "of full", "pages/token",
               "cold/token", "tail", "ms/token", "pool hits"});
  for (const PhaseResult* phase : {&written, &attached}) {
    for (const Line& line : phase->lines) {
      const bool full = line.attention == "full";
      table.add({line.process, line.attention,
                 std::to_string(line.right) + " of " + std::to_string(line.questions),
                 full ? "–" : std::to_string(line.lost), bytes_text(line.hot_bytes),
                 percent_text(line.hot_bytes / line.full_bytes),
                 full ? "–" : number_text(line.pages, 0), full ? "–" : bytes_text(line.cold_bytes),
                 full ? "–" : percent_text(line.tail_share), number_text(line.ms_per_token, 1),
                 full ? "–" : percent_text(line.hit_rate)});
    }
  }
  const double with_prefill = written.prefill_ms + written.seal_ms + written.first_question_ms;
  const double after_attach = attached.attach_ms + attached.first_question_ms;
  std::cout << "\nA document of " << written.prefill_tokens << " tokens with "
            << written.lines[0].questions << " hidden facts, " << bytes_text(written.stored_bytes)
            << " stored; pages per layer and KV head.\n\n"
            << table.text() << "\nFirst answer after " << number_text(with_prefill / 1000, 2)
            << " s with prefill (" << number_text(written.prefill_ms / 1000, 2) << " prefill, "
            << number_text(written.seal_ms / 1000, 2) << " seal and store, "
            << number_text(written.first_question_ms / 1000, 2) << " question),\nafter "
            << number_text(after_attach / 1000, 2) << " s attached ("
            << number_text(attached.attach_ms / 1000, 2) << " attach, "
            << number_text(attached.first_question_ms / 1000, 2)
            << " question): " << number_text(with_prefill / after_attach, 1)
            << " times sooner.\nThe second process answered like the first, token by token.\n";
}

void print_json(const PhaseResult& written, const PhaseResult& attached) {
  Report report("demo");
  for (const PhaseResult* phase : {&written, &attached}) {
    for (const Line& line : phase->lines) {
      const auto add = [&](const char* name, double value, const char* unit) {
        report.add({.name = name,
                    .params = {{"process", line.process}, {"attention", line.attention}},
                    .value = value,
                    .unit = unit});
      };
      add("right", static_cast<double>(line.right), "questions");
      add("lost", static_cast<double>(line.lost), "questions");
      add("hot_bytes", line.hot_bytes, "bytes");
      add("full_bytes", line.full_bytes, "bytes");
      add("rows_per_token", line.rows, "rows/head");
      add("pages_per_token", line.pages, "pages/head");
      add("cold_bytes_per_token", line.cold_bytes, "bytes");
      add("tail_share", line.tail_share, "share");
      add("decode_ms_per_token", line.ms_per_token, "ms/token");
      add("pool_hit_rate", line.hit_rate, "share");
    }
  }
  const double with_prefill = written.prefill_ms + written.seal_ms + written.first_question_ms;
  const double after_attach = attached.attach_ms + attached.first_question_ms;
  report.add({.name = "prefill_tokens",
              .params = {{"process", "second"}},
              .value = static_cast<double>(attached.prefill_tokens),
              .unit = "tokens"});
  report.add({.name = "first_token_ms",
              .params = {{"process", "second"}},
              .value = after_attach,
              .unit = "ms",
              .against = "prefill",
              .ratio = after_attach / with_prefill,
              .better = "lower"});
  std::cout << report.json();
}

Status run() {
  PhaseResult written;
  if (!FLAGS_phase.empty()) {
    ICE_TRY(const std::string text, read_file(FLAGS_store + "/demo.json"));
    written = Json::parse(text).get<PhaseResult>();
    ICE_TRY(FLAGS_phase == "write" ? write_phase(FLAGS_store, written)
                                   : attach_phase(FLAGS_store, written));
    std::ofstream(FLAGS_store + "/demo.json") << Json(written).dump();
    return Status();
  }
  std::string store = FLAGS_store;
  if (store.empty()) {
    store = (std::filesystem::temp_directory_path() / "icefield-demo-XXXXXX").string();
    if (mkdtemp(store.data()) == nullptr) {
      return Status(Code::kInvalidArgument, "no temporary directory can be made; give --store=DIR");
    }
  } else {
    std::error_code error;
    std::filesystem::create_directories(store, error);
  }
  Status status = run_process("write", store, written);
  PhaseResult attached{.full_right = written.full_right};
  if (status.ok()) status = run_process("attach", store, attached);
  if (FLAGS_store.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(store, ignored);
  }
  ICE_TRY(status);
  if (const std::int64_t differing = differing_answers(written, attached); differing != 0) {
    return Status(Code::kInternal, std::to_string(differing) +
                                       " answers of the second process differ from the first's");
  }
  if (FLAGS_json) {
    print_json(written, attached);
  } else {
    print_table(written, attached);
  }
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  icefield::parse_command_line(argc, argv, icefield::kUsage);
  const icefield::Status status = icefield::run();
  return status.ok() ? 0 : icefield::fail(status);
}
