#include "tests/support/selection_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace icefield {
namespace {

// The smallest vote of what is in, among items [first, first + count).
float cut_of(const std::vector<float>& votes, const std::vector<std::uint8_t>& in,
             std::int32_t first, std::int32_t count) {
  float cut = HUGE_VALF;
  for (std::int32_t i = first; i < first + count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (in[at] != 0) cut = std::min(cut, votes[at]);
  }
  return cut;
}

// One byte per row of the table, 1: selected. Checks that they ascend and are indexed.
std::vector<std::uint8_t> marks_of(std::span<const HeadIndex> table,
                                   const std::vector<TableRow>& selected) {
  std::vector<std::int32_t> first_row = {0};
  for (const HeadIndex& segment : table) {
    first_row.push_back(first_row.back() + segment.codes.row_count);
  }
  std::vector<std::uint8_t> marks(static_cast<std::size_t>(first_row.back()), 0);
  std::int32_t before = -1;
  for (const TableRow& at : selected) {
    if (at.segment < 0 || at.segment >= static_cast<std::int32_t>(table.size())) {
      ADD_FAILURE() << "segment " << at.segment;
      return marks;
    }
    const auto segment = static_cast<std::size_t>(at.segment);
    const std::int32_t index = first_row[segment] + at.row;
    if (at.row < table[segment].first_row || at.row >= table[segment].end_row || index <= before) {
      ADD_FAILURE() << "row " << at.row << " of segment " << at.segment;
      return marks;
    }
    before = index;
    marks[static_cast<std::size_t>(index)] = 1;
  }
  return marks;
}

}  // namespace

std::vector<SelectionPart> selection_parts(std::span<const HeadIndex> table,
                                           const SelectionRule& rule) {
  std::vector<SelectionPart> parts;
  SelectionPart part;
  for (const HeadIndex& segment : table) {
    part.clusters += segment.clusters.count;
    part.rows += segment.codes.row_count;
    if (rule.segment_budgets == nullptr) continue;
    parts.push_back(part);
    part = {.first_cluster = part.first_cluster + part.clusters,
            .first_row = part.first_row + part.rows};
  }
  if (rule.segment_budgets == nullptr) parts.push_back(part);
  return parts;
}

void expect_same_candidates(const std::vector<SelectionPart>& parts,
                            const std::vector<std::uint8_t>& ours,
                            const std::vector<std::uint8_t>& theirs,
                            const std::vector<float>& votes, float tolerance) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (const SelectionPart& part : parts) {
    const float cut = cut_of(votes, theirs, part.first_cluster, part.clusters);
    for (std::int32_t c = part.first_cluster; c < part.first_cluster + part.clusters; ++c) {
      const auto at = static_cast<std::size_t>(c);
      ASSERT_LE(ours[at], 1) << "cluster " << c << " was not written";
      if (ours[at] == theirs[at]) continue;
      if (std::abs(votes[at] - kReachingVote) <= tolerance * kReachingVote) continue;
      ASSERT_NEAR(votes[at], cut, tolerance * (1e-6f + cut)) << "cluster " << c;
    }
  }
}

void expect_same_rows(std::span<const HeadIndex> table, const std::vector<SelectionPart>& parts,
                      const std::vector<TableRow>& ours, const std::vector<TableRow>& theirs,
                      const std::vector<float>& votes, float tolerance) {
  ASSERT_EQ(ours.size(), theirs.size());
  const std::vector<std::uint8_t> mine = marks_of(table, ours);
  const std::vector<std::uint8_t> others = marks_of(table, theirs);
  for (const SelectionPart& part : parts) {
    const float cut = cut_of(votes, others, part.first_row, part.rows);
    for (std::int32_t row = part.first_row; row < part.first_row + part.rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (mine[at] == others[at]) continue;
      ASSERT_NEAR(votes[at], cut, tolerance * std::max(1e-30f, std::abs(cut))) << "row " << row;
    }
  }
}

}  // namespace icefield
