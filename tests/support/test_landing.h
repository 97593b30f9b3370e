// tests/support/test_landing.h — a landing that is counted while it lives.
#pragma once

#include <gtest/gtest.h>

#include <atomic>

#include "transport/transport.h"

namespace icefield {

class TestLanding final : public Landing {
 public:
  TestLanding(std::int64_t bytes, std::atomic<int>& alive) : size_(bytes), alive_(alive) {
    ++alive_;
  }
  ~TestLanding() override { --alive_; }

  std::int64_t size() const override { return size_; }
  void add(ConstByteSpan bytes) override {
    EXPECT_FALSE(bytes.empty());
    memory_.insert(memory_.end(), bytes.begin(), bytes.end());
    EXPECT_LE(std::ssize(memory_), size_);
  }
  // All of it, once it is there.
  ConstByteSpan bytes() const {
    EXPECT_EQ(std::ssize(memory_), size_);
    return memory_;
  }

 private:
  const std::int64_t size_;
  std::atomic<int>& alive_;
  Bytes memory_;
};

}  // namespace icefield
