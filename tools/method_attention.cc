#include "tools/method_attention.h"

#include <algorithm>
#include <utility>

#include "bench/baselines/pages.h"
#include "bench/support/selection_fixture.h"
#include "cluster_index/segment/pieces.h"
#include "common/check.h"

namespace icefield {

// One (layer, KV head) of a document.
struct MethodDocument::Head {
  KeySet set;                             // rows before the window
  std::unique_ptr<ClusteredMethod> ours;  // whose index the exact scans take their tail from
  std::unique_ptr<Method> method;
  // Of the step under way.
  std::vector<float> q;
  std::vector<RowRun> exact_runs;
  PartialBuffer exact, chosen;

  Head(const AttentionShape& shape, const Context& document, std::int32_t layer,
       std::int32_t kv_head);
};

MethodDocument::Head::Head(const AttentionShape& shape, const Context& document, std::int32_t layer,
                           std::int32_t kv_head)
    : set{.d_k = shape.kv.d_k,
          .d_v = shape.kv.d_v,
          .group = shape.query_group,
          .beta = shape.beta,
          .first_indexed = kSinkTokens,
          .end_indexed = static_cast<std::int32_t>(window_begin(document.token_count()))},
      q(static_cast<std::size_t>(set.group * set.d_k)),
      exact(set.group, set.d_v),
      chosen(set.group, set.d_v) {
  ICE_CHECK(document.dense() && set.end_indexed > set.first_indexed);
  std::vector<RowRun> runs;
  document.append_exact_runs(layer, kv_head, runs);
  const auto numbers =
      static_cast<std::size_t>(set.end_indexed) * static_cast<std::size_t>(set.width());
  for (const RowRun& run : runs) {
    const Bf16* end =
        run.rows + static_cast<std::int64_t>(__builtin_popcountll(run.mask)) * set.width();
    set.rows.insert(set.rows.end(), run.rows, end);
    if (set.rows.size() >= numbers) break;
  }
  set.rows.resize(numbers);
}

MethodDocument::MethodDocument(const AttentionShape& shape, const Kernels& kernels,
                               ThreadPool& threads, const Context& document,
                               const TrialMethod& method)
    : name_(method.name) {
  const std::int64_t kv_heads = shape.kv.kv_head_count;
  heads_.resize(static_cast<std::size_t>(shape.kv.layer_count * kv_heads));
  threads.parallel_for(std::ssize(heads_), [&](std::int64_t i) {
    auto head = std::make_unique<Head>(shape, document, static_cast<std::int32_t>(i / kv_heads),
                                       static_cast<std::int32_t>(i % kv_heads));
    head->ours = std::make_unique<ClusteredMethod>(kernels, head->set, kRuleBreadth);
    head->ours->build();
    head->method = method.make(head->set, head->ours->index());
    head->method->build();
    heads_[static_cast<std::size_t>(i)] = std::move(head);
  });
}

MethodDocument::~MethodDocument() = default;

std::int64_t MethodDocument::index_bytes() const {
  std::int64_t sum = 0;
  for (const auto& head : heads_) sum += head->method->index_bytes();
  return sum;
}

void MethodReads::add(const MethodReads& other) {
  groups += other.groups;
  rows_indexed += other.rows_indexed;
  cost.pages += other.cost.pages;
  cost.page_bytes += other.cost.page_bytes;
  cost.index_bytes_read += other.cost.index_bytes_read;
  cost.rows_ranked += other.cost.rows_ranked;
}

MethodAttention::MethodAttention(const AttentionShape& shape, const Kernels& kernels,
                                 ThreadPool& threads)
    : shape_(shape), kernels_(kernels), threads_(threads), cpu_(shape, kernels, threads) {}

MethodAttention::Use MethodAttention::use(MethodDocument& document, std::int64_t budget) {
  document_ = &document;
  budget_ = budget;
  return Use(*this);
}

MethodReads MethodAttention::take_reads() { return std::exchange(reads_, {}); }

Status MethodAttention::attend(const LayerCall& call, PageFinder& pages) {
  if (document_ == nullptr) {
    ICE_TRY(cpu_.attend(call, pages));
    count_worker(call);
    return Status();
  }
  const auto head_of = [&](std::size_t index) -> MethodDocument::Head& {
    const auto first = static_cast<std::size_t>(call.layer * shape_.kv.kv_head_count);
    return *document_->heads_[first + index];
  };
  ICE_CHECK(call.items.size() == 1);
  threads_.parallel_for(std::ssize(call.groups), [&](std::int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    attend_head(call, call.groups[index], head_of(index));
  });
  for (std::size_t i = 0; i < call.groups.size(); ++i) {
    const MethodDocument::Head& head = head_of(i);
    reads_.add({.groups = 1, .rows_indexed = head.set.indexed(), .cost = head.method->cost()});
  }
  return Status();
}

void MethodAttention::attend_head(const LayerCall& call, const LayerGroup& group,
                                  MethodDocument::Head& head) {
  const KeySet& set = head.set;
  ICE_CHECK(group.context->dense() && group.row_count == set.group);
  const HeadShape shape = shape_.head();
  copy_queries(shape_, call, group, head.q.data());
  head.exact_runs.clear();
  head.exact_runs.push_back(
      {.rows = set.row(0), .mask = (std::uint64_t{1} << set.first_indexed) - 1});
  group.context->rows().append_runs(call.layer, group.kv_head, set.end_indexed, head.exact_runs);
  const AttendGroup exact{.row_count = set.group,
                          .q = head.q.data(),
                          .run_count = static_cast<std::int32_t>(head.exact_runs.size()),
                          .runs = head.exact_runs.data(),
                          .result = head.exact.view()};
  kernels_.attend({.shape = shape, .group_count = 1, .groups = &exact});
  // Pages that are not full may each hold one token.
  const std::int64_t everything = static_cast<std::int64_t>(kPageTokens) * set.indexed();
  const std::int64_t budget = budget_ == kBudgetAll ? everything : std::min(budget_, everything);
  const MethodQuery query{.q = head.q.data(),
                          .exact_lse = head.exact.lse.data(),
                          .budget = static_cast<std::int32_t>(budget)};
  head.method->select(query);
  head.method->attend(query, head.chosen.view());
  const PartialBuffer whole = merge(kernels_, set.d_v, {&head.exact, &head.chosen});
  write_result(shape_, call, group, whole.out.data());
}

// What the worker's own attention read: of the index by the kernels' rule, and pages.
void MethodAttention::count_worker(const LayerCall& call) {
  for (std::size_t i = 0; i < call.groups.size(); ++i) {
    const LayerGroup& group = call.groups[i];
    if (!group.indexed) continue;
    const std::span<const HeadIndex> table = group.context->table(call.layer, group.kv_head);
    const auto pages = std::ssize(group.pages);
    MethodReads reads{
        .groups = 1,
        .rows_indexed =
            table_size(table.data(), static_cast<std::int32_t>(table.size())).indexed_rows,
        .cost = {.pages = pages, .page_bytes = pages * shape_.page_bytes()}};
    if (!group.everything) {
      const IndexReads index = index_reads(table, group.context->slope(call.layer, group.kv_head),
                                           cpu_.candidates(i).data());
      reads.cost.index_bytes_read = index.bytes;
      reads.cost.rows_ranked = index.rows_ranked;
    }
    reads_.add(reads);
  }
}

}  // namespace icefield
