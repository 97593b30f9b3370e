#include "client/value_check.h"

namespace icefield {
namespace {

constexpr std::int64_t kPiecesPerChunk = kValueChunkBytes / kValuePieceBytes;

Status misfit() { return Status(Code::kInternal, "the node's reply does not fit the request"); }

// The parts of a reply that its items use up one after the other.
struct Rest {
  std::span<const std::uint64_t> checksums;
  std::span<const std::uint64_t> piece_checks;
  ConstByteSpan payload;
};

// The checks of the chunk: those of pieces that did not come are the node's, and the chunk's
// checksum says whether all of them are right.
Result<bool> chunk_is_whole(const AskedValue& asked, const ObjectKey& key, const ChunkRange& range,
                            ConstByteSpan bytes, Rest& rest, std::vector<std::uint64_t>& checks) {
  checks.clear();
  if (rest.checksums.empty()) return misfit();
  const std::uint64_t checksum = rest.checksums.front();
  rest.checksums = rest.checksums.subspan(1);
  if (!range.whole()) {
    const auto count = static_cast<std::size_t>(ceil_div(range.chunk_bytes, kValuePieceBytes));
    if (rest.piece_checks.size() < count) return misfit();
    checks.assign(rest.piece_checks.begin(),
                  rest.piece_checks.begin() + static_cast<std::ptrdiff_t>(count));
    rest.piece_checks = rest.piece_checks.subspan(count);
  } else {
    checks.resize(static_cast<std::size_t>(ceil_div(range.chunk_bytes, kValuePieceBytes)));
  }
  for (std::int64_t at = range.begin; at < range.end; at += kValuePieceBytes) {
    const auto size = static_cast<std::size_t>(std::min(kValuePieceBytes, range.end - at));
    const std::int64_t piece = at / kValuePieceBytes;
    checks[static_cast<std::size_t>(piece)] =
        value_piece_check(asked.hash, key.part.extent * kPiecesPerChunk + piece,
                          bytes.subspan(static_cast<std::size_t>(at - range.begin), size));
  }
  return value_chunk_checksum(key, checks) == checksum;
}

Status check_one(const AskedValue& asked, Rest& rest, std::vector<std::uint64_t>& checks,
                 CheckedValue& value) {
  const std::int64_t end = std::min(value.value_bytes, asked.offset + asked.room);
  if (end < asked.offset) return misfit();
  const auto size = static_cast<std::size_t>(end - asked.offset);
  if (size > rest.payload.size()) return misfit();
  value.bytes = rest.payload.first(size);
  rest.payload = rest.payload.subspan(size);
  const std::int64_t count = value_chunk_count(value.value_bytes);
  const std::int64_t first = asked.offset / kValueChunkBytes;
  const std::int64_t stop = std::max(first + 1, ceil_div(end, kValueChunkBytes));
  ConstByteSpan left = value.bytes;
  bool whole = true;
  for (std::int64_t chunk = first; chunk < stop; ++chunk) {
    const ChunkRange range = chunk_range(value.value_bytes, chunk, asked.offset, end);
    const auto bytes = left.first(static_cast<std::size_t>(range.end - range.begin));
    left = left.subspan(bytes.size());
    ICE_TRY(const bool ok, chunk_is_whole(asked, value_chunk_key(asked.hash, count, chunk), range,
                                          bytes, rest, checks));
    whole = whole && ok;
  }
  if (whole) return Status();
  value.status = Status(Code::kDataLoss, "checksum mismatch", MissReason::kIntegrity);
  value.bytes = {};
  return Status();
}

}  // namespace

Result<std::vector<CheckedValue>> check_values(std::span<const AskedValue> asked,
                                               const GetValuesReply& reply) {
  const ValueFacts& facts = reply.facts;
  if (facts.statuses.size() != asked.size()) return misfit();
  Rest rest{.checksums = facts.checksums,
            .piece_checks = facts.piece_checks,
            .payload = reply.payload.bytes()};
  std::vector<CheckedValue> values(asked.size());
  std::vector<std::uint64_t> checks;
  for (std::size_t i = 0; i < asked.size(); ++i) {
    values[i].status = facts.statuses[i];
    values[i].value_bytes = facts.value_bytes[i];
    values[i].version = facts.versions[i];
    if (values[i].status.ok()) ICE_TRY(check_one(asked[i], rest, checks, values[i]));
  }
  if (!rest.payload.empty()) return misfit();
  return values;
}

}  // namespace icefield
