#include "worker/layer_attention.h"

#include <algorithm>

namespace icefield {
namespace {

// Where the query heads of `group` begin in an array [tokens, heads, d], of the group's token `t`.
std::int64_t place_of(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                      std::int64_t t, std::int32_t d) {
  const std::int64_t token = call.first_token[group.item] + t;
  return (token * shape.kv.kv_head_count + group.kv_head) * shape.query_group * d;
}

std::int64_t tokens_of(const LayerCall& call, const LayerGroup& group) {
  return std::ssize(call.items[group.item].tokens);
}

}  // namespace

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
  const std::int64_t width = static_cast<std::int64_t>(shape.query_group) * shape.kv.d_k;
  for (std::int64_t t = 0; t < tokens_of(call, group); ++t) {
    const float* from = call.q + place_of(shape, call, group, t, shape.kv.d_k);
    std::copy_n(from, width, q + t * width);
  }
}

void write_result(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                  const float* out) {
  const std::int64_t width = static_cast<std::int64_t>(shape.query_group) * shape.kv.d_v;
  for (std::int64_t t = 0; t < tokens_of(call, group); ++t) {
    float* to = call.out + place_of(shape, call, group, t, shape.kv.d_v);
    std::copy_n(out + t * width, width, to);
  }
}

void hide_later_tokens(const AttentionShape& shape, const LayerCall& call, const LayerGroup& group,
                       std::int32_t* hidden) {
  const auto tokens = static_cast<std::int32_t>(tokens_of(call, group));
  for (std::int32_t t = 0; t < tokens; ++t) {
    std::fill_n(hidden + t * shape.query_group, shape.query_group, tokens - 1 - t);
  }
}

}  // namespace icefield
