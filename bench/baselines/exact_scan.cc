#include "bench/baselines/exact_scan.h"

#include <algorithm>
#include <cmath>

namespace icefield {
namespace {

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

ExactScan::ExactScan(const Kernels& kernels, const KeySet& set, const ClusteredIndex& index,
                     const ExactScanOptions& options)
    : kernels_(kernels), set_(set), index_(index), options_(options) {}

void ExactScan::build() {
  const std::int32_t rows = index_.size.rows;
  // Of whole panels, as segments are.
  if (options_.keys == ExactScanOptions::Keys::kBf16) {
    std::vector<Bf16> keys;
    keys.reserve(at(static_cast<std::int64_t>(rows) * set_.width()));
    for (const auto& head : index_.heads) {
      keys.insert(keys.end(), head->stored_rows.begin(), head->stored_rows.end());
    }
    bf16_ = Bf16Vectors::make(keys.data(), set_.width(), rows, set_.d_k);
  } else {
    std::vector<float> keys;
    keys.reserve(at(static_cast<std::int64_t>(rows) * set_.d_k));
    for (const auto& head : index_.heads) {
      for (std::int32_t r = 0; r < head->index.codes.row_count; ++r) {
        const Bf16* key = head->stored_row(r);
        for (std::int32_t j = 0; j < set_.d_k; ++j) keys.push_back(bf16_to_float(key[j]));
      }
    }
    int8_ = Int8Vectors::make(keys.data(), rows, set_.d_k);
  }
  logit_.resize(at(static_cast<std::int64_t>(set_.group) * rows));
  vote_.resize(at(rows));
  scratch_.resize(at(rows));
  cluster_logit_.assign(at(static_cast<std::int64_t>(set_.group) * index_.size.clusters), 0.0f);
  candidate_.assign(at(index_.size.clusters), 1);
}

void ExactScan::select(const MethodQuery& query) {
  const std::int32_t rows = index_.size.rows;
  if (options_.keys == ExactScanOptions::Keys::kBf16) {
    scan(bf16_, query.q, set_.group, set_.beta, logit_.data(), rows);
  } else {
    scan(int8_, query.q, set_.group, set_.beta, logit_.data(), rows);
  }
  for (std::int32_t h = 0; h < set_.group; ++h) {  // the sink is attended anyway
    std::fill_n(logit_.data() + static_cast<std::int64_t>(h) * rows, set_.first_indexed,
                -HUGE_VALF);
  }
  softmax_votes(logit_.data(), set_.group, rows, rows, query.exact_lse, scratch_.data(),
                vote_.data());
  const std::int32_t budget = std::min(query.budget, set_.indexed());
  best_.resize(at(top_room(budget)));
  top_scores(vote_.data(), rows, budget, best_.data());
  std::sort(best_.begin(), best_.begin() + budget,
            [](const Scored& a, const Scored& b) { return a.index < b.index; });
  selected_.clear();
  std::int32_t segment = 0;
  std::int32_t first = 0;
  for (std::int32_t i = 0; i < budget; ++i) {
    const std::int32_t row = best_[at(i)].index;
    while (row >= first + index_.segments[at(segment)].codes.row_count) {
      first += index_.segments[at(segment++)].codes.row_count;
    }
    selected_.push_back({segment, row - first});
  }
}

void ExactScan::attend(const MethodQuery& query, Partial result) {
  runs_.clear();
  for (const TableRow& row : selected_) runs_.push_back({.rows = index_.row(row), .mask = 1});
  AttendGroup group{.row_count = set_.group,
                    .q = query.q,
                    .run_count = static_cast<std::int32_t>(runs_.size()),
                    .runs = runs_.data(),
                    .result = result};
  if (options_.tail) {
    group.segment_count = static_cast<std::int32_t>(index_.segments.size());
    group.segments = index_.segments.data();
    group.cluster_logit = cluster_logit_.data();
    group.candidate = candidate_.data();
    group.token_logit = logit_.data();
    group.selected_count = static_cast<std::int32_t>(selected_.size());
    group.selected = selected_.data();
    attend_scratch_.resize(
        at(attend_scratch_floats(set_.group, index_.size, group.selected_count)));
    group.scratch = attend_scratch_.data();
  }
  const HeadShape shape{.d_k = set_.d_k, .d_v = set_.d_v, .beta = set_.beta};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &group});
}

std::vector<std::int32_t> ExactScan::selected() const {
  std::vector<std::int32_t> tokens;
  for (const TableRow& row : selected_) tokens.push_back(index_.token_of(row));
  return tokens;
}

MethodCost ExactScan::cost() const {
  const auto rows = static_cast<std::int64_t>(selected_.size());
  return {.pages = rows,
          .page_bytes = rows * set_.width() * static_cast<std::int64_t>(sizeof(Bf16)),
          .index_bytes_read =
              bf16_.bytes() + int8_.bytes() + (options_.tail ? index_.tail_bytes() : 0)};
}

std::int64_t ExactScan::index_bytes() const {
  return bf16_.bytes() + int8_.bytes() + (options_.tail ? index_.bytes() : 0);
}

}  // namespace icefield
