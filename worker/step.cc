#include "worker/step.h"

#include <algorithm>
#include <utility>

#include "worker/worker.h"

namespace icefield {

Step::Step(Worker& worker, std::vector<StepItem> items)
    : worker_(&worker), items_(std::move(items)) {
  first_token_.reserve(items_.size());
  for (const StepItem& item : items_) {
    first_token_.push_back(token_count_);
    const auto count = static_cast<std::int64_t>(item.tokens.size());
    token_count_ += count;
    item.context->rows_.extend(item.context->end_ + count);
  }
  approximate_.assign(items_.size(), false);
  if (worker_->groups_.size() < group_count()) worker_->groups_.resize(group_count());
}

Step::Step(Step&& other) noexcept
    : worker_(std::exchange(other.worker_, nullptr)),
      items_(std::move(other.items_)),
      first_token_(std::move(other.first_token_)),
      token_count_(other.token_count_),
      approximate_(std::move(other.approximate_)),
      report_(std::move(other.report_)) {}

Step::~Step() {
  if (worker_ == nullptr) return;
  worker_->pages_.read_behind();  // so that the step, tried again, misses less
  for (const StepItem& item : items_) item.context->rows_.truncate(item.context->end_);
}

std::size_t Step::group_count() const {
  return items_.size() * static_cast<std::size_t>(worker_->slice_shape_.kv_head_count);
}

void Step::append(std::int32_t layer, const float* k, const float* v) {
  const KvShape& shape = worker_->slice_shape_;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    Context& context = *items_[i].context;
    for (std::int64_t t = 0; t < static_cast<std::int64_t>(items_[i].tokens.size()); ++t) {
      for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
        const std::int64_t at = (first_token_[i] + t) * shape.kv_head_count + head;
        Bf16* row = context.rows_.row(layer, head, context.end_ + t);
        for (std::int32_t j = 0; j < shape.d_k; ++j) row[j] = float_to_bf16(k[at * shape.d_k + j]);
        row += shape.d_k;
        for (std::int32_t j = 0; j < shape.d_v; ++j) row[j] = float_to_bf16(v[at * shape.d_v + j]);
      }
    }
  }
}

// The groups of a layer, and how much each selects.
std::span<LayerGroup> Step::set_groups(std::int32_t layer) {
  const std::span groups(worker_->groups_.data(), group_count());
  const std::int32_t heads = worker_->slice_shape_.kv_head_count;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    LayerGroup& group = groups[i];
    group.item = i / static_cast<std::size_t>(heads);
    group.kv_head = static_cast<std::int32_t>(i % static_cast<std::size_t>(heads));
    const StepItem& item = items_[group.item];
    const auto tokens = static_cast<std::int32_t>(item.tokens.size());
    group.context = item.context;
    group.row_count = tokens * worker_->options_.query_group;
    const std::span<const HeadIndex> table = item.context->table(layer, group.kv_head);
    group.indexed = !table.empty();
    group.any_fault = false;
    group.selected.clear();
    group.pages.clear();
    if (!group.indexed) continue;
    const std::int32_t rows =
        table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows;
    const std::int64_t budget = item.options.budget_of(layer);
    group.budget = budget == kBudgetAll ? rows : call_budget(budget, tokens, rows);
    const std::int64_t most = item.options.most_budget();
    group.most_rows = most == kBudgetAll ? rows : call_budget(most, tokens, rows);
    group.everything = group.budget == rows;
  }
  return groups;
}

Status Step::attend(std::int32_t layer, const float* q, float* out) {
  const LayerCall call{.layer = layer,
                       .items = items_,
                       .first_token = first_token_,
                       .q = q,
                       .out = out,
                       .groups = set_groups(layer),
                       .report = &report_};
  ICE_TRY(worker_->attention_->attend(call, worker_->pages_));
  return add_to_report(layer);
}

Status Step::add_to_report(std::int32_t layer) {
  for (const LayerGroup& group : std::span(worker_->groups_.data(), group_count())) {
    if (!group.indexed) continue;
    const StepItem& item = items_[group.item];
    if (!group.everything || group.any_fault) approximate_[group.item] = true;
    report_.attend_groups += 1;
    report_.rows_selected += static_cast<std::int64_t>(group.selected.size());
    for (std::size_t row = 0; row < group.tail.size(); ++row) {
      report_.tail_share_sum += static_cast<double>(group.tail[row]);
      report_.tail_share_max = std::max(report_.tail_share_max, group.tail[row]);
      const float coverage = 1 - group.fault[row];
      report_.coverage_min = std::min(report_.coverage_min, coverage);
      if (coverage < item.options.coverage_floor) {
        const std::string why =
            report_.first_fault.ok() ? "pages not waited for" : report_.first_fault.to_string();
        return Status(Code::kUnavailable,
                      "coverage " + std::to_string(coverage) + " of layer " +
                          std::to_string(worker_->options_.slice.first_layer + layer) +
                          " is below the floor of " + std::to_string(item.options.coverage_floor) +
                          " (" + why + ")");
      }
    }
    report_.tail_rows += group.row_count;
  }
  return Status();
}

Result<StepReport> Step::finish() {
  Worker& worker = *std::exchange(worker_, nullptr);
  worker.pages_.read_behind();
  for (std::size_t i = 0; i < items_.size(); ++i) {
    Context& context = *items_[i].context;
    context.append_tokens(items_[i].tokens);
    if (approximate_[i] && context.exact()) context.approx_tag_ = worker.environment_.rng.next();
    if (!worker.advance_window(context).ok()) worker.seal_failures.add();
  }
  return std::move(report_);
}

std::span<const TableRow> Step::selected(std::size_t item, std::int32_t kv_head) const {
  const auto heads = static_cast<std::size_t>(worker_->slice_shape_.kv_head_count);
  return worker_->groups_[item * heads + static_cast<std::size_t>(kv_head)].selected;
}

}  // namespace icefield
