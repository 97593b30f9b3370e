#include "tools/session.h"

#include <glog/logging.h>

#include <thread>

#include "tools/attention_device.h"
#include "tools/progress.h"

namespace icefield {
namespace {

// Nodes that are not there: the engine goes on without them.
bool is_absence(const Status& status) {
  return status.code() == Code::kUnavailable || status.code() == Code::kDeadlineExceeded;
}

}  // namespace

std::int64_t default_pool_bytes(const ModelConfig& config, std::int64_t budget,
                                std::int32_t page_rows) {
  constexpr std::int64_t kRowsPerBudget = 4;
  constexpr std::int64_t kBookkeeping = 24;  // bytes per slot
  const std::int64_t whole = ceil_div(config.max_positions, std::max(page_rows, 1));
  const std::int64_t pages = std::min(kRowsPerBudget * std::max<std::int64_t>(budget, 16), whole);
  const std::int64_t heads =
      static_cast<std::int64_t>(config.kv.layer_count) * config.kv.kv_head_count;
  return std::max<std::int64_t>(1 << 20,
                                heads * pages * (page_rows * config.kv.row_bytes() + kBookkeeping));
}

double ms_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

Result<std::unique_ptr<Session>> Session::open(Options options) {
  std::unique_ptr<Session> session(new Session());
  if (options.threads < 0 || options.threads > 1024) {
    return Status(Code::kInvalidArgument,
                  std::to_string(options.threads) + " threads, expected 1 to 1024");
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  session->threads_ = std::make_unique<ThreadPool>(options.threads == 0 ? cores : options.threads);
  ICE_TRY(session->model_, Model::load(options.model_path));
  if (!options.cluster.has_value()) {
    ICE_TRY(session->node_,
            EmbeddedNode::open({.dram_bytes = options.dram_bytes, .store = options.store}));
  } else {
    ICE_TRY(session->cluster_, ClusterClient::open(*options.cluster));
  }
  const ModelConfig& config = session->model_->config();
  const std::int64_t pool_bytes =
      options.pool_bytes != 0 ? options.pool_bytes
                              : default_pool_bytes(config, options.pool_budget, options.page_rows);
  Worker::Options worker_options{.model = config.kv,
                                 .slice = Slice::whole(config.kv),
                                 .softmax_scale = session->model_->softmax_scale(),
                                 .query_group = config.query_group(),
                                 .name_space = options.name_space,
                                 .fingerprint_text = session->model_->fingerprint().text(),
                                 .pool_bytes = pool_bytes,
                                 .page_rows = options.page_rows,
                                 .fetch_timeout = options.fetch_timeout};
  ICE_TRY(worker_options.validate());
  const AttentionShape shape = Worker::attention_shape(worker_options);
  ICE_TRY(std::unique_ptr<LayerAttention> attention, attention_device(options.device, shape));
  if (options.attention) attention = options.attention(shape, *session->threads_);
  ICE_TRY(session->worker_, Worker::create(std::move(worker_options),
                                           {.kernels = cpu_kernels(),
                                            .threads = *session->threads_,
                                            .store = session->store(),
                                            .executor = session->executor(),
                                            .clock = session->clock_,
                                            .rng = session->rng_},
                                           std::move(attention)));
  session->decoder_ =
      std::make_unique<Decoder>(*session->model_, *session->worker_, *session->threads_);
  return session;
}

Result<Session::Opened> Session::open_document(std::span<const TokenId> tokens,
                                               std::int64_t dense_suffix_tokens,
                                               const AttendOptions& attend) {
  auto begin = std::chrono::steady_clock::now();
  Result<PrefixMatch> found = worker_->match(tokens);
  if (!found.has_value()) {
    if (!is_absence(found.error())) return found.error();
    LOG(WARNING) << "no store: " << found.error().message() << "; the document is computed here";
    found = PrefixMatch{.chain = {}, .miss = found.error()};
  }
  const PrefixMatch& match = *found;
  Opened opened{.context = worker_->new_context(), .miss = match.miss};
  const auto total = static_cast<std::int64_t>(tokens.size());
  if (match.token_count() > 0) {
    const bool dense = total - match.token_count() > dense_suffix_tokens;
    Result<Context> attached =
        worker_->attach(tokens, match, dense ? AttachRows::kAll : AttachRows::kWindow);
    if (attached.has_value()) {
      opened.context = std::move(*attached);
      opened.attached_tokens = match.token_count();
    } else if (attached.error().code() == Code::kNotFound || is_absence(attached.error())) {
      LOG(WARNING) << "stored context cannot be attached, it is computed again: "
                   << attached.error().to_string();
      opened.miss = attached.error();
    } else {
      return attached.error();
    }
    opened.attach_ms = ms_since(begin);
  }
  const auto rest = tokens.subspan(static_cast<std::size_t>(opened.attached_tokens));
  if (rest.empty()) return opened;
  begin = std::chrono::steady_clock::now();
  opened.prefill_tokens = static_cast<std::int64_t>(rest.size());
  if (!opened.context.dense()) {
    ICE_TRY(decoder_->forward(opened.context, rest,
                              {.attend = attend, .group_tokens = worker_->most_group_tokens()}));
    opened.prefill_ms = ms_since(begin);
    return opened;
  }
  {
    Progress progress("prefill", opened.prefill_tokens);
    ICE_TRY(
        decoder_->prefill(opened.context, rest, [&](std::int64_t done) { progress.set(done); }));
  }
  opened.prefill_ms = ms_since(begin);
  begin = std::chrono::steady_clock::now();
  const Status sealed = worker_->seal(opened.context, total).with_context("storing the document");
  if (is_absence(sealed)) {
    LOG(WARNING) << sealed.message() << "; answers attend all of its K/V";
  } else {
    ICE_TRY(sealed);
  }
  opened.seal_ms = ms_since(begin);
  return opened;
}

}  // namespace icefield
