// icefield run — answers questions about a document with clustered attention.
#include <gflags/gflags.h>

#include <fstream>
#include <iostream>

#include "engine/sampler.h"
#include "tools/cluster_flags.h"
#include "tools/command_line.h"
#include "tools/report.h"
#include "tools/session.h"

DEFINE_string(document, "", "text file (UTF-8) that the questions are about; - for standard input");
DEFINE_string(ask, "", "one question");
DEFINE_string(questions, "", "text file with one question per line");
DEFINE_string(model, "", "GGUF file; empty: what ./dev model fetched");
DEFINE_string(store, "", "directory that keeps the document's context; empty: memory only");
DEFINE_string(cluster, "",
              "nodes that keep contexts, \"host:port,host:port\"; empty: a node in this process");
DEFINE_string(token_file, "", "file whose first token opens the nodes of --cluster");
DEFINE_string(lanes, "auto", "to the nodes of --cluster: auto, tcp or shared_memory");
DEFINE_string(namespace, "default", "contexts of different namespaces are never shared");
DEFINE_string(budget, "256", "tokens attended exactly per KV head beyond sink and window, or all");
DEFINE_string(breadth, "rule",
              "clusters' tokens ranked per budget token at least, all, or rule: 32, and at least "
              "8192 tokens");
DEFINE_int32(group_tokens, 1, "question tokens that share a selection, 1 to 16");
DEFINE_int64(dense_suffix_tokens, 64,
             "a longer rest of a document that is stored in part is "
             "computed with full attention");
DEFINE_string(prompt, "auto",
              "chat: the model's chat template; raw: document, blank line, question, which the "
              "answer continues; auto: chat where the template is known, else raw");
DEFINE_int64(max_tokens, 64, "most tokens of an answer");
DEFINE_double(temperature, 0, "0: always the most likely token");
DEFINE_uint64(seed, 1, "of the sampling");
DEFINE_double(coverage_floor, 0, "fail when less than this share of the attention is fault-free");
DEFINE_int64(pool_bytes, 0, "hot pool; 0: room for 4 times the budget");
DEFINE_int32(page_rows, 1, "rows of a page: 1, 2, 4, 8 or 16");
DEFINE_string(on_miss, "fetch",
              "pages that are not in the hot pool: fetch waits for them, tail does not (they come "
              "for a later token)");
DEFINE_string(device, "cpu", "what attends: cpu or cuda");
DEFINE_int64(dram_bytes, std::int64_t{1} << 30, "memory of the embedded cache node");
DEFINE_int32(threads, 0, "0: one per core");
DEFINE_bool(json, false, "print one JSON object instead of text");

namespace icefield {
namespace {

constexpr char kUsage[] =
    R"(icefield run — answers questions about a document, keeping a fraction of its KV cache at hand

The document is prefilled once, clustered and stored; answers attend --budget tokens per head
exactly and the rest through cluster means. With --store, the next run attaches without prefill.

  icefield run --document=report.txt --ask="Who wrote the report?" --budget=64 --store=/tmp/store
)";

struct Question {
  std::string text;
  std::vector<TokenId> prompt;
  std::string answer;
  std::int64_t tokens = 0;
  double first_token_ms = 0;
  std::int64_t decoded = 0;  // tokens of the answer that were computed for the one after them
  double decode_ms = 0;
};

Result<std::vector<Question>> read_questions() {
  std::vector<Question> questions;
  if (!FLAGS_ask.empty()) questions.push_back({.text = FLAGS_ask});
  if (!FLAGS_questions.empty()) {
    ICE_TRY(const std::string text, read_file(FLAGS_questions));
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" \t\r") != std::string::npos) questions.push_back({.text = line});
    }
  }
  if (questions.empty()) {
    return Status(Code::kInvalidArgument, "nothing to ask: give --ask=\"…\" or --questions=FILE");
  }
  return questions;
}

