// kernels/attend.h — attention of a group of query rows over exact rows and the tail of what was
// not selected (docs/formats/attention.md steps 6 to 8), and the merge of partial results.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/float_bits.h"
#include "kernels/head_index.h"
#include "kernels/select.h"

namespace icefield {

// Up to 64 rows that stand one after the other; bit i of the mask says whether row i takes part.
struct RowRun {
  static constexpr std::int32_t kMaxRows = 64;

  const Bf16* rows = nullptr;  // [rows, d_k + d_v]: K then V of each
  std::uint64_t mask = 0;
};

// What accounts for a segment in the tail.
enum class Accounting : std::uint8_t {
  kTokens = 0,    // candidate clusters by the codes of their unselected tokens, others by means
  kClusters = 1,  // a shard that stayed silent or was not asked for tokens: clusters' means
  kLists = 2,     // lists' means
};
struct SegmentAccount {
  Accounting by = Accounting::kTokens;
  bool fault = false;  // its terms stand in for something that did not arrive
};

// One partial result of G rows (step 7). A row without terms has lse -inf and 0 everywhere else.
struct Partial {
  float* out = nullptr;    // [G, d_v]
  float* lse = nullptr;    // [G]
  float* tail = nullptr;   // [G] share of the weight that tail terms have
  float* fault = nullptr;  // [G] share of the terms that step 8 put in
  float* drift = nullptr;  // [G] mean of what tail terms' logits exceed their clusters' mean by
};

struct AttendGroup {
  std::int32_t row_count = 0;  // G
  const float* q = nullptr;    // [G, d_k]

  // Exact rows.
  std::int32_t run_count = 0;
  const RowRun* runs = nullptr;
  // [G]: how many of the last rows of the runs row h must not see (causality inside a call); null:
  // it sees all.
  const std::int32_t* hidden = nullptr;

  // Tail; segment_count 0: none.
  std::int32_t segment_count = 0;
  const HeadIndex* segments = nullptr;
  const SegmentAccount* accounts = nullptr;  // [segment_count]; null: all by tokens, no fault
  const float* cluster_logit = nullptr;      // [G, clusters] from propose
  const std::uint8_t* candidate = nullptr;   // [clusters] from propose
  const float* token_logit = nullptr;        // [G, rows] from rank
  // S: exactly the rows of `runs`, in the order of their bits. Ascending.
  std::int32_t selected_count = 0;
  const TableRow* selected = nullptr;
  // [clusters] 1: the rest of this cluster took in a selected row that is missing. null: none.
  const std::uint8_t* faulty = nullptr;

  float* scratch = nullptr;  // attend_scratch_floats()
  Partial result;            // out
};
struct AttendArgs {
  HeadShape shape;
  std::int32_t group_count = 0;
  const AttendGroup* groups = nullptr;
};

// What scratch has room for: query rows handled together, and the rest of a vector.
constexpr std::int64_t kAttendRowsAtOnce = 8;
constexpr std::int64_t kAttendPadding = 16;

// Floats of scratch that a group with a tail needs (one without needs none).
constexpr std::int64_t attend_scratch_floats(std::int32_t row_count, const TableSize& size,
                                             std::int32_t selected_count) {
  return std::min<std::int64_t>(row_count, kAttendRowsAtOnce) *
         (size.clusters + size.lists + selected_count + kAttendPadding);
}

// Rows that a query row may see and query rows are finite; a row with an infinite key may count as
// if it were not there, and other results of such input are not specified.
void attend_reference(const AttendArgs& args);
void attend_cpu(const AttendArgs& args);

// Whether attend_cpu() multiplies tiles (AMX) for the first of `row_count` query rows, eight at a
// time, over so many exact rows.
bool attends_by_tiles(const HeadShape& shape, std::int32_t row_count, std::int64_t exact_rows);

// Merges the partial results of `part_count` shards, in order, in fp32. `result` must not be one of
// the parts.
struct MergeArgs {
  std::int32_t d_v = 0;
  std::int32_t row_count = 0;
  std::int32_t part_count = 0;
  const Partial* parts = nullptr;
  Partial result;  // out
};
void merge_reference(const MergeArgs& args);
void merge_cpu(const MergeArgs& args);

}  // namespace icefield
