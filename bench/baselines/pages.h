// bench/baselines/pages.h — pages of at most 16 rows that are scored and fetched as a whole; what
// is not fetched is dropped.
#pragma once

#include "bench/baselines/scan_kernels.h"
#include "bench/support/method.h"
#include "kernels/kernels.h"

namespace icefield {

constexpr std::int32_t kPageTokens = 16;

// Rows [first, first + count) of an array of rows.
struct Page {
  std::int32_t first = 0;
  std::int32_t count = 0;
};

// Attends the rows of chosen pages, exactly and without a tail; counts what they cost.
class PageReader {
 public:
  PageReader(const Kernels& kernels, const KeySet& set) : kernels_(kernels), set_(set) {}
  // `rows` [rows, d_k + d_v] and `pages` outlive the calls that follow.
  void reset(const Bf16* rows, const std::vector<Page>* pages) {
    rows_ = rows;
    pages_ = pages;
  }
  void attend(const float* q, const std::vector<std::int32_t>& chosen, Partial result);
  MethodCost cost(const std::vector<std::int32_t>& chosen) const;

 private:
  const Kernels& kernels_;
  const KeySet& set_;
  const Bf16* rows_ = nullptr;
  const std::vector<Page>* pages_ = nullptr;
  std::vector<RowRun> runs_;
};

// Consecutive tokens, ranked by one of two rules; rows of a group vote with the sum of their
// softmaxes over pages.
class PositionalPages final : public Method {
 public:
  enum class Rule : std::uint8_t {
    kMean = 0,   // q·mean of the page's keys
    kBound = 1,  // Quest: Σ_j max(q_j min_j, q_j max_j), an upper bound of the page's logits
  };
  PositionalPages(const Kernels& kernels, const KeySet& set, Rule rule);

  void build() override;
  void select(const MethodQuery& query) override;
  void attend(const MethodQuery& query, Partial result) override;
  std::vector<std::int32_t> selected() const override;
  MethodCost cost() const override;
  std::int64_t index_bytes() const override { return digests_.bytes(); }

 private:
  const KeySet& set_;
  const Rule rule_;
  PageReader reader_;
  std::vector<Page> pages_;  // of tokens
  Int8Vectors digests_;      // mean, or [max, min], which is scanned with [max(q, 0), min(q, 0)]
  std::vector<float> q_, logit_, vote_, scratch_;
  std::vector<Scored> best_;
  std::vector<std::int32_t> chosen_;  // ascending
};

// IceCache's rule. Tokens are grouped by their keys (k-means with a list per 33 tokens, as many as
// its tree has parents), a list is sorted along its first principal direction and cut into pages of
// at most 16, filled evenly. Each query row visits the max(30, 0.0015 N) lists with the best means,
// scores their tokens exactly and ranks pages by their best token; the rows' rankings are merged
// rank by rank until there are budget/16 pages.
class PrincipalPages final : public Method {
 public:
  PrincipalPages(const Kernels& kernels, const KeySet& set);

  void build() override;
  void select(const MethodQuery& query) override;
  void attend(const MethodQuery& query, Partial result) override;
  std::vector<std::int32_t> selected() const override;
  MethodCost cost() const override;
  std::int64_t index_bytes() const override;

  const std::vector<Page>& pages() const { return pages_; }

 private:
  void cut_list(std::vector<std::int32_t>& list, const std::vector<float>& keys);
  // The pages that query row `h` would fetch, best first, into `ranking_`.
  void rank_pages(const float* q, const float* list_logit, std::int32_t wanted);

  const KeySet& set_;
  PageReader reader_;
  std::vector<std::int32_t> order_;  // token of each stored row
  std::vector<Bf16> rows_;           // in stored order
  std::vector<Page> lists_;          // runs of pages
  std::vector<Page> pages_;          // runs of stored rows
  Int8Vectors means_;                // of the lists
  std::vector<float> logit_, token_logit_;
  std::vector<Scored> best_, ranking_;
  std::vector<std::vector<std::int32_t>> rankings_;  // of each query row
  std::vector<std::uint8_t> taken_;                  // by page
  std::vector<std::int32_t> chosen_;                 // ascending
  std::int64_t scored_tokens_ = 0;
};

}  // namespace icefield
