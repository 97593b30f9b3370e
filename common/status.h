// common/status.h — how operations fail: Status (code, message, miss reason) and Result<T>.
//
// Operating errors return one of these; programmer errors stop the program (common/check.h).
// Exceptions do not cross our interfaces.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "common/check.h"

namespace icefield {

// What the caller should do, not what went wrong: that is the message. The numbers travel in
// messages (proto/icefield.proto) and are never reused.
enum class Code : std::uint8_t {
  kOk = 0,
  kNotFound = 1,            // a miss: carry on without the object; reason() says why
  kUnavailable = 2,         // retry: another holder
  kResourceExhausted = 3,   // retry after eviction or backoff
  kAborted = 4,             // my view is stale: refresh placement, redo the operation once
  kDeadlineExceeded = 5,    // stop; a write may or may not have happened
  kCancelled = 6,           // likewise
  kDataLoss = 7,            // checksum failed: drop the object, count it, treat as a miss
  kInvalidArgument = 8,     // fix the caller; never retry
  kFailedPrecondition = 9,  // likewise
  kAlreadyExists = 10,      // likewise
  kUnimplemented = 11,      // likewise
  kInternal = 12,           // a third-party or remote invariant broke: report
};
constexpr int kCodeCount = 13;

// Why a read was a miss. Meaningful with kNotFound only.
enum class MissReason : std::uint8_t {
  kNone = 0,
  kNeverStored = 1,
  kEvicted = 2,
  kExpired = 3,
  kFlushed = 4,
  kFingerprint = 5,  // stored by another model, weight revision or layout
  kIntegrity = 6,    // stored bytes failed verification
  kNodeDown = 7,
  kQuota = 8,
  kNotWorthIt = 9,  // loading was estimated to take longer than recomputing
};

std::string_view to_string(Code code);          // "not found"
std::string_view to_string(MissReason reason);  // "never stored"

// Success, or a code with a message. Success costs one null pointer; copies share the message.
//
// Messages are lower case, noun and values, no "failed to": "slot 17 of node 3 not mapped".
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message, MissReason reason = MissReason::kNone);

  bool ok() const { return rep_ == nullptr; }
  Code code() const { return rep_ == nullptr ? Code::kOk : rep_->code; }
  MissReason reason() const { return rep_ == nullptr ? MissReason::kNone : rep_->reason; }
  const std::string& message() const;
  std::string to_string() const;  // "not found (evicted): object 12ab…"

  // The same code and reason; `context` and ": " come before the message. No-op on success.
  Status with_context(std::string_view context) const;

  static Status miss(MissReason reason, std::string message) {
    return Status(Code::kNotFound, std::move(message), reason);
  }

 private:
  struct Rep {
    Code code;
    MissReason reason;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

// A value or the Status that explains its absence. The interface is a subset of
// std::expected<T, Status>, which GCC 12 does not have.
template <class T>
class [[nodiscard]] Result {
  static_assert(!std::is_same_v<std::remove_cvref_t<T>, Status>, "Status is already a result");

 public:
  using value_type = T;

  // An error, until assigned: asio::co_spawn wants its results default-constructible.
  Result() : Result(Status(Code::kInternal, "no result")) {}
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {
    ICE_CHECK(!std::get<1>(state_).ok());
  }

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& value() & { return checked(); }
  const T& value() const& { return const_cast<Result*>(this)->checked(); }
  T&& value() && { return std::move(checked()); }
  T& operator*() & { return checked(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(checked()); }
  T* operator->() { return &checked(); }
  const T* operator->() const { return &value(); }

  const Status& error() const& {
    ICE_CHECK(!has_value());
    return std::get<1>(state_);
  }
  Status&& error() && {
    ICE_CHECK(!has_value());
    return std::get<1>(std::move(state_));
  }
  // The error, or success.
  Status status() const { return has_value() ? Status() : std::get<1>(state_); }

 private:
  T& checked() {
    if (!has_value()) [[unlikely]] {
      internal::check_failed("result has a value", std::get<1>(state_).message().c_str(), 0);
    }
    return *std::get_if<0>(&state_);
  }

  std::variant<T, Status> state_;
};

namespace internal {
inline Status take_status(Status status) { return status; }
template <class T>
Status take_status(Result<T>&& result) {
  return result.has_value() ? Status() : std::move(result).error();
}
}  // namespace internal
}  // namespace icefield

// ICE_TRY(expr): returns from the function when `expr` (a Status or a Result) is an error.
// ICE_TRY(auto x, expr): the same, else moves the value of the Result into `x`.
// ICE_CO_TRY is their twin for coroutines.
#define ICE_TRY(...) \
  ICE_INTERNAL_PICK(__VA_ARGS__, ICE_INTERNAL_TRY2, ICE_INTERNAL_TRY1)(return, __VA_ARGS__)
#define ICE_CO_TRY(...) \
  ICE_INTERNAL_PICK(__VA_ARGS__, ICE_INTERNAL_TRY2, ICE_INTERNAL_TRY1)(co_return, __VA_ARGS__)

#define ICE_INTERNAL_PICK(a, b, name, ...) name
#define ICE_INTERNAL_JOIN2(a, b) a##b
#define ICE_INTERNAL_JOIN(a, b) ICE_INTERNAL_JOIN2(a, b)
#define ICE_INTERNAL_TRY1(ret, expr) \
  ICE_INTERNAL_TRY1_(ret, ICE_INTERNAL_JOIN(ice_s, __COUNTER__), expr)
#define ICE_INTERNAL_TRY1_(ret, name, expr)                                                       \
  if (::icefield::Status name = ::icefield::internal::take_status(expr); !name.ok()) [[unlikely]] \
  ret name
#define ICE_INTERNAL_TRY2(ret, decl, expr) \
  ICE_INTERNAL_TRY2_(ret, decl, ICE_INTERNAL_JOIN(ice_r, __COUNTER__), expr)
#define ICE_INTERNAL_TRY2_(ret, decl, name, expr) \
  auto name = (expr);                             \
  if (!name.has_value()) [[unlikely]]             \
    ret std::move(name).error();                  \
  decl = *std::move(name)