Result<std::string> read_document() {
  std::string text;
  if (FLAGS_document == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else if (!FLAGS_document.empty()) {
    ICE_TRY(text, read_file(FLAGS_document));
  } else {
    return Status(Code::kInvalidArgument, "no document: give --document=FILE");
  }
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
    return Status(Code::kInvalidArgument, "document " + FLAGS_document + " is empty");
  }
  return text;
}

Result<AttendOptions> attend_options(std::int64_t& pool_budget) {
  ICE_TRY(const std::int64_t budget, parse_number("budget", FLAGS_budget, 0));
  AttendOptions options{.budget = budget == kAllNumber ? kBudgetAll : budget,
                        .coverage_floor = static_cast<float>(FLAGS_coverage_floor)};
  ICE_TRY(const std::vector<std::int32_t> breadths, parse_breadths(FLAGS_breadth));
  if (breadths.size() != 1) return Status(Code::kInvalidArgument, "--breadth: one, please");
  options.breadth = breadths[0];
  if (FLAGS_on_miss != "fetch" && FLAGS_on_miss != "tail") {
    return Status(Code::kInvalidArgument,
                  "--on_miss=" + FLAGS_on_miss + ": expected fetch or tail");
  }
  options.on_miss = FLAGS_on_miss == "tail" ? OnMiss::kTail : OnMiss::kFetch;
  pool_budget = budget == kAllNumber ? 256 : budget;
  return options;
}

// Generates the answer, printing tokens as they come.
Status answer(Session& session, const Context& document, const ChatFrame& frame,
              const AttendOptions& attend, Question& question) {
  const Tokenizer& tokenizer = session.model().tokenizer();
  Context context = session.worker().fork(document);
  std::vector<TokenId> stop = session.model().end_tokens();
  stop.insert(stop.end(), frame.stop.begin(), frame.stop.end());
  Sampler sampler(FLAGS_temperature, FLAGS_seed);
  auto begin = std::chrono::steady_clock::now();
  ICE_TRY(std::span<const float> logits,
          session.decoder().forward(context, question.prompt,
                                    {.attend = attend, .group_tokens = FLAGS_group_tokens}));
  question.first_token_ms = ms_since(begin);
  begin = std::chrono::steady_clock::now();
  const bool raw = frame.after.empty();
  while (question.tokens < FLAGS_max_tokens) {
    const TokenId token = sampler.next(logits);
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) break;
    const std::string piece = tokenizer.decode(std::span(&token, 1));
    // A raw prompt has no end of turn: the answer is the rest of the question's line.
    const std::size_t line_end = raw ? piece.find('\n') : std::string::npos;
    question.answer += piece.substr(0, line_end);
    if (!FLAGS_json) std::cout << piece.substr(0, line_end) << std::flush;
    ++question.tokens;
    if (line_end != std::string::npos || question.tokens == FLAGS_max_tokens) break;
    if (context.token_count() == session.model().config().max_positions) break;
    ICE_TRY(logits, session.decoder().forward(context, std::span(&token, 1), {.attend = attend}));
    ++question.decoded;
  }
  question.decode_ms = ms_since(begin);
  return Status();
}

nlohmann::ordered_json run_params() {
  return {{"budget", FLAGS_budget}, {"breadth", FLAGS_breadth}};
}

// What one run did, for the summary line and for --json.
struct Summary {
  const Session::Opened& opened;
  StepReport steps;
  double hot_bytes = 0;
  double full_bytes = 0;
  double first_token_ms = 0;
  double tokens_per_second = 0;
};

Summary summarize(Session& session, const Session::Opened& opened,
                  std::span<const Question> questions) {
  double decode_ms = 0;
  std::int64_t decoded = 0;
  for (const Question& question : questions) {
    decode_ms += question.decode_ms;
    decoded += question.decoded;
  }
  const Context* contexts[] = {&opened.context};
  return {
      .opened = opened,
      .steps = session.decoder().take_report(),
      .hot_bytes = static_cast<double>(session.worker().hot_bytes(contexts)),
      .full_bytes = static_cast<double>(opened.context.token_count() *
                                        session.model().config().kv.token_bytes()),
      .first_token_ms =
          opened.attach_ms + opened.prefill_ms + opened.seal_ms + questions[0].first_token_ms,
      .tokens_per_second = decode_ms > 0 ? 1000.0 * static_cast<double>(decoded) / decode_ms : 0};
}

