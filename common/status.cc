#include "common/status.h"

namespace icefield {

std::string_view to_string(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kNotFound: return "not found";
    case Code::kUnavailable: return "unavailable";
    case Code::kResourceExhausted: return "resource exhausted";
    case Code::kAborted: return "aborted";
    case Code::kDeadlineExceeded: return "deadline exceeded";
    case Code::kCancelled: return "cancelled";
    case Code::kDataLoss: return "data loss";
    case Code::kInvalidArgument: return "invalid argument";
    case Code::kFailedPrecondition: return "failed precondition";
    case Code::kAlreadyExists: return "already exists";
    case Code::kUnimplemented: return "unimplemented";
    case Code::kInternal: return "internal";
  }
  return "unknown";
}

std::string_view to_string(MissReason reason) {
  switch (reason) {
    case MissReason::kNone: return "none";
    case MissReason::kNeverStored: return "never stored";
    case MissReason::kEvicted: return "evicted";
    case MissReason::kExpired: return "expired";
    case MissReason::kFlushed: return "flushed";
    case MissReason::kFingerprint: return "fingerprint";
    case MissReason::kIntegrity: return "integrity";
    case MissReason::kNodeDown: return "node down";
    case MissReason::kQuota: return "quota";
    case MissReason::kNotWorthIt: return "not worth it";
  }
  return "unknown";
}

Status::Status(Code code, std::string message, MissReason reason) {
  if (code != Code::kOk) {
    rep_ = std::make_shared<const Rep>(Rep{code, reason, std::move(message)});
  }
}

const std::string& Status::message() const {
  static const std::string kEmpty;
  return rep_ == nullptr ? kEmpty : rep_->message;
}

std::string Status::to_string() const {
  std::string text(icefield::to_string(code()));
  if (reason() != MissReason::kNone) {
    text += " (";
    text += icefield::to_string(reason());
    text += ")";
  }
  if (!message().empty()) text += ": " + message();
  return text;
}

Status Status::with_context(std::string_view context) const {
  if (ok()) return *this;
  return Status(code(), std::string(context) + ": " + message(), reason());
}

}  // namespace icefield
