// bench/support/head_fixture.h — one (segment, layer, KV head) with realistic keys, built and ready
// for the kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/bytes.h"
#include "common/rng.h"
#include "kernels/kernels.h"

namespace icefield {

// A normal variable of mean 0 and variance 1.
float normal(Rng& rng);

// K/V rows [rows, d_k + d_v] in token order: runs of tokens share a topic (so that there is
// something to cluster), a few channels have a large common mean, as real keys have.
std::vector<Bf16> random_rows(Rng& rng, std::int32_t rows, std::int32_t d_k, std::int32_t d_v);

// Query rows [count, d]: some look for the key of a random row, some for nothing.
std::vector<float> random_queries(Rng& rng, const std::vector<Bf16>& rows, std::int32_t count,
                                  std::int32_t d_k, std::int32_t d_v);

// What describes the partition of a head, and the index that points into it.
struct HeadParts {
  AlignedBytes lists;
  AlignedBytes clusters;
  AlignedBytes codes;
  HeadIndex index;

  // Of rows in stored order; the shape has one head.
  void describe(const Kernels& kernels, const PartShape& shape, const Partition& partition,
                const Bf16* stored_rows);
};

struct HeadFixture : HeadParts {
  std::int32_t d_k = 0;
  std::int32_t d_v = 0;
  std::vector<Bf16> rows;  // [row_count, d_k + d_v] in token order; empty after build() alone
  std::vector<Bf16, AlignedAllocator<Bf16>> stored_rows;  // in stored order, aligned as in pools
  Partition partition;

  // `first_indexed_row` is 0 or kSinkTokens. Stops the test when the kernels refuse the rows.
  static std::unique_ptr<HeadFixture> make(const Kernels& kernels, std::vector<Bf16> rows,
                                           std::int32_t d_k, std::int32_t d_v,
                                           std::int32_t first_indexed_row);
  // The same with rows of the caller's, [shape.row_count, d_k + d_v]; the shape has one head.
  void build(const Kernels& kernels, const Bf16* token_rows, const PartShape& shape);

  const Bf16* stored_row(std::int32_t row) const {
    return stored_rows.data() + static_cast<std::int64_t>(row) * (d_k + d_v);
  }
};

}  // namespace icefield
