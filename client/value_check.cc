#include "client/value_check.h"

#include "cache_node/chunk_sums.h"

namespace icefield {
namespace {

constexpr std::int64_t kPiecesPerChunk = kValueChunkBytes / kValuePieceBytes;

Status misfit() { return Status(Code::kInternal, "the node's reply does not fit the request"); }

}  // namespace

struct ValueChecker::Facts {
  std::span<const std::uint64_t> checksums;
  std::span<const std::uint64_t> piece_checks;
};

void ValueChecker::arrived(const ValueFacts& facts, ConstByteSpan payload) {
  if (!planned_) {
    planned_ = true;
    misfit_ = plan(facts);
  }
  if (!misfit_.ok()) return;
  for (; hashed_ < pieces_.size() && pieces_[hashed_].end <= payload.size(); ++hashed_) {
    const Piece& piece = pieces_[hashed_];
    checks_[piece.check] = value_piece_check(asked_[piece.value].hash, piece.number,
                                             payload.subspan(piece.end - piece.size, piece.size));
  }
}

Status ValueChecker::plan(const ValueFacts& facts) {
  if (facts.statuses.size() != asked_.size() || facts.versions.size() != asked_.size()) {
    return misfit();
  }
  Facts left{.checksums = facts.checksums, .piece_checks = facts.piece_checks};
  extents_.resize(asked_.size());
  for (std::size_t i = 0; i < asked_.size(); ++i) {
    extents_[i].begin = planned_bytes_;
    if (!facts.statuses[i].ok()) continue;
    const std::span<const std::uint64_t> before = left.checksums;
    ICE_TRY(plan_value(i, facts.value_bytes[i], left));
    extents_[i].size = planned_bytes_ - extents_[i].begin;
    const auto mine = before.first(before.size() - left.checksums.size());
    extents_[i].all = std::ssize(mine) == value_chunk_count(facts.value_bytes[i]);
    extents_[i].mixed = extents_[i].all && value_version(mine) != facts.versions[i];
  }
  return Status();
}

Status ValueChecker::plan_value(std::size_t value, std::int64_t value_bytes, Facts& facts) {
  const AskedValue& asked = asked_[value];
  const std::int64_t end = std::min(value_bytes, asked.offset + asked.room);
  if (end < asked.offset) return misfit();
  const std::int64_t count = value_chunk_count(value_bytes);
  const std::int64_t first = asked.offset / kValueChunkBytes;
  const std::int64_t stop = std::max(first + 1, ceil_div(end, kValueChunkBytes));
  for (std::int64_t chunk = first; chunk < stop; ++chunk) {
    ICE_TRY(plan_chunk(value, value_chunk_key(asked.hash, count, chunk),
                       chunk_range(value_bytes, chunk, asked.offset, end), facts));
  }
  return Status();
}

// The checks of pieces that do not come are the node's: the chunk's checksum says whether all of
// them are right.
Status ValueChecker::plan_chunk(std::size_t value, const ObjectKey& key, const ChunkRange& range,
                                Facts& facts) {
  const auto count = static_cast<std::size_t>(ceil_div(range.chunk_bytes, kValuePieceBytes));
  if (facts.checksums.empty()) return misfit();
  chunks_.push_back({.key = key,
                     .value = value,
                     .first_check = checks_.size(),
                     .check_count = count,
                     .checksum = facts.checksums.front()});
  facts.checksums = facts.checksums.subspan(1);
  checks_.resize(checks_.size() + count);
  const std::span checks = std::span(checks_).last(count);
  if (!range.whole()) {
    if (facts.piece_checks.size() < count) return misfit();
    std::ranges::copy(facts.piece_checks.first(count), checks.begin());
    facts.piece_checks = facts.piece_checks.subspan(count);
  }
  for (std::int64_t at = range.begin; at < range.end; at += kValuePieceBytes) {
    const auto size = static_cast<std::size_t>(std::min(kValuePieceBytes, range.end - at));
    const std::int64_t piece = at / kValuePieceBytes;
    planned_bytes_ += size;
    pieces_.push_back({.end = planned_bytes_,
                       .size = size,
                       .value = value,
                       .number = key.part.extent * kPiecesPerChunk + piece,
                       .check = chunks_.back().first_check + static_cast<std::size_t>(piece)});
  }
  return Status();
}

Result<std::vector<CheckedValue>> ValueChecker::finish(const GetValuesReply& reply) {
  ICE_TRY(misfit_);
  const ConstByteSpan payload = reply.payload.bytes();
  if (!planned_ || payload.size() != planned_bytes_) return misfit();
  std::vector<CheckedValue> values(asked_.size());
  for (std::size_t i = 0; i < asked_.size(); ++i) {
    values[i].status = reply.facts.statuses[i];
    values[i].value_bytes = reply.facts.value_bytes[i];
    values[i].version = reply.facts.versions[i];
    values[i].bytes = payload.subspan(extents_[i].begin, extents_[i].size);
  }
  const auto spoil = [](CheckedValue& value, const char* why) {
    value.status = Status(Code::kDataLoss, why, MissReason::kIntegrity);
    value.bytes = {};
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (extents_[i].mixed) spoil(values[i], "chunks of several values");
  }
  for (const Chunk& chunk : chunks_) {
    if (!extents_[chunk.value].all) values[chunk.value].checksums.push_back(chunk.checksum);
    const std::span checks = std::span(checks_).subspan(chunk.first_check, chunk.check_count);
    if (value_chunk_checksum(chunk.key, checks) == chunk.checksum) continue;
    spoil(values[chunk.value], "checksum mismatch");
  }
  return values;
}

}  // namespace icefield
