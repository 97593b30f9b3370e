#include "worker/layer_attention.h"

#include <algorithm>

namespace icefield {

void LayerGroup::drop_missing() {
  std::uint32_t kept = 0;
  for (SelectedPage& page : pages) {
    if (page.missing()) continue;
    const std::uint32_t count = page.end - page.begin;
    std::copy_n(selected.begin() + page.begin, count, selected.begin() + kept);
    page.begin = kept;
    page.end = kept += count;
  }
  std::erase_if(pages, [](const SelectedPage& page) { return page.missing(); });
  selected.resize(kept);
}

}  // namespace icefield
