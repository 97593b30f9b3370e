// tests/support/level_checks.h — whether two kernels describe the same clusters alike.
#pragma once

#include "bench/support/head_fixture.h"

namespace icefield {

// Statistics and slope of one level: integers may differ by one where a quotient is a tie.
void expect_same_level(const LevelView& ours, const LevelView& theirs);

// Σ ‖k - μ‖² over the rows of a level's clusters, μ the dequantised mean; rows [rows, d_k + d_v] in
// stored order.
double squared_error(const LevelView& clusters, const Bf16* rows);

// Σ (x - decoded)² of the rotated residuals of the rows of a level's clusters, and Σ x².
struct CodeError {
  double error = 0;
  double power = 0;
};
CodeError code_error(const LevelView& clusters, const CodesView& codes, const Bf16* rows);

// All of the above for a head and what the reference says of its partition. Of the error that the
// reference's codes leave, the head's may leave 0.2 % more (1 % where a key has fewer than 64
// dimensions).
void expect_same_index(const HeadFixture& head);

}  // namespace icefield
