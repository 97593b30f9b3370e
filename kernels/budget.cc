#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/select.h"

namespace icefield {

void split_budget(std::int32_t budget, std::int32_t segment_count, const float* mass,
                  const std::int32_t* rows, std::int32_t* budgets) {
  const auto count = static_cast<std::size_t>(segment_count);
  std::fill_n(budgets, count, 0);
  std::int32_t left = std::min(budget, std::accumulate(rows, rows + count, 0));
  std::vector<double> remainder(count);
  std::vector<std::size_t> order(count);
  // Each round shares what is left among the segments that are not full; a round ends with nothing
  // left or fills at least one segment.
  while (left > 0) {
    const auto share = [&](std::size_t s, bool by_mass) {
      if (budgets[s] == rows[s]) return 0.0;
      return by_mass ? static_cast<double>(mass[s]) : static_cast<double>(rows[s]);
    };
    double total = 0;
    for (std::size_t s = 0; s < count; ++s) total += share(s, true);
    const bool by_mass = total > 0;
    for (std::size_t s = 0; !by_mass && s < count; ++s) total += share(s, false);
    const std::int32_t round = left;
    std::int32_t spread = 0;
    for (std::size_t s = 0; s < count; ++s) {
      const double exact = round * share(s, by_mass) / total;
      const auto whole = static_cast<std::int32_t>(std::floor(exact));
      remainder[s] = exact - whole;
      spread += whole;
      const std::int32_t given = std::min(whole, rows[s] - budgets[s]);
      budgets[s] += given;
      left -= given;
    }
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return remainder[a] > remainder[b]; });
    std::int32_t by_remainder = round - spread;
    for (const std::size_t s : order) {
      if (by_remainder == 0 || left == 0) break;
      if (share(s, by_mass) == 0) continue;
      budgets[s] += 1;
      --by_remainder;
      --left;
    }
  }
}

}  // namespace icefield
