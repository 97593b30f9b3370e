// tools/eval_probe.h — compares what an arm would select with what full attention looks at.
#pragma once

#include <memory>
#include <vector>

#include "tools/eval_run.h"

namespace icefield {

// Follows a full-attention pass over a dense context: keeps a clustered twin per arm of ours in
// step with it and, on probed tokens, selects with the same queries and compares S with the true
// attention.
//
// Threads  The decoder's caller.
class SelectionProbe final : public AttentionObserver {
 public:
  // `sealed` is the clustered document, `dense` the context that the pass runs on; orders[s] are
  // the order parts of sealed's segments.
  SelectionProbe(Session& session, const Context& sealed, const Context& dense,
                 const std::vector<std::vector<AlignedBytes>>& orders,
                 const std::vector<EvalArm>& arms, std::vector<EvalSums>& sums);
  ~SelectionProbe() override;

  // Call around every one-token forward() of the pass.
  Status begin_token(TokenId token, bool probed);
  Status end_token();

  Status on_attention(std::int32_t layer, const float* q, const float* k, const float* v) override;

  double spent_ms() const { return spent_ms_; }  // by the probe, not by the pass

 private:
  struct Twin {
    std::size_t arm = 0;
    Context context;
    std::optional<Step> step;
  };
  void true_attention(std::int32_t layer, const float* q);
  void compare(std::int32_t layer, std::int32_t kv_head, const Twin& twin, EvalSums& sums);

  Session& session_;
  const Context& dense_;
  const std::vector<std::vector<AlignedBytes>>& orders_;
  const std::vector<EvalArm>& arms_;
  std::vector<EvalSums>& sums_;
  std::vector<Twin> twins_;
  bool probed_ = false;
  double spent_ms_ = 0;
  std::int64_t tokens_ = 0;
  std::vector<float> attention_;  // [query heads, tokens_] of the layer under way
  std::vector<float> out_;
  std::vector<RowRun> runs_;
};

}  // namespace icefield
