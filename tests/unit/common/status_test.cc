#include "common/status.h"

#include <gtest/gtest.h>

#include <memory>

#include "common/task.h"
#include "tests/support/run_task.h"

namespace icefield {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return Status(Code::kInvalidArgument, std::to_string(value) + " is odd");
  return value / 2;
}

Status check_quarter(int value, int* out) {
  ICE_TRY(const int first, half(value));
  ICE_TRY(*out, half(first));
  ICE_TRY(half(*out * 2).status());
  return Status();
}

TEST(Status, SuccessHasNoMessage) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.message(), "");
  EXPECT_EQ(status.to_string(), "ok");
  EXPECT_TRUE(Status(Code::kOk, "ignored").ok());
}

TEST(Status, TextHasCodeReasonAndMessage) {
  EXPECT_EQ(Status::miss(MissReason::kEvicted, "object 12").to_string(),
            "not found (evicted): object 12");
  EXPECT_EQ(Status(Code::kDataLoss, "row 3").with_context("store x").to_string(),
            "data loss: store x: row 3");
  EXPECT_TRUE(Status().with_context("anything").ok());
}

TEST(Status, EveryCodeAndReasonHasAName) {
  for (int i = 0; i <= static_cast<int>(Code::kInternal); ++i) {
    EXPECT_NE(to_string(static_cast<Code>(i)), "unknown");
  }
  for (int i = 0; i <= static_cast<int>(MissReason::kNotWorthIt); ++i) {
    EXPECT_NE(to_string(static_cast<MissReason>(i)), "unknown");
  }
}

TEST(Try, PassesValuesOnAndReturnsTheFirstError) {
  int out = 0;
  EXPECT_TRUE(check_quarter(12, &out).ok());
  EXPECT_EQ(out, 3);
  EXPECT_EQ(check_quarter(13, &out).message(), "13 is odd");
  EXPECT_EQ(check_quarter(14, &out).message(), "7 is odd");
}

TEST(Try, MovesWhatCannotBeCopied) {
  const auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(5); };
  const auto use = [&]() -> Result<int> {
    ICE_TRY(const std::unique_ptr<int> value, make());
    return *value;
  };
  EXPECT_EQ(use().value(), 5);
}

Task<int> co_half(int value) { co_return half(value); }
Task<> co_quarter(int value) {
  ICE_CO_TRY(const int first, co_await co_half(value));
  ICE_CO_TRY(co_await co_half(first));
  co_return Status();
}

TEST(Try, WorksInCoroutines) {
  EXPECT_TRUE(run_task(co_quarter(12)).ok());
  EXPECT_EQ(run_task(co_quarter(14)).message(), "7 is odd");
}

TEST(ResultDeathTest, ValueOfAnErrorStopsWithItsMessage) {
  const Result<int> result = Status(Code::kInternal, "the reason");
  EXPECT_DEATH((void)result.value(), "the reason");
}

}  // namespace
}  // namespace icefield
