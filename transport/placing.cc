#include "transport/placing.h"

namespace icefield {

Status Placing::begin() {
  const RegionRoom& room = *request_.room;
  const std::int64_t ticket = room.ticket_offset;
  const RegionRun ticket_run{.offset = ticket, .bytes = sizeof room.ticket};
  ICE_TRY(check_runs(std::span(&ticket_run, 1), std::ssize(region_), ticket_run.bytes).status());
  const std::int64_t most = payload_bytes(request_.payload);
  const auto bytes = check_runs(room.to.runs, std::ssize(region_), most);
  if (!bytes.has_value() || ticket % ticket_run.bytes != 0) {
    return Status(Code::kInvalidArgument, "room that the region or the payload does not have");
  }
  bytes_ = *bytes;
  if (!take_ticket(region_.data() + ticket, room.ticket)) {
    return Status(Code::kAborted, "the peer has taken the room back");
  }
  latest_ = clock_.now();
  for (const auto& [offset, size] : room.to.runs) {
    runs_.push_back(
        region_.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size)));
  }
  writer_ = RunWriter(runs_);
  return Status();
}

bool Placing::unplaced(const Status& placed) {
  return placed.code() == Code::kAborted || placed.code() == Code::kFailedPrecondition ||
         placed.code() == Code::kInvalidArgument || placed.code() == Code::kResourceExhausted;
}

Result<std::int64_t> Placing::step() {
  if (done()) return 0;
  std::vector<ConstByteSpan>& payload = request_.payload;
  while (payload[span_].empty()) ++span_;
  const auto most = static_cast<std::size_t>(std::min(kSliceBytes, bytes_ - done_));
  const ConstByteSpan slice = payload[span_].first(std::min(payload[span_].size(), most));
  done_ += std::ssize(slice);
  if (request_.departure != nullptr) request_.departure->leaving(done_);
  const Clock::TimePoint before = std::exchange(latest_, clock_.now());
  if (latest_ - before > kLongestPause) {
    return Status(Code::kUnavailable, "held up in the middle of a copy");
  }
  writer_.put(slice);
  payload[span_] = payload[span_].subspan(slice.size());
  return std::ssize(slice);
}

void Placing::finish() {
  ICE_CHECK(done());
  std::vector<ConstByteSpan>& payload = request_.payload;
  payload.erase(payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(span_));
  const std::int64_t behind = payload_bytes(payload);
  Departure* const departure = std::exchange(request_.departure, nullptr);
  if (departure != nullptr && behind > 0) departure->leaving(done_ + behind);
}

}  // namespace icefield
