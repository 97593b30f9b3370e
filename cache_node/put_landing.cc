#include "cache_node/put_landing.h"

#include "cache_node/value_decode.h"

namespace icefield {
namespace {

constexpr std::int64_t kChecksumBytes = sizeof(std::uint64_t);

// Of so many chunks from the first one of the request on.
std::int64_t chunk_bytes(const PutValue& value, std::int64_t chunks) {
  return std::min(value.value_bytes, value.begin() + chunks * kValueChunkBytes) - value.begin();
}

PutOptions options_of(const proto::PutValuesRequest& request) {
  constexpr std::uint64_t kMaxTtl = std::uint64_t{1} << 50;
  constexpr std::uint32_t kUnknown = 255;  // refused by validate()
  return {.level = static_cast<WriteLevel>(std::min(request.level(), kUnknown)),
          .ttl_ms = static_cast<std::int64_t>(std::min(request.ttl_ms(), kMaxTtl)),
          .pin = static_cast<PinKind>(std::min(request.pin(), kUnknown)),
          .pin_ttl_ms = static_cast<std::int64_t>(std::min(request.pin_ttl_ms(), kMaxTtl))};
}

}  // namespace

Result<std::unique_ptr<PutLanding>> PutLanding::open(proto::PutValuesRequest message,
                                                     std::int64_t payload_bytes, NodeValues& values,
                                                     std::optional<DramTier::Reservation> room) {
  std::optional<std::int64_t> room_slots;
  if (room.has_value()) room_slots = room->slot_count();
  std::unique_ptr<PutLanding> landing(
      new PutLanding(std::move(message), payload_bytes, room_slots));
  ICE_TRY(landing->decode());
  if (room.has_value()) {
    ICE_TRY(landing->chunks_, NodeValues::adopt(landing->request_, std::move(*room)));
  } else {
    landing->chunks_ = values.reserve(landing->request_);
    landing->lay_out();
  }
  landing->write_to_runs();
  return landing;
}

Status PutLanding::decode() {
  ICE_TRY(const auto keys, keys_of(message_.keys()));
  request_.scope = scope_of(message_.scope());
  request_.upload = message_.upload();
  request_.options = options_of(message_);
  ICE_TRY(request_.options.validate());
  if (room_slots_.has_value() && request_.options.level == WriteLevel::kDurable) {
    return invalid("a durable put whose values do not come with it");
  }
  return decode_values(keys);
}

// Hands out the payload item by item; behind the bytes of all come their chunks' checksums.
Status PutLanding::decode_values(std::span<const std::string_view> keys) {
  std::int64_t payload_bytes = size_;
  const auto count = static_cast<int>(keys.size());
  if (message_.value_bytes_size() != count || message_.first_chunks_size() != count ||
      message_.chunk_counts_size() != count) {
    return invalid("put of values: arrays of different lengths");
  }
  std::uint64_t chunk_count = 0;
  request_.values.reserve(keys.size());
  for (int i = 0; i < count; ++i) {
    const std::uint64_t bytes = message_.value_bytes(i);
    if (bytes > static_cast<std::uint64_t>(kMaxValueBytes)) {
      return validate_value_bytes(kMaxValueBytes + 1);
    }
    PutValue value{.key = keys[static_cast<std::size_t>(i)],
                   .value_bytes = static_cast<std::int64_t>(bytes),
                   .first_chunk = message_.first_chunks(i)};
    const std::uint32_t chunks = message_.chunk_counts(i);
    if (chunks == 0 || value.first_chunk + chunks > value_chunk_count(value.value_bytes)) {
      return invalid("put of values: chunks that the value does not have");
    }
    chunk_count += chunks;
    // Each takes a slot at least: nothing is made for what cannot be there.
    if (room_slots_.has_value() && chunk_count > static_cast<std::uint64_t>(*room_slots_)) {
      return invalid("values are longer than their room");
    }
    const std::int64_t bytes_to_come = room_slots_.has_value() ? 0 : chunk_bytes(value, chunks);
    payload_bytes -= bytes_to_come + chunks * kChecksumBytes;
    if (payload_bytes < 0) return invalid("values are longer than the payload");
    request_.values.push_back(value);
  }
  if (payload_bytes > 0) return invalid("the payload is longer than its values");
  checksums_.resize(chunk_count);
  std::span<const std::uint64_t> left = checksums_;
  for (int i = 0; i < count; ++i) {
    request_.values[static_cast<std::size_t>(i)].checksums = left.first(message_.chunk_counts(i));
    left = left.subspan(message_.chunk_counts(i));
  }
  return Status();
}

void PutLanding::lay_out() {
  std::int64_t aside_bytes = 0;
  for (const IncomingChunk& chunk : chunks_) {
    if (!chunk.slots.has_value()) aside_bytes += chunk.bytes;
    sums_.add(chunk.key, chunk.bytes);
  }
  aside_ = Buffer(aside_bytes);
  aside_.resize(aside_bytes);
  ByteSpan aside = aside_.bytes();
  std::vector<std::size_t> run_counts;
  run_counts.reserve(chunks_.size());
  runs_.reserve(chunks_.size());
  for (const IncomingChunk& chunk : chunks_) {
    const std::size_t before = runs_.size();
    if (chunk.slots.has_value()) {
      chunk.slots->append_runs(runs_);
    } else {
      runs_.push_back(aside.first(static_cast<std::size_t>(chunk.bytes)));
      aside = aside.subspan(runs_.back().size());
    }
    run_counts.push_back(runs_.size() - before);
  }
  parts_.assign(runs_.begin(), runs_.end());
  std::span<const ConstByteSpan> parts = parts_;
  sums_.begin();
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    chunks_[i].parts = parts.first(run_counts[i]);
    parts = parts.subspan(run_counts[i]);
  }
}

// What comes goes to the chunks, what is behind to their checksums.
void PutLanding::write_to_runs() {
  runs_.push_back(std::as_writable_bytes(std::span(checksums_)));
  writer_ = RunWriter(runs_);
}

// Hashed where they came, then copied past the caches: read once. A client that changes them in
// between damages its own value, which every read of it will find.
void PutLanding::add(ConstByteSpan bytes) {
  constexpr std::size_t kInCache = 16 << 10;
  while (!bytes.empty()) {
    const ConstByteSpan part = bytes.first(std::min(bytes.size(), kInCache));
    sums_.pass(part);
    writer_.put(part);
    bytes = bytes.subspan(part.size());
  }
}

std::span<IncomingChunk> PutLanding::chunks() {
  std::span<const std::uint64_t> sums = sums_.sums();
  if (room_slots_.has_value()) sums = checksums_;
  for (std::size_t i = 0; i < chunks_.size(); ++i) chunks_[i].checksum = sums[i];
  return chunks_;
}

}  // namespace icefield