void print_json(const Summary& run, std::span<const Question> questions) {
  Report report("run");
  const auto add = [&](const char* name, double value, const char* unit) {
    report.add({.name = name, .params = run_params(), .value = value, .unit = unit});
  };
  add("prefill_tokens", static_cast<double>(run.opened.prefill_tokens), "tokens");
  add("attached_tokens", static_cast<double>(run.opened.attached_tokens), "tokens");
  add("prefill_ms", run.opened.prefill_ms, "ms");
  add("seal_ms", run.opened.seal_ms, "ms");
  add("attach_ms", run.opened.attach_ms, "ms");
  add("first_token_ms", run.first_token_ms, "ms");
  add("tokens_per_second", run.tokens_per_second, "tokens/s");
  add("hot_bytes", run.hot_bytes, "bytes");
  add("full_bytes", run.full_bytes, "bytes");
  add("tail_share", run.steps.tail_share(), "share");
  add("coverage", static_cast<double>(run.steps.coverage_min), "share");
  nlohmann::ordered_json answers = nlohmann::ordered_json::array();
  for (const Question& question : questions) {
    answers.push_back({{"question", question.text},
                       {"answer", question.answer},
                       {"tokens", question.tokens},
                       {"first_token_ms", question.first_token_ms}});
  }
  std::cout << report.json({{"answers", answers}});
}

void print_summary(const Summary& run) {
  std::cout << "\n";
  if (run.opened.attached_tokens > 0) {
    std::cout << run.opened.attached_tokens << " tokens attached from the store, ";
  }
  std::cout << run.opened.prefill_tokens << " prefilled; first token after "
            << number_text(run.first_token_ms / 1000, 2) << " s, then "
            << number_text(run.tokens_per_second, 1) << " tokens/s; hot "
            << bytes_text(run.hot_bytes) << " of " << bytes_text(run.full_bytes) << " ("
            << percent_text(run.hot_bytes / run.full_bytes) << "); tail share "
            << percent_text(run.steps.tail_share()) << "\n";
  if (run.steps.page_failures > 0) {
    std::cerr << "warning: " << run.steps.page_failures << " pages could not be read ("
              << run.steps.first_fault.to_string() << "); coverage at least "
              << percent_text(static_cast<double>(run.steps.coverage_min)) << "\n";
  }
}

Status check_flags() {
  if (FLAGS_prompt != "raw" && FLAGS_prompt != "chat" && FLAGS_prompt != "auto") {
    return Status(Code::kInvalidArgument,
                  "--prompt=" + FLAGS_prompt + ": expected auto, raw or chat");
  }
  ICE_TRY(check_range("group_tokens", FLAGS_group_tokens, 1, kMaxQueryTokens));
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  ICE_TRY(check_range("dense_suffix_tokens", FLAGS_dense_suffix_tokens, 0, kMost));
  ICE_TRY(check_range("max_tokens", FLAGS_max_tokens, 1, kMost));
  if (!FLAGS_cluster.empty() && !FLAGS_store.empty()) {
    return Status(Code::kInvalidArgument,
                  "--store is of a node in this process, --cluster of others: give one of them");
  }
  if (!(FLAGS_temperature >= 0)) {
    return Status(Code::kInvalidArgument, "--temperature must be 0 or more");
  }
  return Status();
}

// What stands around document and question.
Result<ChatFrame> frame_of(const Model& model) {
  if (FLAGS_prompt != "raw") {
    Result<ChatFrame> chat = chat_frame(model.file(), model.tokenizer());
    if (chat.has_value() || FLAGS_prompt == "chat") return chat;
  }
  ChatFrame raw;
  if (const std::optional<TokenId> begin = model.tokenizer().begin_token()) raw.before = {*begin};
  return raw;
}

