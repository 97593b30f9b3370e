// tools/bench_transport_service.h — the server's side of `icefield bench transport`: memory that is
// read and written through a transport.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "transport/transport.h"

namespace icefield {

// Checksums are XXH3 over pieces of this size.
constexpr std::int64_t kBenchPieceBytes = 64 << 10;

enum class BenchMethod : MethodId { kGet = 1, kPut = 2, kLocate = 3 };

// The header of a request.
struct BenchRequest {
  std::int64_t value_bytes = 0;
  std::int64_t batch = 0;   // values per call
  std::int64_t verify = 0;  // 0: no checksums
};
static_assert(std::is_trivially_copyable_v<BenchRequest>);

// XXH3 of each piece, the last one may be shorter; as the bytes of a header.
std::string piece_checksums(ConstByteSpan bytes);

// Holds the pieces of values against their checksums: those given, or those in the reply's header.
class PieceChecker final : public Arrival {
 public:
  explicit PieceChecker(std::int64_t value_bytes, std::string checksums = {})
      : value_bytes_(static_cast<std::size_t>(value_bytes)), checksums_(std::move(checksums)) {}
  void arrived(std::string_view header, ConstByteSpan payload) override;
  // Whether all bytes were as they should be. Once the reply is there.
  bool intact() const { return intact_ && checked_bytes_ == seen_bytes_; }

 private:
  const std::size_t value_bytes_;
  const std::string checksums_;
  bool intact_ = true;
  std::size_t checked_bytes_ = 0;
  std::size_t checked_pieces_ = 0;
  std::size_t seen_bytes_ = 0;
};

// get answers with `batch` values, gathered, and the checksums of their pieces in the header; put
// checks the pieces against what follows the request in the header; locate answers with the
// checksums of a value that a read of the region finds at 0, and with the region's key behind them.
class BenchService final : public Service {
 public:
  explicit BenchService(Region memory);
  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override;

 private:
  Task<ServiceReply> get(const BenchRequest& request);

  const Region memory_;
  std::string checksums_;  // of the last size asked for
  BenchRequest asked_;
};

}  // namespace icefield
