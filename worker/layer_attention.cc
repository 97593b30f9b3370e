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

void copy_queries(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                  float* q) {
  const std::int64_t heads = static_cast<std::int64_t>(shape.kv.kv_head_count) * shape.query_group;
  const std::int64_t first_head = static_cast<std::int64_t>(group.kv_head) * shape.query_group;
  const std::int64_t width = static_cast<std::int64_t>(shape.query_group) * shape.kv.d_k;
  const auto tokens = static_cast<std::int64_t>(call.items[group.item].tokens.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t token = call.first_token[group.item] + t;
    std::copy_n(call.q + (token * heads + first_head) * shape.kv.d_k, width, q + t * width);
  }
}

void write_result(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                  const float* out) {
  const std::int64_t heads = static_cast<std::int64_t>(shape.kv.kv_head_count) * shape.query_group;
  const std::int64_t first_head = static_cast<std::int64_t>(group.kv_head) * shape.query_group;
  const std::int64_t width = static_cast<std::int64_t>(shape.query_group) * shape.kv.d_v;
  const auto tokens = static_cast<std::int64_t>(call.items[group.item].tokens.size());
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t token = call.first_token[group.item] + t;
    std::copy_n(out + t * width, width, call.out + (token * heads + first_head) * shape.kv.d_v);
  }
}

void hide_later_tokens(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                       std::int32_t* hidden) {
  const auto tokens = static_cast<std::int32_t>(call.items[group.item].tokens.size());
  for (std::int32_t t = 0; t < tokens; ++t) {
    std::fill_n(hidden + t * shape.query_group, shape.query_group, tokens - 1 - t);
  }
}

}  // namespace icefield
