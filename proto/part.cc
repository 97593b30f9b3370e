#include "proto/part.h"

#include <cmath>
#include <limits>
#include <string_view>

namespace icefield {
namespace {

constexpr std::uint32_t kPartMagic = 0x50454349;  // "ICEP"

// docs/formats/part.md. Followed by the head table, then (L0, L1) γ, (L1 of long segments) slopes,
// then one block per head.
struct PartHeader {
  std::uint32_t magic = kPartMagic;
  std::uint16_t version = kLayoutVersion;
  std::uint8_t kind = 0;
  std::uint8_t reserved0 = 0;
  std::uint16_t layer = 0;
  std::uint16_t first_kv_head = 0;
  std::uint16_t kv_head_count = 0;
  std::uint16_t d_k = 0;
  std::uint16_t d_v = 0;
  std::uint16_t first_indexed_row = 0;
  std::uint32_t row_count = 0;
  std::uint64_t total_bytes = 0;
  std::uint64_t reserved1[4] = {0, 0, 0, 0};
};
static_assert(sizeof(PartHeader) == 64);

struct HeadEntry {
  std::uint64_t offset = 0;  // of the head's block, from the start of the part
  std::uint32_t count = 0;   // clusters, lists or rows
  std::uint32_t reserved = 0;
};
static_assert(sizeof(HeadEntry) == 16);

// Offsets inside the block of one head.
struct LevelOffsets {
  std::int64_t value_means, key_scale, value_scale, ln_count, sigma, token_count, first_row, bytes;
};

LevelOffsets level_offsets(std::int32_t count, std::int32_t d_k, std::int32_t d_v) {
  const std::int64_t padded = MutableLevelView::padded(count);
  std::int64_t at = 0;
  const auto take = [&at](std::int64_t bytes) {
    const std::int64_t begin = at;
    at = round_up(at + bytes, kPartAlign);
    return begin;
  };
  LevelOffsets offsets{};
  take(padded * d_k);
  offsets.value_means = take(static_cast<std::int64_t>(count) * d_v);
  offsets.key_scale = take(padded * 4);
  offsets.value_scale = take(padded * 4);
  offsets.ln_count = take(padded * 4);
  offsets.sigma = take(padded * 2);
  offsets.token_count = take(padded * 2);
  offsets.first_row = take(padded * 2);
  offsets.bytes = at;
  return offsets;
}

struct CodesOffsets {
  std::int64_t scale, check, bytes;
};

CodesOffsets codes_offsets(std::int32_t rows, std::int32_t d_k) {
  const std::int64_t panels = ceil_div(rows, kCodePanel);
  CodesOffsets offsets{};
  offsets.scale = round_up(panels * d_k * 4, kPartAlign);
  offsets.check = round_up(offsets.scale + panels * kCodePanel * 2, kPartAlign);
  offsets.bytes = round_up(offsets.check + static_cast<std::int64_t>(rows) * 4, kPartAlign);
  return offsets;
}

bool has_gamma(PartKind kind) { return kind == PartKind::kLists || kind == PartKind::kClusters; }

bool has_slope(PartKind kind, std::int32_t row_count) {
  return kind == PartKind::kClusters && row_count >= kSlopeTokens;
}

// Offsets of what stands between the head table and the blocks.
struct SharedOffsets {
  std::int64_t gamma, slope_scale, slope, blocks;
};

SharedOffsets shared_offsets(PartKind kind, const PartShape& shape) {
  const std::int64_t heads = shape.kv_head_count;
  SharedOffsets offsets{};
  offsets.gamma = round_up(static_cast<std::int64_t>(sizeof(PartHeader)) +
                               heads * static_cast<std::int64_t>(sizeof(HeadEntry)),
                           kPartAlign);
  offsets.slope_scale = offsets.gamma;
  if (has_gamma(kind)) {
    offsets.slope_scale = round_up(offsets.gamma + heads * shape.d_k * 4, kPartAlign);
  }
  offsets.slope = offsets.blocks = offsets.slope_scale;
  if (has_slope(kind, shape.row_count)) {
    offsets.slope = round_up(offsets.slope_scale + heads * shape.d_k * 4, kPartAlign);
    offsets.blocks = round_up(offsets.slope + heads * shape.d_v * shape.d_k, kPartAlign);
  }
  return offsets;
}

std::int64_t block_bytes(PartKind kind, std::int32_t count, const PartShape& shape) {
  switch (kind) {
    case PartKind::kLists:
    case PartKind::kClusters: return level_offsets(count, shape.d_k, shape.d_v).bytes;
    case PartKind::kCodes: return codes_offsets(count, shape.d_k).bytes;
    default: return round_up(static_cast<std::int64_t>(count) * 2, kPartAlign);
  }
}

AlignedBytes make_part(PartKind kind, const PartShape& shape,
                       std::span<const std::int32_t> counts) {
  ICE_CHECK(counts.size() == static_cast<std::size_t>(shape.kv_head_count));
  std::int64_t at = shared_offsets(kind, shape).blocks;
  std::vector<HeadEntry> table;
  for (const std::int32_t count : counts) {
    table.push_back(
        {.offset = static_cast<std::uint64_t>(at), .count = static_cast<std::uint32_t>(count)});
    at += block_bytes(kind, count, shape);
  }
  AlignedBytes part(static_cast<std::size_t>(at));
  PartHeader header;
  header.kind = static_cast<std::uint8_t>(kind);
  header.layer = static_cast<std::uint16_t>(shape.layer);
  header.first_kv_head = static_cast<std::uint16_t>(shape.first_kv_head);
  header.kv_head_count = static_cast<std::uint16_t>(shape.kv_head_count);
  header.d_k = static_cast<std::uint16_t>(shape.d_k);
  header.d_v = static_cast<std::uint16_t>(shape.d_v);
  header.first_indexed_row = static_cast<std::uint16_t>(shape.first_indexed_row);
  header.row_count = static_cast<std::uint32_t>(shape.row_count);
  header.total_bytes = static_cast<std::uint64_t>(at);
  store(part.data(), header);
  std::memcpy(part.data() + sizeof header, table.data(), table.size() * sizeof(HeadEntry));
  return part;
}

HeadEntry head_entry(const std::byte* part, std::int32_t head_index) {
  return load<HeadEntry>(part + sizeof(PartHeader) +
                         sizeof(HeadEntry) * static_cast<std::size_t>(head_index));
}

PartShape shape_of(const PartHeader& header) {
  return {.layer = header.layer,
          .first_kv_head = header.first_kv_head,
          .kv_head_count = header.kv_head_count,
          .d_k = header.d_k,
          .d_v = header.d_v,
          .row_count = static_cast<std::int32_t>(header.row_count),
          .first_indexed_row = header.first_indexed_row};
}

// Views over a part whose header and table are known to be right. B is std::byte or its const.
template <class View, class B>
View level_at(B* part, const PartHeader& header, std::int32_t head_index) {
  const HeadEntry entry = head_entry(part, head_index);
  View view;
  view.count = view.stored_count = static_cast<std::int32_t>(entry.count);
  view.d_k = header.d_k;
  view.d_v = header.d_v;
  const LevelOffsets offsets = level_offsets(view.count, view.d_k, view.d_v);
  B* block = part + entry.offset;
  const auto place = [](auto*& member, B* at) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(at);
  };
  place(view.key_means, block);
  place(view.value_means, block + offsets.value_means);
  place(view.key_scale, block + offsets.key_scale);
  place(view.value_scale, block + offsets.value_scale);
  place(view.ln_count, block + offsets.ln_count);
  place(view.sigma, block + offsets.sigma);
  place(view.token_count, block + offsets.token_count);
  place(view.first_row, block + offsets.first_row);
  const auto kind = static_cast<PartKind>(header.kind);
  const SharedOffsets shared = shared_offsets(kind, shape_of(header));
  const std::int64_t head = head_index;
  place(view.gamma, part + shared.gamma + head * view.d_k * 4);
  if (has_slope(kind, static_cast<std::int32_t>(header.row_count))) {
    place(view.slope_scale, part + shared.slope_scale + head * view.d_k * 4);
    place(view.slope, part + shared.slope + head * view.d_v * view.d_k);
  }
  return view;
}

template <class View, class B>
View codes_at(B* part, const PartHeader& header, std::int32_t head_index) {
  const HeadEntry entry = head_entry(part, head_index);
  View view;
  view.row_count = static_cast<std::int32_t>(entry.count);
  view.d_k = header.d_k;
  const CodesOffsets offsets = codes_offsets(view.row_count, view.d_k);
  B* block = part + entry.offset;
  const auto place = [](auto*& member, B* at) {
    member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(at);
  };
  place(view.codes, block);
  place(view.scale, block + offsets.scale);
  place(view.check, block + offsets.check);
  return view;
}

// ----------------------------------------------------------------------------------- validation

Status bad_part(PartKind kind, const std::string& what) {
  return Status(Code::kInvalidArgument, std::string(to_string(kind)) + " part: " + what);
}

Status check_header(ConstByteSpan part, PartKind kind, const PartHeader& header) {
  if (header.magic != kPartMagic) return bad_part(kind, "not a part (wrong magic)");
  if (header.version != kLayoutVersion) {
    return bad_part(kind, "layout version " + std::to_string(header.version) +
                              ", this program reads version " + std::to_string(kLayoutVersion) +
                              ": rebuild the store with this version");
  }
  if (header.kind != static_cast<std::uint8_t>(kind)) {
    return bad_part(kind, "of kind " + std::to_string(header.kind));
  }
  if (header.total_bytes != part.size()) {
    return bad_part(kind, std::to_string(part.size()) + " bytes, its header says " +
                              std::to_string(header.total_bytes));
  }
  ICE_TRY(validate(KvShape{.layer_count = 1,
                           .kv_head_count = header.kv_head_count,
                           .d_k = header.d_k,
                           .d_v = header.d_v})
              .with_context("part header"));
  if (header.row_count < static_cast<std::uint32_t>(kExtentRows) ||
      header.row_count > static_cast<std::uint32_t>(kMaxSegmentTokens) ||
      header.row_count % static_cast<std::uint32_t>(kExtentRows) != 0 ||
      (header.first_indexed_row != 0 && header.first_indexed_row != kSinkTokens)) {
    return bad_part(kind, "segment of " + std::to_string(header.row_count) +
                              " rows, indexed from " + std::to_string(header.first_indexed_row));
  }
  return Status();
}

// The header and the head table, checked against the part's length: every block stands where
// make_part() would have put it.
Result<PartHeader> check_part(ConstByteSpan part, PartKind kind) {
  if (part.size() < sizeof(PartHeader)) {
    return bad_part(kind, "truncated to " + std::to_string(part.size()) + " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(part.data()) % kPartAlign != 0) {
    return bad_part(kind, "at an address that is no multiple of " + std::to_string(kPartAlign));
  }
  const auto header = load<PartHeader>(part.data());
  ICE_TRY(check_header(part, kind, header));
  const PartShape shape = shape_of(header);
  std::int64_t at = shared_offsets(kind, shape).blocks;
  if (at > static_cast<std::int64_t>(part.size())) return bad_part(kind, "head table cut off");
  for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
    const HeadEntry entry = head_entry(part.data(), head);
    const bool level = has_gamma(kind);
    const auto rows = static_cast<std::uint32_t>(shape.row_count);
    if (level ? (entry.count == 0 || entry.count > rows) : entry.count != rows) {
      return bad_part(kind, "head " + std::to_string(head) + " has " + std::to_string(entry.count) +
                                " entries");
    }
    if (entry.offset != static_cast<std::uint64_t>(at)) {
      return bad_part(
          kind, "head " + std::to_string(head) + " at offset " + std::to_string(entry.offset));
    }
    at += block_bytes(kind, static_cast<std::int32_t>(entry.count), shape);
  }
  if (at != static_cast<std::int64_t>(part.size())) return bad_part(kind, "length does not fit");
  return header;
}

// Clusters follow each other without gaps and cover the indexed rows; the last extent's rows are
// in clusters of their own.
Status check_runs(const LevelView& level, const PartShape& shape, PartKind kind) {
  std::int32_t next = shape.first_indexed_row;
  const std::int32_t last_extent = shape.row_count - kExtentRows;
  const std::int32_t most = kind == PartKind::kClusters ? kMaxClusterTokens : shape.row_count;
  for (std::int32_t c = 0; c < level.stored_count; ++c) {
    const std::int32_t count = level.token_count[c];
    if (level.first_row[c] != next || count < 1 || count > most) {
      return bad_part(kind, "cluster " + std::to_string(c) + " has " + std::to_string(count) +
                                " rows from " + std::to_string(level.first_row[c]));
    }
    if (next < last_extent && next + count > last_extent) {
      return bad_part(kind, "cluster " + std::to_string(c) + " crosses into the last extent");
    }
    next += count;
  }
  if (next != shape.row_count) return bad_part(kind, "clusters end at row " + std::to_string(next));
  return Status();
}

bool is_variance(float value) { return std::isfinite(value) && value >= 0; }

Status check_numbers(const LevelView& level, PartKind kind) {
  for (std::int32_t c = 0; c < level.stored_count; ++c) {
    if (!std::isfinite(level.key_scale[c]) || !std::isfinite(level.value_scale[c]) ||
        !std::isfinite(level.ln_count[c]) || !is_variance(fp16_to_float(level.sigma[c]))) {
      return bad_part(kind, "cluster " + std::to_string(c) + " has an impossible statistic");
    }
  }
  for (std::int32_t j = 0; j < level.d_k; ++j) {
    if (!is_variance(level.gamma[j])) return bad_part(kind, "impossible variance shape");
  }
  for (std::int32_t j = 0; level.slope != nullptr && j < level.d_k; ++j) {
    if (!is_variance(level.slope_scale[j])) return bad_part(kind, "impossible slope");
  }
  return Status();
}

}  // namespace

