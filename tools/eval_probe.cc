#include "tools/eval_probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace icefield {
namespace {

constexpr double kStrong = 0.1;  // share of a row's attention that makes a token strong
constexpr std::size_t kTopCount = 64;

}  // namespace

SelectionProbe::SelectionProbe(Session& session, const Context& sealed, const Context& dense,
                               const std::vector<std::vector<AlignedBytes>>& orders,
                               const std::vector<EvalArm>& arms, std::vector<EvalSums>& sums)
    : session_(session), dense_(dense), orders_(orders), arms_(arms), sums_(sums) {
  for (std::size_t i = 0; i < arms.size(); ++i) {
    if (!arms[i].ours()) continue;
    twins_.push_back({.arm = i, .context = session.worker().fork(sealed), .step = std::nullopt});
  }
}

SelectionProbe::~SelectionProbe() = default;

Status SelectionProbe::begin_token(TokenId token, bool probed) {
  const auto begin = std::chrono::steady_clock::now();
  probed_ = probed;
  for (Twin& twin : twins_) {
    std::vector<StepItem> items;
    items.push_back(
        {.context = &twin.context, .tokens = {token}, .options = arms_[twin.arm].attend()});
    ICE_TRY(Step step, session_.worker().begin_step(std::move(items)));
    twin.step.emplace(std::move(step));
  }
  spent_ms_ += ms_since(begin);
  return Status();
}

Status SelectionProbe::end_token() {
  const auto begin = std::chrono::steady_clock::now();
  for (Twin& twin : twins_) {
    ICE_TRY(twin.step->finish());
    twin.step.reset();
  }
  spent_ms_ += ms_since(begin);
  return Status();
}

Status SelectionProbe::on_attention(std::int32_t layer, const float* q, const float* k,
                                    const float* v) {
  const auto begin = std::chrono::steady_clock::now();
  const ModelConfig& config = session_.model().config();
  out_.resize(static_cast<std::size_t>(config.query_heads) *
              static_cast<std::size_t>(config.kv.d_v));
  for (Twin& twin : twins_) twin.step->append(layer, k, v);
  if (probed_) {
    true_attention(layer, q);
    for (Twin& twin : twins_) {
      ICE_TRY(twin.step->attend(layer, q, out_.data()));
      for (std::int32_t head = 0; head < config.kv.kv_head_count; ++head) {
        compare(layer, head, twin, sums_[twin.arm]);
      }
    }
  }
  spent_ms_ += ms_since(begin);
  return Status();
}

// Softmax of every query head over the dense context, by token.
void SelectionProbe::true_attention(std::int32_t layer, const float* q) {
  const ModelConfig& config = session_.model().config();
  const std::int64_t width = config.kv.d_k + config.kv.d_v;
  tokens_ = dense_.token_count() + 1;  // with the token under way
  attention_.resize(static_cast<std::size_t>(config.query_heads * tokens_));
  for (std::int32_t h = 0; h < config.query_heads; ++h) {
    if (h % config.query_group() == 0) {
      runs_.clear();
      dense_.append_exact_runs(layer, h / config.query_group(), runs_);
    }
    float* row = attention_.data() + h * tokens_;
    const float* query = q + static_cast<std::int64_t>(h) * config.kv.d_k;
    std::int64_t t = 0;
    for (const RowRun& run : runs_) {
      for (int i = 0; i < __builtin_popcountll(run.mask); ++i, ++t) {
        const Bf16* key = run.rows + i * width;
        float sum = 0;
        for (std::int32_t j = 0; j < config.kv.d_k; ++j) sum += query[j] * bf16_to_float(key[j]);
        row[t] = sum * session_.model().softmax_scale();
      }
    }
    ICE_CHECK(t == tokens_);
    const float largest = *std::max_element(row, row + tokens_);
    double total = 0;
    for (t = 0; t < tokens_; ++t) {
      row[t] = std::exp(row[t] - largest);
      total += static_cast<double>(row[t]);
    }
    for (t = 0; t < tokens_; ++t) row[t] /= static_cast<float>(total);
  }
}

void SelectionProbe::compare(std::int32_t layer, std::int32_t kv_head, const Twin& twin,
                             EvalSums& sums) {
  const std::span<const HeadIndex> table = twin.context.table(layer, kv_head);
  std::set<std::int64_t> selected;  // positions
  for (const TableRow& row : twin.step->selected(0, kv_head)) {
    const auto segment = static_cast<std::size_t>(row.segment);
    const OrderPart order =
        parse_order_part(orders_[segment][static_cast<std::size_t>(layer)]).value();
    selected.insert(twin.context.segments()[segment]->name.first_token +
                    order.heads[static_cast<std::size_t>(kv_head)][row.row]);
  }
  // The indexed tokens outside E: from the sink to where the window begins.
  std::int64_t end = kSinkTokens;
  for (std::size_t s = 0; s < table.size(); ++s) {
    end = twin.context.segments()[s]->name.first_token + table[s].end_row;
  }
  const std::int32_t group = session_.model().config().query_group();
  std::vector<std::pair<float, std::int64_t>> by_mass;
  for (std::int64_t t = kSinkTokens; t < end; ++t) {
    float mass = 0;
    for (std::int32_t h = 0; h < group; ++h) {
      const float share = attention_[static_cast<std::size_t>((kv_head * group + h) * tokens_ + t)];
      mass += share;
      if (static_cast<double>(share) <= kStrong) continue;
      ++sums.strong_pairs;
      sums.strong_misses += !selected.contains(t);
    }
    by_mass.emplace_back(-mass, t);
  }
  const std::size_t top = std::min(kTopCount, by_mass.size());
  std::partial_sort(by_mass.begin(), by_mass.begin() + static_cast<std::ptrdiff_t>(top),
                    by_mass.end());
  for (std::size_t i = 0; i < top; ++i) {
    ++sums.top64_wanted;
    sums.top64_found += selected.contains(by_mass[i].second);
  }
}

}  // namespace icefield
