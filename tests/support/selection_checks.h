// tests/support/selection_checks.h — whether two kernels select the same: candidates and rows may
// differ where votes are as good as equal to the cut (docs/formats/attention.md).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/select.h"

namespace icefield {

// Clusters and rows of the table that select on their own: all, or those of a segment.
struct SelectionPart {
  std::int32_t first_cluster = 0, clusters = 0;
  std::int32_t first_row = 0, rows = 0;
};
std::vector<SelectionPart> selection_parts(std::span<const HeadIndex> table,
                                           const SelectionRule& rule);

// A kernel's C against the reference's, whose votes these are. `tolerance` is relative.
void expect_same_candidates(const std::vector<SelectionPart>& parts,
                            const std::vector<std::uint8_t>& ours,
                            const std::vector<std::uint8_t>& theirs,
                            const std::vector<float>& votes, float tolerance);

// S likewise; ours must be as many rows, ascending.
void expect_same_rows(std::span<const HeadIndex> table, const std::vector<SelectionPart>& parts,
                      const std::vector<TableRow>& ours, const std::vector<TableRow>& theirs,
                      const std::vector<float>& votes, float tolerance);

}  // namespace icefield