AlignedBytes make_level_part(PartKind kind, const PartShape& shape,
                             std::span<const std::int32_t> counts) {
  ICE_CHECK(has_gamma(kind));
  AlignedBytes part = make_part(kind, shape, counts);
  for (std::int32_t head = 0; head < shape.kv_head_count; ++head) {
    MutableLevelView view = mutable_level(part, head);
    for (std::int32_t c = view.count; c < MutableLevelView::padded(view.count); ++c) {
      view.ln_count[c] = -std::numeric_limits<float>::infinity();
    }
  }
  return part;
}

AlignedBytes make_codes_part(const PartShape& shape) {
  return make_part(
      PartKind::kCodes, shape,
      std::vector<std::int32_t>(static_cast<std::size_t>(shape.kv_head_count), shape.row_count));
}

AlignedBytes make_order_part(const PartShape& shape) {
  return make_part(
      PartKind::kOrder, shape,
      std::vector<std::int32_t>(static_cast<std::size_t>(shape.kv_head_count), shape.row_count));
}

MutableLevelView mutable_level(AlignedBytes& part, std::int32_t head_index) {
  return level_at<MutableLevelView>(part.data(), load<PartHeader>(part.data()), head_index);
}

MutableCodesView mutable_codes(AlignedBytes& part, std::int32_t head_index) {
  return codes_at<MutableCodesView>(part.data(), load<PartHeader>(part.data()), head_index);
}

