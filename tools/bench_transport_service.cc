#include "tools/bench_transport_service.h"

#include "common/hash.h"
#include "common/rng.h"

namespace icefield {

std::string piece_checksums(ConstByteSpan bytes) {
  std::string text;
  while (!bytes.empty()) {
    const ConstByteSpan piece = bytes.first(std::min<std::size_t>(bytes.size(), kBenchPieceBytes));
    const std::uint64_t checksum = xxh3(piece, 0);
    text.append(as_text(std::as_bytes(std::span(&checksum, 1))));
    bytes = bytes.subspan(piece.size());
  }
  return text;
}

void PieceChecker::arrived(std::string_view header, ConstByteSpan payload) {
  seen_bytes_ = payload.size();
  while (checked_bytes_ < payload.size()) {
    const std::size_t left_of_value = value_bytes_ - checked_bytes_ % value_bytes_;
    const std::size_t size = std::min<std::size_t>(left_of_value, kBenchPieceBytes);
    if (checked_bytes_ + size > payload.size()) return;  // the rest of it is on its way
    const std::string_view all = checksums_.empty() ? header : checksums_;
    const ConstByteSpan checksum =
        as_bytes(all).subspan(std::min(all.size(), checked_pieces_ * sizeof(std::uint64_t)));
    intact_ =
        intact_ && checksum.size() >= sizeof(std::uint64_t) &&
        xxh3(payload.subspan(checked_bytes_, size), 0) == load<std::uint64_t>(checksum.data());
    checked_bytes_ += size;
    ++checked_pieces_;
  }
}

BenchService::BenchService(Region memory) : memory_(std::move(memory)) {
  SeededRng rng(1);
  for (std::size_t at = 0; at + sizeof(std::uint64_t) <= memory_.bytes.size(); at += 8) {
    store(memory_.bytes.data() + at, rng.next());
  }
}

Task<ServiceReply> BenchService::get(const BenchRequest& request) {
  const ConstByteSpan all = memory_.bytes;
  const auto value = static_cast<std::size_t>(request.value_bytes);
  const auto batch = static_cast<std::size_t>(request.batch);
  if (value == 0 || batch == 0 || value > all.size() / batch) {
    co_return Status(Code::kInvalidArgument, "more than there is");
  }
  ServiceReply reply;
  for (std::size_t i = 0; i < batch; ++i) reply.payload.push_back(all.subspan(i * value, value));
  if (request.verify != 0) {
    // A node keeps checksums beside its values; here they are computed once.
    if (asked_.value_bytes != request.value_bytes || asked_.batch != request.batch) {
      asked_ = request;
      checksums_.clear();
      for (const ConstByteSpan bytes : reply.payload) checksums_ += piece_checksums(bytes);
    }
    reply.header = checksums_;
  }
  co_return reply;
}

Task<ServiceReply> BenchService::handle(const Caller&, MethodId method, std::string header,
                                        Payload payload) {
  if (header.size() < sizeof(BenchRequest)) {
    co_return Status(Code::kInvalidArgument, "not a request of the benchmark");
  }
  const auto request = load<BenchRequest>(as_bytes(header).data());
  if (static_cast<BenchMethod>(method) == BenchMethod::kGet) co_return co_await get(request);
  if (static_cast<BenchMethod>(method) == BenchMethod::kLocate) {
    ICE_CO_TRY(ServiceReply located, co_await get(request));
    located.header += memory_.key;
    located.payload.clear();
    co_return located;
  }
  const std::string_view expected = std::string_view(header).substr(sizeof request);
  if (request.verify != 0 && piece_checksums(std::as_const(payload.buffer).bytes()) != expected) {
    co_return Status(Code::kDataLoss, "checksum mismatch on arrival");
  }
  co_return ServiceReply();
}

}  // namespace icefield
