// bench/baselines/exact_scan.h — no index: every key is scored, the best are attended.
#pragma once

#include "bench/baselines/scan_kernels.h"
#include "bench/support/clustered_method.h"

namespace icefield {

struct ExactScanOptions {
  enum class Keys : std::uint8_t {
    kBf16 = 0,  // as they are stored, multiplied in fp32
    kInt8 = 1,  // one scale per key and per query row
  };
  Keys keys = Keys::kBf16;
  // With: what is not selected counts through the means of our clusters, weighed by its own logits.
  // That is the best that ranking could reach. Without: it is dropped.
  bool tail = true;
};

class ExactScan final : public Method {
 public:
  // `index` has been built by the time of build(); its time is not part of this one's.
  ExactScan(const Kernels& kernels, const KeySet& set, const ClusteredIndex& index,
            const ExactScanOptions& options);

  void build() override;
  void select(const MethodQuery& query) override;
  void attend(const MethodQuery& query, Partial result) override;
  std::vector<std::int32_t> selected() const override;
  MethodCost cost() const override;
  std::int64_t index_bytes() const override;

 private:
  const Kernels& kernels_;
  const KeySet& set_;
  const ClusteredIndex& index_;
  const ExactScanOptions options_;

  Bf16Vectors bf16_;  // keys in the stored order of the index
  Int8Vectors int8_;
  std::vector<float> logit_, vote_, scratch_, attend_scratch_;
  std::vector<float> cluster_logit_;     // not looked at: every cluster is a candidate
  std::vector<std::uint8_t> candidate_;  // all 1
  std::vector<Scored> best_;
  std::vector<TableRow> selected_;
  std::vector<RowRun> runs_;
};

}  // namespace icefield