std::uint16_t* mutable_order(AlignedBytes& part, std::int32_t head_index) {
  return reinterpret_cast<std::uint16_t*>(part.data() + head_entry(part.data(), head_index).offset);
}

Result<LevelPart> parse_level_part(ConstByteSpan part, PartKind kind) {
  ICE_CHECK(has_gamma(kind));
  ICE_TRY(const PartHeader header, check_part(part, kind));
  LevelPart result{.shape = shape_of(header), .heads = {}};
  for (std::int32_t head = 0; head < header.kv_head_count; ++head) {
    result.heads.push_back(level_at<LevelView>(part.data(), header, head));
    ICE_TRY(check_runs(result.heads.back(), result.shape, kind));
    ICE_TRY(check_numbers(result.heads.back(), kind));
  }
  return result;
}

Result<CodesPart> parse_codes_part(ConstByteSpan part) {
  ICE_TRY(const PartHeader header, check_part(part, PartKind::kCodes));
  CodesPart result{.shape = shape_of(header), .heads = {}};
  for (std::int32_t head = 0; head < header.kv_head_count; ++head) {
    result.heads.push_back(codes_at<CodesView>(part.data(), header, head));
    const CodesView& view = result.heads.back();
    for (std::int32_t row = 0; row < view.row_count; ++row) {
      if (!std::isfinite(fp16_to_float(view.scale[row]))) {
        return bad_part(PartKind::kCodes, "scale of row " + std::to_string(row) + " not finite");
      }
    }
  }
  return result;
}

Result<OrderPart> parse_order_part(ConstByteSpan part) {
  ICE_TRY(const PartHeader header, check_part(part, PartKind::kOrder));
  OrderPart result{.shape = shape_of(header), .heads = {}};
  for (std::int32_t head = 0; head < header.kv_head_count; ++head) {
    const auto* order =
        reinterpret_cast<const std::uint16_t*>(part.data() + head_entry(part.data(), head).offset);
    std::vector<bool> seen(header.row_count, false);
    for (std::uint32_t row = 0; row < header.row_count; ++row) {
      if (order[row] >= header.row_count || seen[order[row]]) {
        return bad_part(PartKind::kOrder, "row " + std::to_string(row) + " holds token " +
                                              std::to_string(order[row]) +
                                              " again or out of range");
      }
      seen[order[row]] = true;
    }
    result.heads.push_back(order);
  }
  return result;
}

}  // namespace icefield
