// cache_node/put_landing.h — a put of values whose bytes land in the memory tier as they arrive.
#pragma once

#include "cache_node/chunk_sums.h"
#include "cache_node/node_values.h"
#include "common/run_writer.h"
#include "proto/icefield.pb.h"
#include "transport/transport.h"

namespace icefield {

// Decodes and validates the request, and gives each of its chunks room in the tier, or in a buffer
// where the tier has none for it. Hashes every piece once, as soon as all of it is there, so that
// when the last byte has landed every chunk's checksum is known. What a client has written into the
// tier by itself is not looked at: no wire was in between, and every read of it is verified.
//
// Ownership  Holds the reserved slots; those that NodeValues::put() has not taken go back with it.
// Threads    The node's shard.
class PutLanding final : public Landing {
 public:
  // `room`: where the chunks are, when they do not come. kInvalidArgument when the request makes no
  // sense or is not as long as its values.
  static Result<std::unique_ptr<PutLanding>> open(proto::PutValuesRequest message,
                                                  std::int64_t payload_bytes, NodeValues& values,
                                                  std::optional<DramTier::Reservation> room = {});

  std::int64_t size() const override { return size_; }
  void add(ConstByteSpan bytes) override;

  const PutValues& request() const { return request_; }
  const proto::PutValuesRequest& message() const { return message_; }
  // Once all is there.
  std::span<IncomingChunk> chunks();

 private:
  PutLanding(proto::PutValuesRequest message, std::int64_t size,
             std::optional<std::int64_t> room_slots)
      : message_(std::move(message)), size_(size), room_slots_(room_slots) {}
  Status decode();
  Status decode_values(std::span<const std::string_view> keys);
  // Where each chunk goes.
  void lay_out();
  void write_to_runs();

  const proto::PutValuesRequest message_;  // the keys of the request lie in it
  const std::int64_t size_;                // bytes
  // Of a room where the chunks are: then only their checksums come.
  const std::optional<std::int64_t> room_slots_;
  PutValues request_;
  std::vector<std::uint64_t> checksums_;  // of the request: the last run
  std::vector<IncomingChunk> chunks_;
  Buffer aside_;  // of chunks that have no slots
  std::vector<ByteSpan> runs_;
  std::vector<ConstByteSpan> parts_;  // the same, of which chunks_ have theirs
  RunWriter writer_;                  // into them
  ChunkSums sums_;                    // of what came
};

}  // namespace icefield
