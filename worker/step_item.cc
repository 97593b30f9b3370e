#include "worker/step_item.h"

#include <algorithm>

namespace icefield {

Status AttendOptions::validate(std::int32_t layer_count) const {
  const auto bad_budget = [](std::int64_t tokens) { return tokens < 0 && tokens != kBudgetAll; };
  if (bad_budget(budget) || std::any_of(layer_budgets.begin(), layer_budgets.end(), bad_budget)) {
    return Status(Code::kInvalidArgument, "budget must be 0 or more tokens, or all");
  }
  if (!layer_budgets.empty() && layer_budgets.size() != static_cast<std::size_t>(layer_count)) {
    return Status(Code::kInvalidArgument, std::to_string(layer_budgets.size()) +
                                              " layer budgets for " + std::to_string(layer_count) +
                                              " layers");
  }
  if (breadth < 0 && breadth != kRuleBreadth) {
    return Status(Code::kInvalidArgument,
                  "breadth " + std::to_string(breadth) + ", expected 1 or more, all, or the rule");
  }
  if (!(coverage_floor >= 0 && coverage_floor <= 1)) {
    return Status(Code::kInvalidArgument, "coverage floor must be between 0 and 1");
  }
  return Status();
}

std::int64_t AttendOptions::most_budget() const {
  if (layer_budgets.empty()) return budget;
  if (std::ranges::find(layer_budgets, kBudgetAll) != layer_budgets.end()) return kBudgetAll;
  return std::ranges::max(layer_budgets);
}

void StepReport::add(const StepReport& other) {
  attend_groups += other.attend_groups;
  rows_selected += other.rows_selected;
  pages_touched += other.pages_touched;
  page_hits += other.page_hits;
  page_failures += other.page_failures;
  bytes_moved += other.bytes_moved;
  tail_share_sum += other.tail_share_sum;
  tail_rows += other.tail_rows;
  tail_share_max = std::max(tail_share_max, other.tail_share_max);
  coverage_min = std::min(coverage_min, other.coverage_min);
  if (first_fault.ok()) first_fault = other.first_fault;
}

}  // namespace icefield