// The tokens of the document, behind what the prompt begins with.
Result<std::vector<TokenId>> document_tokens(const Model& model, const ChatFrame& frame,
                                             const std::string& text) {
  ICE_TRY(const std::vector<TokenId> body, model.tokenizer().encode(text));
  std::vector<TokenId> tokens = frame.before;
  tokens.insert(tokens.end(), body.begin(), body.end());
  const std::int64_t room = model.config().max_positions;
  if (static_cast<std::int64_t>(tokens.size()) >= room) {
    return Status(Code::kInvalidArgument, "document of " + std::to_string(tokens.size()) +
                                              " tokens, but the model has " + std::to_string(room) +
                                              " positions; shorten the document");
  }
  return tokens;
}

// The tokens of every question; one must fit behind the document. Checked before the prefill.
Status encode_questions(const Model& model, const ChatFrame& frame, std::size_t document_tokens,
                        std::vector<Question>& questions) {
  for (Question& question : questions) {
    ICE_TRY(question.prompt, model.tokenizer().encode("\n\n" + question.text));
    question.prompt.insert(question.prompt.end(), frame.after.begin(), frame.after.end());
    const auto total = static_cast<std::int64_t>(document_tokens + question.prompt.size());
    if (total <= model.config().max_positions) continue;
    return Status(Code::kInvalidArgument,
                  "document and question \"" + question.text + "\" of " + std::to_string(total) +
                      " tokens, but the model has " + std::to_string(model.config().max_positions) +
                      " positions; shorten one of them");
  }
  return Status();
}

Status run() {
  ICE_TRY(std::vector<Question> questions, read_questions());
  ICE_TRY(const std::string text, read_document());
  std::int64_t pool_budget = 0;
  ICE_TRY(const AttendOptions attend, attend_options(pool_budget));
  ICE_TRY(check_flags());
  std::optional<ClusterClient::Options> cluster;
  if (!FLAGS_cluster.empty()) {
    ICE_TRY(cluster, cluster_options(FLAGS_cluster, FLAGS_token_file, FLAGS_lanes));
  }
  ICE_TRY(std::unique_ptr<Session> session,
          Session::open({.model_path = FLAGS_model.empty() ? default_model_path() : FLAGS_model,
                         .cluster = std::move(cluster),
                         .store = FLAGS_store,
                         .name_space = FLAGS_namespace,
                         .dram_bytes = FLAGS_dram_bytes,
                         .pool_bytes = FLAGS_pool_bytes,
                         .pool_budget = pool_budget,
                         .page_rows = FLAGS_page_rows,
                         .device = FLAGS_device,
                         .threads = FLAGS_threads}));
  const Model& model = session->model();
  ICE_TRY(attend.validate(model.config().kv.layer_count));
  ICE_TRY(
      check_range("group_tokens", FLAGS_group_tokens, 1, session->worker().most_group_tokens()));
  ICE_TRY(const ChatFrame frame, frame_of(model));
  ICE_TRY(const std::vector<TokenId> tokens, document_tokens(model, frame, text));
  ICE_TRY(encode_questions(model, frame, tokens.size(), questions));
  ICE_TRY(Session::Opened opened,
          session->open_document(tokens, FLAGS_dense_suffix_tokens, attend));
  if (opened.miss.reason() == MissReason::kFingerprint && !FLAGS_json) {
    std::cerr << "note: " << opened.miss.message() << "; the document is computed anew\n";
  }
  (void)session->decoder().take_report();
  for (Question& question : questions) {
    const bool raw = frame.after.empty();
    if (!FLAGS_json) std::cout << question.text << (raw ? "" : "\n") << std::flush;
    ICE_TRY(answer(*session, opened.context, frame, attend, question));
    if (!FLAGS_json) std::cout << "\n";
  }
  const Summary summary = summarize(*session, opened, questions);
  if (FLAGS_json) {
    print_json(summary, questions);
  } else {
    print_summary(summary);
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
